use futures::StreamExt;
use hyprstream_worker::server::ApiOptions;
use serde_json::{Value, json};

use crate::server::{COMMIT, Server, Setup};

const CHAT: &str = "/v1/chat/completions";

fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}]});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn bad_fields_are_a_400_that_names_them() {
    let server = Server::start().await;
    for (extra, param) in [
        (json!({"unknown_thing": 1}), "unknown_thing"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"stop_token_ids": [99_999]}), "stop_token_ids"),
        (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens"),
        (json!({"max_tokens": 1_000_000}), "max_tokens"),
        (json!({"tools": [{}]}), "tools[0].type"),
    ] {
        let error = server.refused(CHAT, &chat(&extra), 400).await;
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let huge = json!({"model": "fake", "prompt": "x".repeat(100_000)});
    let error = server.refused("/v1/completions", &huge, 400).await;
    assert_eq!(error["code"], "context_length_exceeded");
    let long = chat(&json!({"messages": [{"role": "user", "content": "x ".repeat(12_000)}]}));
    let error = server.refused(CHAT, &long, 400).await;
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("messages"))
    );
}

#[tokio::test]
async fn other_models_are_a_404_that_says_what_is_served() {
    let server = Server::start().await;
    for model in ["gpt-4o", "fake:dev", "fake:main:ffffffff", "other/fake", ""] {
        let error = server
            .refused(CHAT, &chat(&json!({"model": model})), 404)
            .await;
        assert_eq!(error["code"], "model_not_found");
        assert!(
            error["message"].as_str().unwrap().contains("fake"),
            "{error}"
        );
    }
    let commit = &COMMIT[..9];
    for model in [
        "fake",
        "default/fake",
        "fake:main",
        &format!("fake:main:{commit}"),
    ] {
        let extra = json!({"model": model, "max_tokens": 1});
        assert_eq!(server.ask(CHAT, &chat(&extra)).await["model"], model);
    }
}

#[tokio::test]
async fn bodies_that_are_no_requests_get_their_own_status() {
    let api = ApiOptions {
        max_body_bytes: 10_000,
        ..ApiOptions::default()
    };
    let server = Server::with(Setup {
        api,
        ..Setup::default()
    })
    .await;
    let send = |kind: &'static str, body: Vec<u8>| {
        let request = server.client.post(format!("{}{CHAT}", server.url));
        async move {
            request
                .header("content-type", kind)
                .body(body)
                .send()
                .await
                .unwrap()
        }
    };
    for (kind, body, status) in [
        ("text/plain", b"{}".to_vec(), 415),
        ("application/json", b"".to_vec(), 400),
        ("application/json", b"[]".to_vec(), 400),
        ("application/json", b"{".to_vec(), 400),
        ("application/json", b"\xff\xfe".to_vec(), 400),
        ("application/json", br#"{"model": "\ud800"}"#.to_vec(), 400),
        ("application/json", vec![b'['; 9_000], 400),
        ("application/json", vec![b' '; 10_001], 413),
    ] {
        let response = send(kind, body).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["x-hyprstream-commit"], COMMIT);
        let error: Value = response.json().await.unwrap();
        assert!(error["error"]["message"].is_string());
    }
    let stranger = server
        .client
        .post(format!("{}{CHAT}", server.url))
        .send()
        .await
        .unwrap();
    assert_eq!(stranger.status(), 415);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_errors_of_the_api() {
    let server = Server::start().await;
    let missing = server.get("/v1/nothing").await;
    assert_eq!(
        (
            missing.status().as_u16(),
            &missing.headers()["x-hyprstream-commit"]
        ),
        (404, &COMMIT.parse().unwrap())
    );
    assert!(missing.json::<Value>().await.unwrap()["error"]["message"].is_string());
    let wrong = server.get(CHAT).await;
    assert_eq!(wrong.status(), 405);
    assert!(wrong.json::<Value>().await.unwrap()["error"]["message"].is_string());
    assert_eq!(server.get("/v1/models/nope").await.status(), 404);
}

#[tokio::test]
async fn a_full_queue_is_a_429_with_a_time_to_retry() {
    let fake = hyprstream_engine::fake::FakeOptions {
        step_time: std::time::Duration::from_millis(20),
        ..Default::default()
    };
    let server = Server::with(Setup {
        fake,
        max_queue: 4,
        ..Setup::default()
    })
    .await;
    // More at once than can ever wait.
    let error = server
        .refused(CHAT, &chat(&json!({"max_tokens": 2000, "n": 8})), 400)
        .await;
    assert_eq!(error["param"], "n");
    let ask = chat(&json!({"max_tokens": 200, "n": 4}));
    let answers = (0..24).map(|_| server.post(CHAT, &ask));
    let full = futures::stream::iter(answers)
        .buffer_unordered(24)
        .filter(|answer| std::future::ready(answer.status() == 429));
    let full = Box::pin(full).next().await.expect("one is turned away");
    assert!(full.headers().contains_key("retry-after"));
    let one = chat(&json!({"max_tokens": 2}));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while server.post(CHAT, &one).await.status() != 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "what was not answered was not given up"
        );
    }
}

#[tokio::test]
async fn a_connection_that_ends_because_a_body_was_not_read_says_so() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let server = Server::start().await;
    let address = server.url.strip_prefix("http://").unwrap();
    for (path, kind, closes) in [
        ("/v1/nothing", "application/json", true),
        (CHAT, "text/plain", true),
        (CHAT, "application/json", false),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // The body comes after the refusal.
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\ncontent-length: 2\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        if !closes {
            stream.write_all(b"{}").await.unwrap();
        }
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
        assert!(answer.starts_with("http/1.1 4"), "{answer}");
        assert_eq!(
            answer.contains("connection: close"),
            closes,
            "{path} {kind}: {answer}"
        );
    }
}
