//! Tokens of the cluster's API server: whose they are (`TokenReview`), and what these may do here
//! (`SubjectAccessReview` on the virtual resource `repositories.hyprstream.io`). And whether there is
//! a PersistentVolume of a name, which nodes ask.
//!
//! Answers are kept for a short time, see [`CacheTimes`]. While the API server does not answer,
//! what it said before holds a little longer; then the registry says that it cannot tell, which is
//! another thing than that the token is wrong.

mod api;
mod cache;
mod volumes;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

pub(crate) use self::volumes::VolumeError;
use self::{
    api::{ApiServer, CallError},
    cache::{Answer, Cache},
};
use crate::refusal::chain;

/// How the API server is asked about tokens.
#[derive(Clone, Debug)]
pub struct KubernetesTokens {
    /// Its URL.
    pub url: String,
    /// File with the token of the registry's own service account.
    pub token_file: PathBuf,
    /// File with the certificates that it is trusted by. `None` for those of the machine.
    pub ca_file: Option<PathBuf>,
    /// The audience that tokens must be for, so that one for the API server or for another service
    /// is of no use here.
    pub audience: String,
    /// How long its answers hold.
    pub cache: CacheTimes,
}

/// How long answers of the API server hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheTimes {
    /// A good token, and a right that is given.
    pub good: Duration,
    /// A bad token, and a right that is not.
    pub bad: Duration,
    /// What was good, while the API server does not answer.
    pub while_down: Duration,
}

impl Default for CacheTimes {
    /// 15 s, so that a right that is taken away has ended within 30 s; 3 s; 60 s.
    fn default() -> Self {
        Self {
            good: Duration::from_secs(15),
            bad: Duration::from_secs(3),
            while_down: Duration::from_mins(1),
        }
    }
}

/// Whom the API server found behind a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    #[serde(default)]
    pub(crate) username: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act<'a> {
    pub(crate) verb: &'static str,
    pub(crate) subresource: &'static str,
    pub(crate) namespace: &'a str,
    /// Empty for all of the namespace.
    pub(crate) name: &'a str,
}

/// The API server does not answer, and what it said before no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unavailable;

/// The API server as one who knows tokens and rights.
pub(crate) struct Kubernetes {
    api: Arc<ApiServer>,
    audience: String,
    times: CacheTimes,
    users: Cache<Option<Arc<User>>>,
    rights: Cache<bool>,
    calls: Semaphore,
    /// When it last did not answer. Not every request waits to find that out for itself.
    failed: Mutex<Option<Instant>>,
}

const CALLS_AT_ONCE: usize = 16;
const WAIT_FOR_A_CALL: Duration = Duration::from_secs(10);
const PAUSE_AFTER_A_FAILURE: Duration = Duration::from_secs(1);
/// Longer than any token of an API server.
const MAX_TOKEN_BYTES: usize = 16 << 10;

impl User {
    /// The name of the service account, if it is one.
    pub(crate) fn service_account(&self) -> Option<&str> {
        let rest = self.username.strip_prefix("system:serviceaccount:")?;
        rest.split_once(':').map(|(_, name)| name)
    }

    /// The pod that the token was made for.
    pub(crate) fn pod(&self) -> Option<&str> {
        let names = self.extra.get("authentication.kubernetes.io/pod-name")?;
        names.first().map(String::as_str)
    }
}

impl Kubernetes {
    pub(crate) fn new(settings: KubernetesTokens) -> Self {
        let KubernetesTokens {
            url,
            token_file,
            ca_file,
            audience,
            cache,
        } = settings;
        Self {
            api: Arc::new(ApiServer::new(&url, token_file, ca_file)),
            audience,
            times: cache,
            users: Cache::default(),
            rights: Cache::default(),
            calls: Semaphore::new(CALLS_AT_ONCE),
            failed: Mutex::default(),
        }
    }

