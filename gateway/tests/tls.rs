//! Workers that speak TLS: known by name before they are told anything.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use common::*;
use futures::{FutureExt, future::BoxFuture, stream};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use hyprstream_contract::{WorkerKeys, worker_tls};
use hyprstream_gateway::{Config, endpoint::Endpoint};
use hyprstream_tls::{Authority, Issued, Names, Trust};
use parking_lot::Mutex;
use rustls::{
    HandshakeKind, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

const MASTER: &str = "0123456789abcdef0123456789abcdef";
const DAY: Duration = Duration::from_hours(24);

fn authority() -> Authority {
    Authority::generate("test", SystemTime::now(), 30 * DAY).unwrap()
}

fn trust(authorities: &[&Authority]) -> String {
    let all = authorities.iter().map(|a| a.issued().certificate.as_str());
    all.collect::<Vec<_>>().concat()
}

/// What the operator makes for a Model.
fn issue(authority: &Authority, namespace: &str, model: &str) -> Issued {
    let names = Names {
        hosts: worker_tls::names(namespace, model).into_iter().collect(),
        ..Names::default()
    };
    authority.issue(&names, SystemTime::now(), DAY).unwrap()
}

fn config(issued: &Issued) -> Arc<ServerConfig> {
    let chain = hyprstream_tls::certificates(issued.certificate.as_bytes(), "test").unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// A worker that speaks TLS alone.
struct Secure {
    address: SocketAddr,
    /// What it shows from the next connection on.
    shown: Arc<Mutex<Arc<ServerConfig>>>,
    /// How connections began, those aside that came to nothing.
    handshakes: Arc<Mutex<Vec<HandshakeKind>>>,
    /// What each request showed as its key.
    keys: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Secure {
    async fn start<F, Fut>(issued: &Issued, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| handler(request).boxed());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let worker = Self {
            address: listener.local_addr().unwrap(),
            shown: Arc::new(Mutex::new(config(issued))),
            handshakes: Arc::default(),
            keys: Arc::default(),
            connections: Arc::default(),
        };
        let keys = Arc::clone(&worker.keys);
        let app = Router::new().fallback(move |request: Request| {
            let key = request.headers().get("authorization");
            let key = key.map(|key| key.to_str().unwrap().to_owned());
            keys.lock().push(key.unwrap_or_default());
            handler(request)
        });
        let shown = Arc::clone(&worker.shown);
        let handshakes = Arc::clone(&worker.handshakes);
        let connections = Arc::clone(&worker.connections);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&shown.lock()));
                let (handshakes, app) = (Arc::clone(&handshakes), app.clone());
                connections.lock().spawn(async move {
                    let Ok(socket) = acceptor.accept(socket).await else {
                        return;
                    };
                    let kind = socket.get_ref().1.handshake_kind().unwrap();
                    handshakes.lock().push(kind);
                    let service = TowerToHyperService::new(app);
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        worker
    }

    async fn saying(issued: &Issued, text: &'static str) -> Self {
        Self::start(issued, move |_| async move { text.into_response() }).await
    }

    fn endpoint(&self, trust: &Trust) -> Arc<Endpoint> {
        let name = worker_tls::name("a", "m");
        Arc::new(Endpoint::secured(self.address, &name, trust))
    }

    fn seen(&self) -> usize {
        self.keys.lock().len()
    }

    /// As a kill does: nobody announces the end.
    async fn cut(&self) {
        let mut connections = std::mem::take(&mut *self.connections.lock());
        connections.shutdown().await;
    }
}

async fn gateway(workers: &[&Arc<Endpoint>]) -> Running {
    let config = Config {
        hold_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let gateway = Running::start(config, table(vec![(facts("a", "m"), workers.to_vec())])).await;
    let keys = WorkerKeys::new(MASTER).unwrap();
    gateway.gateway.set_worker_keys(keys);
    gateway
}

#[tokio::test]
async fn a_worker_that_is_somebody_else_gets_no_request_and_another_is_tried() {
    let authority = authority();
    let trust = Trust::fixed(trust(&[&authority]).as_bytes(), "test").unwrap();
    let stranger = self::authority();
    let wrong = [
        ("of another Model", issue(&authority, "a", "other")),
        ("of another namespace", issue(&authority, "b", "m")),
        ("of another authority", issue(&stranger, "a", "m")),
    ];
    let right = Secure::saying(&issue(&authority, "a", "m"), "right").await;
    let good = right.endpoint(&trust);
    for (what, issued) in wrong {
        let other = Secure::saying(&issued, "wrong").await;
        let bad = other.endpoint(&trust);
        let gateway = gateway(&[&bad, &good]).await;
        for _ in 0..20 {
            let answer = gateway.post(CHAT, BODY).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (200, "right"),
                "{what}"
            );
        }
        assert!(gateway.metric("retries_total") >= 1, "{what}: it was tried");
        assert_eq!(other.seen(), 0, "{what}");
        // Where it is the only one, nobody answers.
        gateway.set(table(vec![(facts("a", "m"), vec![&bad])]));
        assert_eq!(gateway.post(CHAT, BODY).await.status, 503, "{what}");
        assert_eq!(other.seen(), 0, "{what}");
    }
    let key = WorkerKeys::new(MASTER).unwrap().of("a", "m");
    assert!(
        right
            .keys
            .lock()
            .iter()
            .all(|k| *k == format!("Bearer {key}"))
    );
}

#[tokio::test]
async fn who_speaks_no_tls_is_not_shown_the_key() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = [0; 8192];
            let read = socket.read(&mut bytes).await.unwrap_or(0);
            hears.lock().extend_from_slice(&bytes[..read]);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = socket.write_all(answer).await;
        }
    });
    let authority = authority();
    let trust = Trust::fixed(trust(&[&authority]).as_bytes(), "test").unwrap();
    let name = worker_tls::name("a", "m");
    let endpoint = Arc::new(Endpoint::secured(address, &name, &trust));
    let gateway = gateway(&[&endpoint]).await;
    assert_eq!(gateway.post(CHAT, BODY).await.status, 503);
    let heard = heard.lock();
    assert!(!heard.is_empty());
    for secret in ["authorization", "Bearer", "messages", "HTTP/1.1"] {
        let told = heard
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert!(!told, "{secret}");
    }
}

