//! Over TLS everything is as without.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use hyprstream_contract::worker_tls;
use hyprstream_engine::fake::FakeOptions;
use hyprstream_tls::{Authority, Facts, Names, ServerIdentity, Trust};
use hyprstream_worker::server::{ApiKeys, ApiOptions, Listeners, Tls};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::server::{Server, Setup, parse, plain_client};

const DAY: Duration = Duration::from_hours(24);

/// A model whose steps take so many milliseconds.
fn slow(millis: u64) -> Setup {
    let fake = FakeOptions {
        step_time: Duration::from_millis(millis),
        ..FakeOptions::default()
    };
    Setup {
        fake,
        ..Setup::default()
    }
}

/// Certificates as the operator makes them, in a folder as the kubelet does.
struct Made {
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let made = Self {
            authority: Authority::generate("test", SystemTime::now(), 30 * DAY).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        made.renew();
        made
    }

    /// Puts another certificate into the folder.
    fn renew(&self) {
        let names = Names {
            hosts: worker_tls::names("default", "fake").into_iter().collect(),
            ..Names::default()
        };
        let issued = self
            .authority
            .issue(&names, SystemTime::now(), DAY)
            .unwrap();
        std::fs::write(self.file("tls.crt"), issued.certificate).unwrap();
        std::fs::write(self.file("tls.key"), issued.key).unwrap();
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        Path::join(self.folder.path(), name)
    }

    async fn listen(&self) -> Listeners {
        let identity = ServerIdentity::open(self.file("tls.crt"), self.file("tls.key")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Listeners {
            plain: None,
            tls: Some((listener, Tls::new(&identity))),
        }
    }

    fn trust(&self) -> Trust {
        Trust::fixed(self.authority.issued().certificate.as_bytes(), "test").unwrap()
    }

    /// A client that finds the worker by the name of the Model.
    fn client(&self, server: &Server) -> reqwest::Client {
        reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(self.trust().client_config())
            .resolve(&worker_tls::name("default", "fake"), server.address())
            .build()
            .unwrap()
    }

    async fn serve(&self, setup: Setup) -> Server {
        let mut server = Server::on(self.listen().await, setup);
        server.client = self.client(&server);
        let name = worker_tls::name("default", "fake");
        server.url = format!("https://{name}:{}", server.address().port());
        server
    }
}

fn body(tokens: usize) -> serde_json::Value {
    json!({"model": "fake", "prompt": "a", "max_tokens": tokens, "stream": true})
}

#[tokio::test]
async fn answers_streams_and_keys_are_those_of_plain_http() {
    let made = Made::new();
    let api = ApiOptions {
        keys: ApiKeys::new(["secret"]),
        ..ApiOptions::default()
    };
    let server = made
        .serve(Setup {
            api,
            ..Setup::default()
        })
        .await;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(server.status_with_key(path, None).await, 200, "{path}");
    }
    let key = |key| server.status_with_key("/v1/models", key);
    assert_eq!(key(None).await, 401);
    assert_eq!(key(Some("Bearer secre")).await, 401);
    assert_eq!(key(Some("Bearer secret")).await, 200);
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let answer = request.bearer_auth("secret").json(&body(50)).send().await;
    let text = answer.unwrap().text().await.unwrap();
    assert!(parse(&text).len() >= 50, "{text}");
}

#[tokio::test]
async fn an_abandoned_stream_ends_at_the_worker() {
    let made = Made::new();
    let server = made.serve(slow(5)).await;
    let mut answer = server.post("/v1/completions", &body(10_000)).await;
    assert!(answer.chunk().await.unwrap().is_some());
    let running = "vllm:num_requests_running";
    server.metric_becomes(running, |value| value > 0.0).await;
    drop(answer);
    server.metric_becomes(running, |value| value <= 0.0).await;
}

#[tokio::test]
async fn who_speaks_plain_http_is_told_so() {
    let made = Made::new();
    let server = Server::on(made.listen().await, Setup::default());
    let url = format!("http://{}/v1/completions", server.address());
    let plain = plain_client();
    let answer = plain.post(&url).json(&body(1)).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let json: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(json["error"]["code"], "tls_required");
    let message = json["error"]["message"].as_str().unwrap();
    assert!(message.contains("https://"), "{message}");
    // A body that nobody reads does not hide the answer.
    let long = plain.post(&url).body(vec![b'x'; 200_000]).send().await;
    assert_eq!(long.unwrap().status(), 400);
}

#[tokio::test]
async fn a_silent_client_keeps_nobody_waiting_and_the_end_of_the_server_neither() {
    let made = Made::new();
    let mut server = made.serve(Setup::default()).await;
    let mut silent = TcpStream::connect(server.address()).await.unwrap();
    silent.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(server.get("/health").await.status(), 200);
    server.begin_shutdown();
    let began = Instant::now();
    server.ended().await;
    assert!(began.elapsed() < Duration::from_secs(8));
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest).await;
}

/// What the wire shows, and until when it counts.
async fn shown(made: &Made, server: &Server) -> SystemTime {
    let connector =
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(made.trust().client_config()));
    let name = worker_tls::name("default", "fake").try_into().unwrap();
    let socket = TcpStream::connect(server.address()).await.unwrap();
    let socket = connector.connect(name, socket).await.unwrap();
    let chain = socket.get_ref().1.peer_certificates().unwrap();
    Facts::of(&chain[0], "the worker's").unwrap().not_after
}

#[tokio::test]
async fn another_certificate_is_shown_without_an_end_of_streams() {
    let made = Made::new();
    let server = made.serve(slow(20)).await;
    let before = shown(&made, &server).await;
    let mut answer = server.post("/v1/completions", &body(400)).await;
    // Certificates count by the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    made.renew();
    let begun = Instant::now();
    while shown(&made, &server).await == before {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the old one stays"
        );
        answer.chunk().await.unwrap();
    }
    let mut text = String::new();
    while let Some(part) = answer.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&part).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}
