//! Client of the registry's API.

use std::{path::PathBuf, time::Duration};

use hyprstream_contract::{
    adapters::{ADAPTERS_PATH, AdapterList, ListedModels, ModelName, Stored},
    grants::{GRANTS_PATH, Grant, KeptGrants},
    registry::{
        ApiError, EVENTS_PATH, EventPage, MIRRORS_PATH, MirrorRequest, MirrorStatus, RESOLVE_PATH,
        ResolveRequest, ResolveResponse,
    },
    repositories::{FORKS_PATH, Fork, ForkRequest},
};
use hyprstream_tls::Trust;
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

/// Longest that resolving may take; an upstream is asked in the meantime.
const RESOLVE_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest that asking for a mirror may take; the registry never waits for the upstream here.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest that a list of adapters may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest that a grant may take.
const GRANT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that a repository may take to be made; nothing is copied.
const FORK_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest that waiting for events may take; the registry waits up to 30 s.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(45);
/// Longest that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The registry, as the operator sees it.
#[derive(Clone, Debug)]
pub struct Registry {
    http: reqwest::Client,
    url: Url,
    token_file: PathBuf,
}

/// A call to the registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client could not be made.
    #[error("make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// The token's file cannot be read.
    #[error("read the registry's token from {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No answer.
    #[error("call {url}")]
    Unreachable {
        /// What was called.
        url: Url,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that does not follow the contract, as of a proxy, or one that refuses our token.
    #[error("{url} answered with status {status}")]
    Unexpected {
        /// What was called.
        url: Url,
        /// Status of the answer.
        status: u16,
    },
    /// The registry said what was wrong.
    #[error("the registry refused")]
    Refused(#[source] ApiError),
}

impl Registry {
    /// A client of the registry at `url`, which is believed by `trust` where that is https. The
    /// token is read from its file for every call, so that it may change.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(url: Url, token_file: PathBuf, trust: &Trust) -> Result<Self, RegistryError> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .tls_backend_preconfigured(trust.client_config())
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(RegistryError::Client)?;
        Ok(Self {
            http,
            url,
            token_file,
        })
    }

    /// The commit that a reference names now.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn resolve(
        &self,
        request: &ResolveRequest,
    ) -> Result<ResolveResponse, RegistryError> {
        self.post(RESOLVE_PATH, request, RESOLVE_TIMEOUT).await
    }

    /// How far a commit is mirrored; asks for it if it is not.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn mirror(&self, request: &MirrorRequest) -> Result<MirrorStatus, RegistryError> {
        self.post(MIRRORS_PATH, request, MIRROR_TIMEOUT).await
    }

    /// Pushes after the event with number `after`; waits up to 30 s for one.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn events(&self, after: u64) -> Result<EventPage, RegistryError> {
        let mut url = self.endpoint(EVENTS_PATH);
        url.query_pairs_mut()
            .append_pair("after", &after.to_string());
        self.send(self.http.get(url.clone()), url, EVENTS_TIMEOUT)
            .await
    }

    /// All Models of which it keeps a list of adapters.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn listed_models(&self) -> Result<ListedModels, RegistryError> {
        let url = self.endpoint(ADAPTERS_PATH);
        self.send(self.http.get(url.clone()), url, LIST_TIMEOUT)
            .await
    }

    /// Has it make the repository of a job, or see that it has the commit: repeatable.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn fork(&self, request: &ForkRequest) -> Result<(), RegistryError> {
        let fork: Result<Fork, _> = self.post(FORKS_PATH, request, FORK_TIMEOUT).await;
        fork.map(drop)
    }

    /// The list of adapters of a Model; an empty one if there is none.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn adapters(&self, model: &ModelName) -> Result<AdapterList, RegistryError> {
        let url = self.list(model);
        self.send(self.http.get(url.clone()), url, LIST_TIMEOUT)
            .await
    }

    /// Has it keep a list of adapters in place of the one before.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn put_adapters(
        &self,
        model: &ModelName,
        list: &AdapterList,
    ) -> Result<Stored, RegistryError> {
        let url = self.list(model);
        self.send(self.http.put(url.clone()).json(list), url, LIST_TIMEOUT)
            .await
    }

    /// Has it keep no list of adapters of a Model.
    ///
    /// # Errors
    /// See [`RegistryError`]. That there is none is none.
    pub async fn delete_adapters(&self, model: &ModelName) -> Result<(), RegistryError> {
        let url = self.list(model);
        self.send(self.http.delete(url.clone()), url, LIST_TIMEOUT)
            .await
    }

    /// All grants that it keeps.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn grants(&self) -> Result<KeptGrants, RegistryError> {
        let url = self.endpoint(GRANTS_PATH);
        self.send(self.http.get(url.clone()), url, LIST_TIMEOUT)
            .await
    }

    /// Has it keep what a volume opens, in place of what it kept before.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn put_grant(&self, handle: &str, grant: &Grant) -> Result<(), RegistryError> {
        let url = self.endpoint(&format!("{GRANTS_PATH}/{handle}"));
        self.send(self.http.put(url.clone()).json(grant), url, GRANT_TIMEOUT)
            .await
    }

    /// Has it let a volume open nothing.
    ///
    /// # Errors
    /// See [`RegistryError`]. That it opened nothing is none.
    pub async fn delete_grant(&self, handle: &str) -> Result<(), RegistryError> {
        let url = self.endpoint(&format!("{GRANTS_PATH}/{handle}"));
        self.send(self.http.delete(url.clone()), url, GRANT_TIMEOUT)
            .await
    }

    fn list(&self, model: &ModelName) -> Url {
        self.endpoint(&format!("{ADAPTERS_PATH}/{model}"))
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, RegistryError> {
        let url = self.endpoint(path);
        self.send(self.http.post(url.clone()).json(body), url, timeout)
            .await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        url: Url,
        timeout: Duration,
    ) -> Result<T, RegistryError> {
        let token = tokio::fs::read_to_string(&self.token_file)
            .await
            .map_err(|source| RegistryError::Token {
                path: self.token_file.clone(),
                source,
            })?;
        let unreachable = |source| RegistryError::Unreachable {
            url: url.clone(),
            source,
        };
        let response = request
            .bearer_auth(token.trim())
            .timeout(timeout)
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        let unexpected = || RegistryError::Unexpected {
            url: url.clone(),
            status: status.as_u16(),
        };
        if status.is_success() {
            // Whoever has nothing to say is understood by who expects nothing.
            let body = if body.is_empty() { &b"null"[..] } else { &body };
            serde_json::from_slice(body).map_err(|_| unexpected())
        } else {
            match serde_json::from_slice(&body) {
                Ok(error) => Err(RegistryError::Refused(error)),
                Err(_) => Err(unexpected()),
            }
        }
    }

    fn endpoint(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{path}"));
        url
    }
}
