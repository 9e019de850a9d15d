use std::time::Duration;

use hyprstream_engine::fake::FakeOptions;
use serde_json::{Value, json};

use crate::server::{COMMIT, Server, Setup, parse};

const CHAT: &str = "/v1/chat/completions";

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 3, "temperature": 0});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_worker_answers_before_its_model_is_loaded() {
    let server = Server::with(Setup {
        loaded: false,
        ..Setup::default()
    })
    .await;
    assert_eq!(server.get("/health").await.status(), 200);
    assert_eq!(server.get("/ready").await.status(), 503);
    assert_eq!(server.get("/v1/models").await.status(), 200);
    let early = server.post(CHAT, &ask(&json!({}))).await;
    assert_eq!(early.status(), 503);
    assert!(early.headers().contains_key("retry-after"));
    assert!(!early.headers().contains_key("x-hyprstream-draining"));
    server.load(FakeOptions::default(), 10);
    assert_eq!(server.get("/ready").await.status(), 200);
    server.ask(CHAT, &ask(&json!({}))).await;
}

#[tokio::test]
async fn models_and_version_name_the_commit() {
    let server = Server::start().await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    let entry = &list["data"][0];
    assert_eq!(
        (&entry["id"], &entry["object"]),
        (&json!("fake"), &json!("model"))
    );
    assert_eq!(
        entry["hyprstream"],
        json!({"repository": "https://example.org/m.git", "ref": "main", "commit": COMMIT})
    );
    assert_eq!(entry["max_model_len"], 12_000);
    let one: Value = server
        .get("/v1/models/default/fake")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(&one, entry);
    let version: Value = server.get("/version").await.json().await.unwrap();
    assert_eq!(version["commit"], COMMIT);
}

#[tokio::test]
async fn without_a_manifest_there_is_no_commit() {
    let server = Server::with(Setup {
        manifest: false,
        ..Setup::default()
    })
    .await;
    let response = server.get("/v1/models").await;
    assert!(!response.headers().contains_key("x-hyprstream-commit"));
    let list: Value = response.json().await.unwrap();
    assert_eq!(list["data"][0]["hyprstream"], Value::Null);
}

#[tokio::test]
async fn every_answer_carries_the_commit_and_the_requests_id() {
    let server = Server::start().await;
    for path in [
        "/health",
        "/ready",
        "/metrics",
        "/version",
        "/v1/models",
        "/nothing",
    ] {
        let request = server.client.get(format!("{}{path}", server.url));
        let response = request.header("x-request-id", "abc").send().await.unwrap();
        assert_eq!(response.headers()["x-hyprstream-commit"], COMMIT, "{path}");
        assert_eq!(response.headers()["x-request-id"], "abc", "{path}");
    }
    assert!(
        server
            .get("/health")
            .await
            .headers()
            .contains_key("x-request-id")
    );
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = Server::start().await;
    server.ask(CHAT, &ask(&json!({}))).await;
    server.events(CHAT, &ask(&json!({"stream": true}))).await;
    for (name, value) in [
        ("vllm:generation_tokens_total", 6.0),
        ("vllm:request_success_total{finished_reason=\"length\"", 2.0),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vllm:inter_token_latency_seconds_count", 4.0),
        ("vllm:num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
        ("vllm:prefix_cache_queries_total", 38.0),
        ("vllm:num_gpu_loaded_lora_adapters", 0.0),
        ("vllm:cache_config_info{block_size=\"16\"", 1.0),
        ("hyprstream_model_info{", 1.0),
    ] {
        let exactly = |found: f64| (found - value).abs() < 1e-9;
        server.metric_becomes(name, exactly).await;
    }
}

#[tokio::test]
async fn draining_finishes_what_runs_and_sends_the_rest_elsewhere() {
    let fake = FakeOptions {
        step_time: Duration::from_millis(10),
        ..Default::default()
    };
    let mut server = Server::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let long = ask(&json!({"max_tokens": 100, "stream": true}));
    let running = server.post(CHAT, &long).await;
    server.begin_shutdown();
    while server.get("/ready").await.status() == 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/health").await.status(), 200);
    let refused = server.post(CHAT, &ask(&json!({}))).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("x-hyprstream-draining"));
    assert!(refused.headers().contains_key("retry-after"));
    let events = parse(&running.text().await.unwrap());
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    server.ended().await;
}

#[tokio::test]
async fn draining_ends_when_its_time_is_up() {
    let fake = FakeOptions {
        step_time: Duration::from_millis(10),
        ..Default::default()
    };
    let drain_timeout = Duration::from_millis(400);
    let mut server = Server::with(Setup {
        fake,
        drain_timeout,
        ..Setup::default()
    })
    .await;
    let long = ask(&json!({"max_tokens": 10_000, "stream": true}));
    let running = server.post(CHAT, &long).await;
    server.begin_shutdown();
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, server.ended())
        .await
        .expect("the server ended");
    drop(running);
}

#[tokio::test]
async fn a_request_that_breaks_the_model_fails_alone() {
    let fake = FakeOptions {
        failing_token: Some(5),
        ..Default::default()
    };
    let server = Server::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let bad = json!({"model": "fake", "prompt": [5], "max_tokens": 3});
    let error = server.refused("/v1/completions", &bad, 500).await;
    assert_eq!(error["code"], "generation_failed");
    assert!(!error["message"].as_str().unwrap().contains("out of memory"));
    let mut streamed = bad.clone();
    streamed["stream"] = true.into();
    let events = server.events("/v1/completions", &streamed).await;
    assert!(events.last().unwrap()["error"]["message"].is_string());
    server.ask(CHAT, &ask(&json!({}))).await;
    assert_eq!(server.get("/health").await.status(), 200);
}

#[tokio::test]
async fn a_dead_engine_is_unhealthy() {
    let fake = FakeOptions {
        fatal_token: Some(5),
        ..Default::default()
    };
    let server = Server::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let bad = json!({"model": "fake", "prompt": [5], "max_tokens": 3});
    server.refused("/v1/completions", &bad, 503).await;
    assert_eq!(server.get("/health").await.status(), 503);
    assert_eq!(server.get("/ready").await.status(), 503);
    server.refused(CHAT, &ask(&json!({})), 503).await;
}
