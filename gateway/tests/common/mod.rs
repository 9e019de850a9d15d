//! Real workers on loopback, made to fail on demand, and a gateway in front of them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::{
    collections::HashMap,
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use futures::{FutureExt, future::BoxFuture};
use http::StatusCode;
use hyprstream_gateway::{
    Config, Gateway, Metrics,
    endpoint::Endpoint,
    table::{AdapterFacts, Hope, ModelFacts, ModelKey, Reference, Table},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinHandle,
};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub fn facts(namespace: &str, name: &str) -> ModelFacts {
    ModelFacts {
        key: ModelKey::new(namespace, name),
        reference: Reference::Branch("main".to_owned()),
        commit: Some(COMMIT.parse().unwrap()),
        replicas: 1,
        suspended: false,
        hope: Hope::Good,
        reason: "Fetching".to_owned(),
        message: "3 of 10 bytes".to_owned(),
        created: 1,
    }
}

pub fn table(models: Vec<(ModelFacts, Vec<&Arc<Endpoint>>)>) -> Table {
    let endpoints: HashMap<_, _> = models
        .iter()
        .map(|(facts, endpoints)| {
            (
                facts.key.clone(),
                endpoints.iter().map(|e| Arc::clone(e)).collect(),
            )
        })
        .collect();
    Table::new(models.into_iter().map(|(facts, _)| facts), endpoints, true)
}

/// An Adapter of a Model, by its own name.
pub fn adapter(namespace: &str, model: &str, served: &str) -> AdapterFacts {
    AdapterFacts {
        model: ModelKey::new(namespace, model),
        name: served.into(),
        served: served.into(),
        commit: Some(COMMIT.parse().unwrap()),
        digest: None,
        loaded: 0,
        hope: Hope::Good,
        reason: "Fetching".to_owned(),
        message: "the registry fetches it".to_owned(),
        created: 1,
    }
}

/// A gateway on loopback.
pub struct Running {
    pub address: SocketAddr,
    pub tables: watch::Sender<Arc<Table>>,
    pub registry: prometheus::Registry,
    pub gateway: Gateway,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<std::io::Result<usize>>,
}

impl Running {
    pub async fn start(config: Config, first: Table) -> Self {
        Self::start_as(config, first, |gateway| gateway).await
    }

    /// The same with what `make` makes of the gateway.
    pub async fn start_as(
        config: Config,
        first: Table,
        make: impl FnOnce(Gateway) -> Gateway,
    ) -> Self {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let (tables, receiver) = watch::channel(Arc::new(first));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let gateway = make(Gateway::new(config, receiver, metrics));
        let task = tokio::spawn(gateway.clone().run(listener, stopped.map(drop)));
        Self {
            address,
            tables,
            registry,
            gateway,
            stop: Some(stop),
            task,
        }
    }

    pub fn set(&self, table: Table) {
        self.tables.send_replace(Arc::new(table));
    }

    /// Begins the shutdown.
    pub fn stop(&mut self) {
        self.stop.take();
    }

    /// Sum of the samples of a metric.
    pub fn metric(&self, name: &str) -> u64 {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|f| f.name() == format!("hyprstream_gateway_{name}"));
        family.map_or(0, |family| {
            family
                .get_metric()
                .iter()
                .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
                .sum::<f64>() as u64
        })
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body)
            .await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let body = body.into();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        write!(head, "content-length: {}\r\n\r\n", body.len()).unwrap();
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket
            .write_all(&[head.as_bytes(), &body].concat())
            .await
            .unwrap();
        Answer::read(socket).await
    }
}

/// A whole answer, read until the gateway closes.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// Without the chunked encoding.
    pub body: String,
    /// Whether the body ended as HTTP wants it.
    pub complete: bool,
}

impl Answer {
    pub async fn read(mut socket: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let limit = Duration::from_secs(20);
        let read = tokio::time::timeout(limit, socket.read_to_end(&mut bytes)).await;
        let closed = read.expect("the answer ends").is_ok();
        let text = String::from_utf8(bytes).unwrap();
        let (head, raw) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let head = head.to_ascii_lowercase();
        let (body, complete) = if head.contains("transfer-encoding: chunked") {
            dechunk(raw)
        } else {
            (raw.to_owned(), closed)
        };
        Self {
            status,
            head,
            body,
            complete,
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        for member in ["message", "type", "param", "code"] {
            assert!(error.get(member).is_some(), "{member}: {self:?}");
        }
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("code"), text("message"))
    }
}

fn dechunk(mut raw: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, rest)) = raw.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else {
            break;
        };
        if size == 0 {
            return (body, true);
        }
        let Some(data) = rest.get(..size) else { break };
        body += data;
        raw = rest.get(size + 2..).unwrap_or_default();
    }
    (body, false)
}

type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// A worker on loopback.
pub struct Worker {
    pub endpoint: Arc<Endpoint>,
    pub seen: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Worker {
    pub async fn start<F, Fut>(handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| handler(request).boxed());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Arc::new(Endpoint::new(listener.local_addr().unwrap()));
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let app = Router::new().fallback(move |request: Request| {
            count.fetch_add(1, Ordering::SeqCst);
            handler(request)
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            endpoint,
            seen,
            task,
        }
    }

    /// Answers every request with this text and the headers that workers set.
    pub async fn saying(text: &'static str) -> Self {
        Self::start(
            move |_| async move { ([("x-hyprstream-commit", COMMIT)], text).into_response() },
        )
        .await
    }

    /// Answers with its name and the body's `model` if it has the adapter, else as workers do that
    /// lack it.
    pub async fn with_adapter(
        name: &'static str,
        adapter: &'static str,
        has: watch::Receiver<bool>,
    ) -> Self {
        Self::start(move |request| {
            let has = *has.borrow();
            async move {
                let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
                let body: serde_json::Value = serde_json::from_slice(&body.unwrap()).unwrap();
                if has {
                    let text = format!("{name} {}", body["model"].as_str().unwrap());
                    return ([("x-hyprstream-commit", COMMIT)], text).into_response();
                }
                let headers = [
                    ("x-hyprstream-commit", COMMIT),
                    ("x-hyprstream-missing-adapters", adapter),
                ];
                let missing = format!("{name} lacks {adapter}");
                (StatusCode::NOT_FOUND, headers, missing).into_response()
            }
        })
        .await
    }

    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker that reads a request, sends these raw bytes, and closes; for each connection.
pub async fn raw_worker(answer: &'static str) -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buf = [0; 8192];
                let _ = socket.read(&mut buf).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    Arc::new(Endpoint::new(address))
}

/// An endpoint where nobody listens.
pub async fn dead_endpoint() -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Arc::new(Endpoint::new(listener.local_addr().unwrap()))
}

/// An answer of server-sent events.
pub fn events(body: Body) -> Response {
    (
        [
            ("content-type", "text/event-stream"),
            ("x-hyprstream-commit", COMMIT),
        ],
        body,
    )
        .into_response()
}

/// Waits until a condition holds; fails after ten seconds.
pub async fn eventually(what: &'static str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub const BODY: &str = r#"{"model":"m","messages":[]}"#;
pub const CHAT: &str = "/v1/chat/completions";