#[tokio::test]
async fn connections_are_kept_and_new_ones_take_the_session_up_again() {
    let authority = authority();
    let trust = Trust::fixed(trust(&[&authority]).as_bytes(), "test").unwrap();
    let worker = Secure::saying(&issue(&authority, "a", "m"), "ok").await;
    let endpoint = worker.endpoint(&trust);
    let gateway = gateway(&[&endpoint]).await;
    for _ in 0..10 {
        assert_eq!(gateway.post(CHAT, BODY).await.body, "ok");
    }
    assert_eq!(
        *worker.handshakes.lock(),
        [HandshakeKind::Full],
        "one for all"
    );
    worker.cut().await;
    for _ in 0..10 {
        assert_eq!(
            gateway.post(CHAT, BODY).await.body,
            "ok",
            "no request is lost"
        );
    }
    let expected = [HandshakeKind::Full, HandshakeKind::Resumed];
    assert_eq!(*worker.handshakes.lock(), expected);
}

/// A leaf and then the authority are replaced, as the operator does it, while a stream is on its way
/// and others begin.
#[tokio::test]
async fn certificates_and_their_authority_change_under_streams() {
    let old = authority();
    let trusted = Trust::shared();
    trusted.set(&trust(&[&old])).unwrap();
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let worker = Secure::start(&issue(&old, "a", "m"), move |_| {
        let receiver = Arc::clone(&receiver);
        async move {
            let Some(receiver) = receiver.lock().await.take() else {
                return events(Body::from("data: short\n\n"));
            };
            let parts = stream::unfold(receiver, async |mut r| {
                r.recv()
                    .await
                    .map(|part| (Ok::<_, std::io::Error>(part), r))
            });
            events(Body::from_stream(parts))
        }
    })
    .await;
    let endpoint = worker.endpoint(&trusted);
    let gateway = Arc::new(gateway(&[&endpoint]).await);
    let long = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { gateway.post(CHAT, BODY).await }
    });
    eventually("the long stream has begun", || worker.seen() == 1).await;

    let new = authority();
    let steps: [(&str, &dyn Fn()); 5] = [
        ("another leaf", &|| {
            *worker.shown.lock() = config(&issue(&old, "a", "m"));
        }),
        ("both authorities", &|| {
            trusted.set(&trust(&[&new, &old])).unwrap();
        }),
        ("a leaf of the new", &|| {
            *worker.shown.lock() = config(&issue(&new, "a", "m"));
        }),
        ("the new alone", &|| trusted.set(&trust(&[&new])).unwrap()),
        ("a leaf of that", &|| {
            *worker.shown.lock() = config(&issue(&new, "a", "m"));
        }),
    ];
    let answered = Arc::new(AtomicUsize::new(0));
    for (what, step) in steps {
        sender
            .send(Bytes::from(format!("data: {what}\n\n")))
            .await
            .unwrap();
        step();
        // Some of these take a new connection: they are more than there were before.
        let mut asked = JoinSet::new();
        for _ in 0..10 {
            let (gateway, answered) = (Arc::clone(&gateway), Arc::clone(&answered));
            asked.spawn(async move {
                let answer = gateway.post(CHAT, BODY).await;
                assert!(
                    answer.complete && answer.body.contains("short"),
                    "{answer:?}"
                );
                answered.fetch_add(1, Ordering::SeqCst);
            });
        }
        while let Some(done) = asked.join_next().await {
            assert!(done.is_ok(), "{what}");
        }
        endpoint.prune(std::time::Instant::now() + Duration::from_mins(1));
    }
    drop(sender);
    let answer = long.await.unwrap();
    assert!(
        answer.complete && answer.body.contains("a leaf of that"),
        "{answer:?}"
    );
    assert_eq!(answered.load(Ordering::SeqCst), 50);
    assert_eq!(gateway.metric("retries_total"), 0);
    // What was taken from the bundle is believed no more.
    *worker.shown.lock() = config(&issue(&old, "a", "m"));
    let endpoint = worker.endpoint(&trusted);
    gateway.set(table(vec![(facts("a", "m"), vec![&endpoint])]));
    assert_eq!(gateway.post(CHAT, BODY).await.status, 503);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_connection_along() {
    let authority = authority();
    let trust = Trust::fixed(trust(&[&authority]).as_bytes(), "test").unwrap();
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    let worker = Secure::start(&issue(&authority, "a", "m"), move |_| {
        let guard = Guard::new(&count);
        async move {
            let endless = stream::unfold(guard, async |guard| {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from("data: x\n\n")), guard))
            });
            events(Body::from_stream(endless))
        }
    })
    .await;
    let endpoint = worker.endpoint(&trust);
    let gateway = gateway(&[&endpoint]).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut some = [0; 512];
    assert!(client.read(&mut some).await.unwrap() > 0);
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    drop(client);
    eventually("the worker has stopped", || {
        alive.load(Ordering::SeqCst) == 0
    })
    .await;
}

/// Counts the live ones.
struct Guard(Arc<AtomicUsize>);

impl Guard {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
