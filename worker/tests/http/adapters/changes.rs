//! Adapters that come and go under requests.

use std::{fs, sync::Arc, time::Duration};

use hyprstream_worker::adapters::Limits;
use serde_json::{Value, json};

use super::{
    COMPLETIONS, UNLOAD, Worker, ask, digest, expected, header, slow, streamed_words, told, words,
};
use crate::server::Setup;

#[tokio::test]
async fn what_is_replaced_under_load_fails_no_request_and_mixes_no_answer() {
    let setup = slow(Duration::from_millis(1));
    let attached = Arc::clone(&setup.fake.attached);
    let worker = Worker::empty(setup).await;
    let contents = ["first", "second", "third"];
    worker.load("sql", "first").await;
    let answers: Vec<String> = contents
        .map(|content| expected(&[(content, 1.0)], 24))
        .into();
    let heads: Vec<String> = contents
        .map(|content| format!("sql={}@1", digest(content)))
        .into();
    let replacing = async {
        for round in 0..30 {
            worker.load("sql", contents[(round + 1) % 3]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let asking = async |streams: bool| {
        let mut seen = [0; 3];
        for round in 0..12 {
            let mut ask = ask(["sql", "fake+sql"][round % 2], &json!({"max_tokens": 24}));
            ask["stream"] = streams.into();
            let response = worker.server.post(COMPLETIONS, &ask).await;
            assert_eq!(response.status(), 200);
            let told = told(&response).unwrap();
            let at = heads.iter().position(|head| *head == told).unwrap();
            let text = response.text().await.unwrap();
            let words = if streams {
                streamed_words(COMPLETIONS, &text)
            } else {
                words(COMPLETIONS, &serde_json::from_str(&text).unwrap())
            };
            assert_eq!(
                words,
                Value::from(answers[at].as_str()).to_string(),
                "{told}"
            );
            seen[at] += 1;
        }
        seen
    };
    let askers = (0..6).map(|at| asking(at % 2 == 0));
    let (seen, ()) = tokio::join!(futures::future::join_all(askers), replacing);
    let several = (0..3)
        .filter(|at| seen.iter().any(|seen| seen[*at] > 0))
        .count();
    assert!(several > 1, "{seen:?}");
    worker
        .server
        .metric_becomes("vllm:num_requests_running", |n| n < 1.0)
        .await;
    // What was replaced is freed with the last request that had it.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while attached.load(std::sync::atomic::Ordering::Acquire) > 1 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_unloaded_answers_those_that_run_to_their_end() {
    let worker = Worker::with(slow(Duration::from_millis(5))).await;
    let long = ask("sql", &json!({"max_tokens": 60, "stream": true}));
    let running = worker.server.post(COMPLETIONS, &long).await;
    let response = worker
        .server
        .post(UNLOAD, &json!({"lora_name": "sql"}))
        .await;
    assert_eq!(response.status(), 200);
    worker
        .server
        .refused(COMPLETIONS, &ask("fake+sql", &json!({})), 404)
        .await;
    worker
        .server
        .refused(COMPLETIONS, &ask("sql", &json!({})), 404)
        .await;
    assert_eq!(told(&running), header(&[("sql", 1.0)]));
    let text = streamed_words(COMPLETIONS, &running.text().await.unwrap());
    assert_eq!(text, Value::from(expected(&[("sql", 1.0)], 60)).to_string());
}

#[tokio::test]
async fn a_stack_for_which_there_is_never_room_is_a_400_that_says_what_to_do() {
    let limits = Limits {
        resident: 1,
        ..Limits::default()
    };
    let worker = Worker::limited(Setup::default(), limits).await;
    for name in ["sql", "tone"] {
        worker.load(name, name).await;
    }
    let field = json!({"adapters": [{"name": "sql"}, {"name": "tone"}]});
    for (body, param) in [
        (ask("fake+sql+tone", &json!({})), "model"),
        (ask("fake", &field), "adapters"),
    ] {
        let response = worker.server.post(COMPLETIONS, &body).await;
        assert_eq!(response.status(), 400);
        assert!(!response.headers().contains_key("retry-after"));
        let error = response.json::<Value>().await.unwrap()["error"].take();
        assert_eq!(error["code"], "adapters_too_large");
        assert_eq!(error["param"], param);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("name fewer"), "{message}");
    }
    worker.completion(&ask("tone", &json!({}))).await;
}

#[tokio::test]
async fn what_has_no_room_comes_back_from_its_files_and_is_a_503_without_them() {
    let limits = Limits {
        resident: 1,
        ..Limits::default()
    };
    let worker = Worker::limited(Setup::default(), limits).await;
    for name in ["sql", "tone"] {
        worker.load(name, name).await;
    }
    for name in ["sql", "tone", "sql", "tone"] {
        let (text, _) = worker.completion(&ask(name, &json!({}))).await;
        assert_eq!(text, expected(&[(name, 1.0)], 12));
    }
    let metric = "vllm:num_gpu_loaded_lora_adapters";
    worker.server.metric_becomes(metric, |n| n < 2.0).await;
    fs::remove_dir_all(worker.root.path().join("sql")).unwrap();
    let lost = ask("fake+sql", &json!({"stream": true}));
    let response = worker.server.post(COMPLETIONS, &lost).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let error = response.json::<Value>().await.unwrap()["error"].take();
    assert_eq!(error["code"], "adapter_unavailable");
    let root = worker.root.path().to_str().unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(!message.contains(root), "{message}");
    // What is known to be lost is served no more, which sends requests to another worker.
    let response = worker.server.post(COMPLETIONS, &lost).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers()["x-hyprstream-missing-adapters"], "sql");
    assert_eq!(worker.server.get("/v1/models/sql").await.status(), 404);
    worker.completion(&ask("tone", &json!({}))).await;
}
