//! A stand-in for the API server: tokens, and what whoever holds them may do.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyprstream_registry::{CacheTimes, KubernetesTokens};
use hyprstream_tls::{Accepted, Authority, Handshakes, Names, ServerIdentity};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::listen::{ANY, Listening};

/// The token by which the registry asks.
pub(crate) const OWN: &str = "token-of-the-registry";

#[derive(Default)]
struct Book {
    users: HashMap<String, String>,
    /// `USER VERB RESOURCE NAMESPACE NAME`.
    rights: HashSet<String>,
    down: bool,
    reviews: usize,
    /// Specs of PersistentVolumes, by name.
    volumes: HashMap<String, Value>,
    /// The status of any answer about volumes, in place of what is true.
    volumes_answer: Option<StatusCode>,
}

pub(crate) struct Cluster {
    book: Arc<Mutex<Book>>,
    listening: Listening,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let book: Arc<Mutex<Book>> = Arc::default();
        let app = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(token))
            .route(
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                post(access),
            )
            .route("/api/v1/persistentvolumes/{name}", get(volume))
            .with_state(Arc::clone(&book));
        let listening = Listening::app(app);
        Self { book, listening }
    }

    /// How a registry asks it.
    pub(crate) fn settings(&self, dir: &std::path::Path) -> KubernetesTokens {
        let token_file = dir.join("own-token");
        std::fs::write(&token_file, format!("{OWN}\n")).unwrap();
        KubernetesTokens {
            url: format!("http://{}", self.listening.address),
            token_file,
            ca_file: None,
            audience: "hyprstream".to_owned(),
            cache: CacheTimes {
                good: Duration::from_millis(200),
                bad: Duration::from_millis(50),
                while_down: Duration::from_secs(3),
            },
        }
    }

    /// The same over TLS, as the program itself asks it.
    pub(crate) fn over_tls(&self, dir: &FilePath) -> Secure {
        let life = Duration::from_hours(24);
        let authority = Authority::generate("test", SystemTime::now(), life).unwrap();
        let names = Names {
            hosts: BTreeSet::from(["localhost".to_owned()]),
            addresses: BTreeSet::new(),
        };
        let issued = authority
            .issue(&names, SystemTime::now(), life / 2)
            .unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name)
        };
        let certificate = file("cluster.crt", &issued.certificate);
        let key = file("cluster.key", &issued.key);
        let ca_file = file("cluster-ca.crt", &authority.issued().certificate);
        let token_file = file("own-token", OWN);
        let plain = self.listening.address;
        let listening = Listening::start(ANY, move |listener, stop| async move {
            let identity = ServerIdentity::open(certificate, key).unwrap();
            let shakes = Arc::new(Handshakes::new(&identity, 64, Duration::from_secs(10)));
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let (stream, shakes) = (accepted.unwrap().0, Arc::clone(&shakes));
                tokio::spawn(async move {
                    if let Ok(Accepted::Tls(mut stream)) = shakes.accept(stream).await {
                        let mut to = TcpStream::connect(plain).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
                    }
                });
            }
        });
        Secure {
            listening,
            token_file,
            ca_file,
        }
    }

    /// A token of the service account, in namespace `team-a`.
    pub(crate) fn account(&self, name: &str) -> Holder<'_> {
        self.user(&format!("system:serviceaccount:team-a:{name}"))
    }

    /// A token of the user.
    pub(crate) fn user(&self, user: &str) -> Holder<'_> {
        let token = jwt(user, "hyprstream");
        let (user, key) = (user.to_owned(), token.clone());
        self.book.lock().users.insert(key, user.clone());
        Holder {
            cluster: self,
            user,
            token,
        }
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.book.lock().down = down;
    }

    /// A PersistentVolume with this `spec.csi`, whose UID is `uid-NAME`.
    pub(crate) fn put_volume(&self, name: &str, csi: Value) {
        self.book.lock().volumes.insert(name.to_owned(), csi);
    }

    pub(crate) fn remove_volume(&self, name: &str) {
        assert!(self.book.lock().volumes.remove(name).is_some(), "{name}");
    }

    /// Answers whatever is asked about volumes with this, and an empty object.
    pub(crate) fn answer_volumes(&self, status: Option<StatusCode>) {
        self.book.lock().volumes_answer = status;
    }

    /// How many tokens it was asked about.
    pub(crate) fn token_reviews(&self) -> usize {
        self.book.lock().reviews
    }
}

