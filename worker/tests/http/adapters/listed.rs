//! What is told of adapters.

use std::time::Duration;

use serde_json::{Value, json};

use super::{COMPLETIONS, UNLOAD, Worker, ask, digest, slow};
use crate::server::COMMIT;

#[tokio::test]
async fn adapters_are_listed_as_children_of_their_model() {
    let worker = Worker::start().await;
    let list: Value = worker.server.get("/v1/models").await.json().await.unwrap();
    let ids = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), ["fake", "Tone_1.b", "sql", "tone"]);
    let (model, sql) = (&list["data"][0], &list["data"][2]);
    assert_eq!(model["parent"], Value::Null);
    assert_eq!(sql["parent"], "fake");
    assert!(sql["root"].as_str().unwrap().contains("sql"), "{sql}");
    for same in ["object", "owned_by", "max_model_len"] {
        assert_eq!(sql[same], model[same]);
    }
    // When it was loaded, not when its worker began.
    let all = worker.server.get("/v1/lora_adapters").await;
    let all: Value = all.json().await.unwrap();
    let loaded_at = &all["data"][1]["serving"]["loadedAt"];
    assert!(loaded_at.as_u64() >= model["created"].as_u64(), "{all}");
    assert_eq!(sql["created"], *loaded_at);
    assert_eq!(sql["hyprstream"]["digest"], digest("sql"));
    assert_eq!(sql["hyprstream"]["rank"], 8);
    assert_eq!(sql["hyprstream"].get("commit"), None, "{sql}");
    assert_eq!(model["hyprstream"]["commit"], COMMIT);
    for entry in [sql, model] {
        let path = format!("/v1/models/{}", entry["id"].as_str().unwrap());
        let one: Value = worker.server.get(&path).await.json().await.unwrap();
        assert_eq!(one, *entry);
    }
    let path = "/v1/models/default/fake+sql";
    let one: Value = worker.server.get(path).await.json().await.unwrap();
    assert_eq!(one, *sql);
    for unknown in [
        "nope",
        "fake+nope",
        "fake+sql@1",
        "fake+sql+tone",
        "default/sql",
    ] {
        let status = worker
            .server
            .get(&format!("/v1/models/{unknown}"))
            .await
            .status();
        assert_eq!(status, 404, "{unknown}");
    }
    for model in ["sql", "fake+Tone_1.b@0.5", "fake"] {
        let tokens = json!({"model": model, "prompt": "hi"});
        let tokens = worker.server.ask("/tokenize", &tokens).await["tokens"].take();
        worker
            .server
            .ask("/detokenize", &json!({"model": model, "tokens": tokens}))
            .await;
        let chat = json!({"model": model, "messages": [{"role": "user", "content": "a"}]});
        worker.server.ask("/tokenize", &chat).await;
    }
}

#[tokio::test]
async fn metrics_tell_of_adapters_that_are_idle_and_of_those_in_use() {
    let worker = Worker::with(slow(Duration::from_millis(5))).await;
    let lines = async || {
        let text = worker.server.get("/metrics").await.text().await.unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let find = |lines: &[String], parts: &[&str]| {
        lines
            .iter()
            .any(|line| parts.iter().all(|part| line.contains(part)))
    };
    let idle = lines().await;
    let running = "running_lora_adapters=\"Tone_1.b,sql,tone\"";
    assert!(
        find(
            &idle,
            &["vllm:lora_requests_info{", "max_lora=\"2048\"", running]
        ),
        "{idle:#?}"
    );
    let loaded = [
        "vllm:lora_adapter_loaded{",
        "adapter_name=\"sql\"",
        "rank=\"8\"",
    ];
    assert!(find(&idle, &loaded), "{idle:#?}");
    let server = &worker.server;
    for (name, expected) in [
        ("vllm:num_gpu_loaded_lora_adapters", 3.0),
        ("vllm:max_gpu_lora_adapters", 2048.0),
        (
            "vllm:lora_adapter_load_seconds_count{model_name=\"fake\"}",
            3.0,
        ),
        ("hyprstream_adapter_memory_bytes", 15.0),
        (
            "hyprstream_adapters{model_name=\"fake\",origin=\"request\",state=\"loaded\"}",
            3.0,
        ),
    ] {
        let found = server.metric(name).await;
        assert!((found - expected).abs() < 1e-9, "{name} {found}");
    }
    let seconds = server.metric("vllm:lora_requests_info").await;
    assert!(seconds > 1.7e9, "{seconds}");
    let long = ask("tone", &json!({"max_tokens": 200, "stream": true}));
    let response = server.post(COMPLETIONS, &long).await;
    let busy = lines().await;
    assert!(
        find(&busy, &["running_lora_adapters=\"tone,Tone_1.b,sql\""]),
        "{busy:#?}"
    );
    drop(response);
    server.post(UNLOAD, &json!({"lora_name": "sql"})).await;
    assert!(!find(&lines().await, &["adapter_name=\"sql\""]));
}
