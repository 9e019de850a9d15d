//! What the gateway is shown in confidence, and what clients ask, stands neither in its log and
//! metrics, nor in answers, nor on a command line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/fakes.rs"]
mod fakes;
#[path = "../../crates/git2db/tests/support/secrets.rs"]
mod planted;

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, Request},
    response::IntoResponse,
    routing::get,
};
use common::{Answer, CHAT, COMMIT, Worker};
use fakes::{Fakes, TOKEN};
use hyprstream_contract::WorkerKeys;
use parking_lot::Mutex;
use planted::{Found, Watch, told};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const MASTER: &str = "planted-master-key-of-the-workers-of-all-models";
const CLIENT: &str = "planted-key-of-a-client-of-team-a-0123456789";
const WRONG: &str = "planted-key-of-a-client-that-is-wrong-012345";
const BEARER: &str = "planted-bearer-of-who-asks-a-model";
const PROMPT: &str = "planted-prompt-that-is-for-the-model-alone";
const FILE: &str = "planted-question-in-a-file-of-examples";

/// The program; it ends with the value.
struct Program {
    child: Child,
    address: SocketAddr,
    log: std::path::PathBuf,
}

impl Program {
    fn start(home: &Path, api: SocketAddr, registry: &str, admin: SocketAddr) -> Self {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        let file = |name: &str, text: &str| {
            fs::write(home.join(name), text).unwrap();
            home.join(name)
        };
        fs::create_dir(home.join("clients")).unwrap();
        file("clients/team-a", CLIENT);
        let log = home.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_hyprstream-gateway"))
            .env_clear()
            .env("KUBECONFIG", file("config", &config.to_string()))
            .env("HYPRSTREAM_LOG", "trace")
            .env("HYPRSTREAM_LOG_FORMAT", "json")
            .args(["--listen", "127.0.0.1:0", "--admin-listen"])
            .arg(admin.to_string())
            .args(["--hold-timeout", "1s", "--drain-timeout", "1s"])
            .arg("--worker-master-key-file")
            .arg(file("master", &format!("{MASTER}\n")))
            .arg("--fine-tuning-keys-dir")
            .arg(home.join("clients"))
            .args(["--registry-url", registry, "--registry-token-file"])
            .arg(file("token", &format!("{TOKEN}\n")))
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut program = Self {
            child,
            address: admin,
            log,
        };
        let begun = Instant::now();
        program.address = loop {
            let log = program.log();
            let serving = log.lines().find(|line| line.contains("\"serving\""));
            if let Some(line) = serving {
                let line: Value = serde_json::from_str(line).unwrap();
                break line["address"].as_str().unwrap().parse().unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        program
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lists that never change.
fn api_server(lists: Vec<(&'static str, Value)>) -> Router {
    let app = Router::new();
    lists.into_iter().fold(app, |app, (path, list)| {
        let answer = move |Query(asked): Query<Value>| async move {
            if asked["watch"] == "true" {
                return Body::from_stream(futures::stream::pending::<std::io::Result<String>>())
                    .into_response();
            }
            Json(list).into_response()
        };
        app.route(path, get(answer))
    })
}

fn list(kind: &str, items: &[Value]) -> Value {
    json!({
        "kind": format!("{kind}List"), "apiVersion": "v1",
        "metadata": {"resourceVersion": "1"}, "items": items,
    })
}

fn model(name: &str) -> Value {
    json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
        "metadata": {"name": name, "namespace": "team-a", "resourceVersion": "1"},
        "spec": {"source": {"url": "https://example.org/m"}},
        "status": {"commit": COMMIT},
    })
}

fn slice(name: &str, worker: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "team-a", "resourceVersion": "1",
                     "labels": {"hyprstream.io/model": name}},
        "endpoints": [{"addresses": [worker.ip()], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": worker.port()}],
    })
}

async fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let headers = headers
        .iter()
        .fold(String::new(), |mut text, (name, value)| {
            write!(text, "{name}: {value}\r\n").unwrap();
            text
        });
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    );
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    Answer::read(socket).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_and_no_prompt_is_logged_told_or_seen_on_a_command_line() {
    let watch = Watch::over(std::process::id());
    let shown: Arc<Mutex<Vec<String>>> = Arc::default();
    let keys = Arc::clone(&shown);
    let worker = Worker::start(move |request: Request| {
        let key = request.headers().get("authorization").cloned();
        keys.lock()
            .extend(key.map(|key| key.to_str().unwrap().to_owned()));
        async { ([("x-hyprstream-commit", COMMIT)], "answered").into_response() }
    })
    .await;
    let refusing = Worker::start(|_| async { refusal().into_response() }).await;
    let dead = common::dead_endpoint().await;
    let workers = [
        ("m", worker.endpoint.address()),
        ("refused", refusing.endpoint.address()),
        ("dead", dead.address()),
    ];
    let models: Vec<_> = workers.iter().map(|(name, _)| model(name)).collect();
    let slices: Vec<_> = workers
        .iter()
        .map(|(n, address)| slice(n, *address))
        .collect();
    let app = api_server(vec![
        (
            "/apis/hyprstream.io/v1alpha1/models",
            list("Model", &models),
        ),
        (
            "/apis/hyprstream.io/v1alpha1/adapters",
            list("Adapter", &[]),
        ),
        (
            "/apis/discovery.k8s.io/v1/endpointslices",
            list("EndpointSlice", &slices),
        ),
    ]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let fakes = Fakes::start().await;
    let home = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let program = Program::start(home.path(), api, &fakes.url(), admin);

    let mut found = Found::new();
    let mut note = |place: &str, answer: &Answer| {
        let text = format!("{}\n{}", answer.head, answer.body);
        found.push((place.to_owned(), text.into_bytes()));
    };
    let bearer = format!("Bearer {BEARER}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    for (name, status) in [("m", 200), ("refused", 502), ("dead", 503), ("nobody", 404)] {
        let message = json!([{"role": "user", "content": PROMPT}]);
        let body = json!({"model": name, "messages": message}).to_string();
        let answer = send(program.address, "POST", CHAT, &headers, &body).await;
        assert_eq!(answer.status / 100, status / 100, "{name}: {answer:?}");
        note(name, &answer);
    }
    // A body that is none.
    let broken = format!("{{\"model\": \"m\", \"messages\": [{{\"content\": \"{PROMPT}");
    let answer = send(program.address, "POST", CHAT, &headers, &broken).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    note("a broken body", &answer);

    let line = json!({"messages": [{"role": "user", "content": FILE},
                                   {"role": "assistant", "content": "b"}]});
    let form = format!(
        "--x\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--x\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"f.jsonl\"\r\n\
         content-type: application/octet-stream\r\n\r\n{line}\r\n--x--\r\n"
    );
    for (key, accepted) in [(CLIENT, true), (WRONG, false)] {
        let bearer = format!("Bearer {key}");
        let form_headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "multipart/form-data; boundary=x"),
        ];
        let made = send(program.address, "POST", "/v1/files", &form_headers, &form).await;
        assert_eq!(made.status, if accepted { 200 } else { 401 }, "{made:?}");
        note("a file", &made);
        let json_headers = [form_headers[0], ("content-type", "application/json")];
        let id = accepted.then(|| made.json()["id"].clone());
        let job = json!({"model": "m", "training_file": id}).to_string();
        for (method, path, body) in [
            ("GET", "/v1/files", ""),
            ("POST", "/v1/fine_tuning/jobs", job.as_str()),
            ("GET", "/v1/fine_tuning/jobs", ""),
        ] {
            let answer = send(program.address, method, path, &json_headers, body).await;
            assert_eq!(answer.status == 401, !accepted, "{path}: {answer:?}");
            note(path, &answer);
        }
    }
    let metrics = send(admin, "GET", "/metrics", &[], "").await;
    assert!(
        metrics.body.contains("hyprstream_gateway_requests_total"),
        "{metrics:?}"
    );
    note("metrics", &metrics);