/// A [`Cluster`] behind TLS, while this lasts.
pub(crate) struct Secure {
    listening: Listening,
    /// What the registry shows it.
    pub(crate) token_file: PathBuf,
    /// By whom the registry trusts it.
    pub(crate) ca_file: PathBuf,
}

impl Secure {
    pub(crate) fn port(&self) -> u16 {
        self.listening.address.port()
    }
}

/// Somebody with a token.
pub(crate) struct Holder<'a> {
    cluster: &'a Cluster,
    user: String,
    pub(crate) token: String,
}

impl Holder<'_> {
    /// Gives rights: `VERB RESOURCE NAMESPACE NAME`, with `*` for any name.
    pub(crate) fn may(self, rights: &[&str]) -> Self {
        for right in rights {
            let right = format!("{} {right}", self.user);
            self.cluster.book.lock().rights.insert(right);
        }
        self
    }

    pub(crate) fn may_no_longer(&self, right: &str) {
        let right = format!("{} {right}", self.user);
        assert!(self.cluster.book.lock().rights.remove(&right), "{right}");
    }

    /// Its pod is gone.
    pub(crate) fn ends(&self) {
        self.cluster.book.lock().users.remove(&self.token);
    }
}

/// What looks like a token of an API server.
pub(crate) fn jwt(subject: &str, audience: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"alg": "RS256", "kid": "k"});
    let claims = json!({"aud": [audience], "exp": 4_000_000_000_u64, "sub": subject});
    format!("{}.{}.c2lnbmF0dXJl", part(&header), part(&claims))
}

type Answer = Result<(StatusCode, Json<Value>), StatusCode>;

fn answer(book: &Book, headers: &HeaderMap, status: &Value) -> Answer {
    if book.down {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let authorization = headers.get("authorization").unwrap().to_str().unwrap();
    if authorization != format!("Bearer {OWN}") {
        return Err(StatusCode::FORBIDDEN);
    }
    Ok((StatusCode::CREATED, Json(json!({"status": status}))))
}

async fn token(
    State(book): State<Arc<Mutex<Book>>>,
    headers: HeaderMap,
    Json(review): Json<Value>,
) -> Answer {
    let mut book = book.lock();
    book.reviews += 1;
    let spec = &review["spec"];
    assert_eq!(spec["audiences"], json!(["hyprstream"]));
    let status = match book.users.get(spec["token"].as_str().unwrap()) {
        Some(user) => json!({
            "authenticated": true,
            "audiences": ["hyprstream"],
            "user": {"username": user, "groups": ["system:authenticated"],
                     "extra": {"authentication.kubernetes.io/pod-name": ["pod-of-the-tests"]}},
        }),
        None => json!({"error": "invalid bearer token"}),
    };
    answer(&book, &headers, &status)
}

async fn volume(
    State(book): State<Arc<Mutex<Book>>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let book = book.lock();
    let _ = answer(&book, &headers, &Value::Null)?;
    if let Some(status) = book.volumes_answer {
        return Ok((status, Json(json!({}))));
    }
    if let Some(csi) = book.volumes.get(&name) {
        let metadata = json!({"name": name, "uid": format!("uid-{name}")});
        let volume = json!({"metadata": metadata, "spec": {"csi": csi}});
        return Ok((StatusCode::OK, Json(volume)));
    }
    // As the API server writes it.
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
        "message": format!("persistentvolumes \"{name}\" not found"),
        "details": {"name": name, "kind": "persistentvolumes"}, "code": 404,
    });
    Ok((StatusCode::NOT_FOUND, Json(status)))
}

async fn access(
    State(book): State<Arc<Mutex<Book>>>,
    headers: HeaderMap,
    Json(review): Json<Value>,
) -> Answer {
    let book = book.lock();
    let (spec, what) = (&review["spec"], &review["spec"]["resourceAttributes"]);
    assert_eq!(what["group"], "hyprstream.io");
    assert_eq!(spec["groups"], json!(["system:authenticated"]));
    let text = |key: &str| what[key].as_str().unwrap();
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        sub => format!("{}/{sub}", text("resource")),
    };
    let right = |name: &str| {
        let user = spec["user"].as_str().unwrap();
        let (verb, namespace) = (text("verb"), text("namespace"));
        book.rights
            .contains(&format!("{user} {verb} {resource} {namespace} {name}"))
    };
    let allowed = right("*") || right(text("name"));
    answer(&book, &headers, &json!({"allowed": allowed}))
}
