use std::time::{Duration, Instant};

use futures::future::join_all;
use hyprstream_engine::fake::FakeOptions;
use serde_json::json;

use crate::server::{Server, Setup};

/// Waits until nothing of abandoned requests is left.
async fn idle(server: &Server) {
    for name in ["vllm:num_requests_running", "vllm:kv_cache_usage_perc"] {
        server.metric_becomes(name, |value| value <= 0.0).await;
    }
}

#[tokio::test]
async fn two_hundred_abandoned_requests_do_not_delay_the_next() {
    let fake = FakeOptions {
        step_time: Duration::from_millis(5),
        ..Default::default()
    };
    let server = Server::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    for stream in [true, false] {
        let abandoned = (0..100).map(|i| {
            let body = json!({"model": "fake", "prompt": [i % 200], "max_tokens": 10_000,
                "stream": stream});
            let request = server
                .client
                .post(format!("{}/v1/completions", server.url))
                .json(&body);
            async move {
                let answer = async { request.send().await?.bytes().await };
                tokio::time::timeout(Duration::from_millis(500), answer).await
            }
        });
        assert!(
            join_all(abandoned).await.iter().all(Result::is_err),
            "none was finished"
        );
    }
    let started = Instant::now();
    let body = json!({"model": "fake", "prompt": "hello", "max_tokens": 5});
    server.ask("/v1/completions", &body).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    idle(&server).await;
    // On a busy machine some were given up before they had arrived.
    let aborted = server
        .metric("vllm:request_success_total{finished_reason=\"abort\"")
        .await;
    assert!((1.0..=200.0).contains(&aborted), "{aborted}");
}

#[tokio::test]
async fn a_slow_reader_gets_all_and_holds_nobody_up() {
    let server = Server::start().await;
    let body = json!({"model": "fake", "prompt": "a", "max_tokens": 8_000, "stream": true,
        "temperature": 0});
    let slow = server.post("/v1/completions", &body).await;
    for _ in 0..3 {
        server
            .ask("/v1/completions", &json!({"model": "fake", "prompt": "b"}))
            .await;
    }
    let text = slow.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
}