    let lines: Vec<_> = watch.end().into_iter().collect();
    let is_there = |line: &String| line.contains("--worker-master-key-file");
    assert!(lines.iter().any(is_there), "{lines:?}");
    found.push(("command lines".to_owned(), lines.join("\n").into_bytes()));
    let log = program.log();
    found.push(("the log".to_owned(), log.clone().into_bytes()));

    // The key was shown to the worker, and the client's own was not.
    let key = WorkerKeys::new(MASTER).unwrap().of("team-a", "m");
    assert_eq!(*shown.lock(), [format!("Bearer {key}")]);
    let secrets = [MASTER, CLIENT, WRONG, BEARER, PROMPT, FILE, TOKEN, &key];
    assert_eq!(told(&secrets, &found), [""; 0]);
    // What is no secret is found in the same places.
    let stands = told(&["hyprstream_gateway"], &found);
    for place in ["the log", "metrics"] {
        let stands = stands.iter().any(|stands| stands.ends_with(place));
        assert!(stands, "{place}");
    }
    assert!(log.contains("TRACE"), "it says all that it can");
}

fn refusal() -> (http::StatusCode, Json<Value>) {
    let error = json!({"error": {"message": "wrong key", "code": "invalid_api_key"}});
    (http::StatusCode::UNAUTHORIZED, Json(error))
}