    /// Whose token it is; `None` if it is no valid token for this registry.
    pub(crate) async fn user(&self, token: &str) -> Result<Option<Arc<User>>, Unavailable> {
        // The API server is not asked about what cannot be one of its tokens for us.
        let Some(left) = time_left(token, &self.audience) else {
            return Ok(None);
        };
        let key = Sha256::digest(token.as_bytes()).into();
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [&self.audience]},
        });
        let ask = async || {
            let answer: Review<TokenStatus> = self
                .create("/apis/authentication.k8s.io/v1/tokenreviews", review)
                .await?;
            let status = answer.status;
            // A server that knows nothing of audiences lists none.
            let good = status.authenticated && status.audiences.contains(&self.audience);
            let user = status.user.filter(|user| good && !user.username.is_empty());
            Ok(self.answer(user.is_some(), left, user.map(Arc::new)))
        };
        self.users.get(key, ask).await
    }

    /// Whether `user` may do it.
    pub(crate) async fn allows(&self, user: &User, act: Act<'_>) -> Result<bool, Unavailable> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.username,
                "uid": user.uid,
                "groups": user.groups,
                "extra": user.extra,
                "resourceAttributes": {
                    "group": "hyprstream.io",
                    "version": "v1alpha1",
                    "resource": "repositories",
                    "subresource": act.subresource,
                    "namespace": act.namespace,
                    "name": act.name,
                    "verb": act.verb,
                },
            },
        });
        let key = Sha256::digest(review.to_string()).into();
        let ask = async || {
            let answer: Review<AccessStatus> = self
                .create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
                .await?;
            let allowed = answer.status.allowed;
            Ok(self.answer(allowed, Duration::MAX, allowed))
        };
        self.rights.get(key, ask).await
    }

    fn answer<V>(&self, good: bool, at_most: Duration, value: V) -> Answer<V> {
        let (fresh, usable) = if good {
            (self.times.good, self.times.while_down)
        } else {
            (self.times.bad, Duration::ZERO)
        };
        Answer {
            value,
            fresh: fresh.min(at_most),
            usable: usable.min(at_most),
        }
    }

    async fn create<T: for<'de> Deserialize<'de> + Send + 'static>(
        &self,
        path: &'static str,
        object: Value,
    ) -> Result<T, Unavailable> {
        match self.call(move |api| api.create(path, &object)).await? {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// What `work` makes of the API server. Not too many do so at once, and none does just after a
    /// failure.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ApiServer) -> Result<T, CallError> + Send + 'static,
    ) -> Result<Result<T, CallError>, Unavailable> {
        let failed_just_now = |at: Instant| at.elapsed() < PAUSE_AFTER_A_FAILURE;
        if self.failed.lock().is_some_and(failed_just_now) {
            return Err(Unavailable);
        }
        let place = tokio::time::timeout(WAIT_FOR_A_CALL, self.calls.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(Unavailable);
        };
        let api = Arc::clone(&self.api);
        match tokio::task::spawn_blocking(move || work(&api)).await {
            Ok(done) => {
                if done.is_ok() {
                    *self.failed.lock() = None;
                }
                Ok(done)
            }
            Err(error) => {
                tracing::error!(%error, "a call of the API server ended early");
                Err(Unavailable)
            }
        }
    }

    fn failed(&self, error: &CallError) -> Unavailable {
        let error = chain(error);
        tracing::error!(error, "the API server cannot be asked");
        *self.failed.lock() = Some(Instant::now());
        Unavailable
    }
}

#[derive(Deserialize)]
struct Review<S> {
    status: S,
}

#[derive(Deserialize)]
struct TokenStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Vec<String>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct AccessStatus {
    #[serde(default)]
    allowed: bool,
}

/// What a token says of itself. Nothing of it is believed in its favour.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    exp: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Audiences {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

/// How long the token says that it is still valid; `None` if it is none for this audience.
fn time_left(token: &str, audience: &str) -> Option<Duration> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let for_us = match &claims.aud {
        Audiences::None => false,
        Audiences::One(one) => one == audience,
        Audiences::Many(many) => many.iter().any(|one| one == audience),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let left = claims.exp? - now.as_secs_f64();
    (for_us && left > 0.0).then(|| Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &Value) -> String {
        let part = |value: &str| URL_SAFE_NO_PAD.encode(value);
        format!("{}.{}.{}", part("{}"), part(&claims.to_string()), part("x"))
    }

    #[test]
    fn only_a_token_for_our_audience_is_shown_to_the_api_server() {
        let later = 4_000_000_000_u64;
        for good in [
            json!({"aud": "hyprstream", "exp": later}),
            json!({"aud": ["a", "hyprstream"], "exp": later}),
        ] {
            assert!(time_left(&token(&good), "hyprstream").is_some(), "{good}");
        }
        for bad in [
            json!({"aud": "https://kubernetes.default.svc", "exp": later}),
            json!({"aud": [], "exp": later}),
            json!({"exp": later}),
            json!({"aud": "hyprstream"}),
            json!({"aud": "hyprstream", "exp": 1000}),
        ] {
            assert_eq!(time_left(&token(&bad), "hyprstream"), None, "{bad}");
        }
        for no_token in ["", "a.b", "a.b.c", "a.b.c.d", "%.%.%"] {
            assert_eq!(time_left(no_token, "hyprstream"), None, "{no_token}");
        }
    }

    #[test]
    fn a_service_account_is_known_by_its_name() {
        let name = |username: &str| {
            let user = User {
                username: username.to_owned(),
                ..User::default()
            };
            user.service_account().map(str::to_owned)
        };
        let found = name("system:serviceaccount:team-a:job-1");
        assert_eq!(found.as_deref(), Some("job-1"));
        assert_eq!(name("alice"), None);
        assert_eq!(name("system:serviceaccount:job-1"), None);
    }
}
