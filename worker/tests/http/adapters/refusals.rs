//! What is not answered.

use hyprstream_worker::server::{ApiKeys, ApiOptions};
use serde_json::{Value, json};

use super::{COMPLETIONS, EMBEDDINGS, LOAD, UNLOAD, Worker, ask, bodies};
use crate::server::Setup;

#[tokio::test]
async fn an_adapter_that_is_not_there_is_a_404_that_lists_those_that_are() {
    let worker = Worker::start().await;
    let check = async |path: &str, ask: &Value, param: &str, missing: &str| {
        let response = worker.server.post(path, ask).await;
        assert_eq!(response.status(), 404, "{path}: {ask}");
        assert_eq!(
            response.headers()["x-hyprstream-missing-adapters"],
            missing,
            "{path}"
        );
        let error = response.json::<Value>().await.unwrap()["error"].take();
        assert_eq!(error["code"], "model_not_found", "{error}");
        assert_eq!(error["param"], param, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("sql") && message.contains("Tone_1.b"),
            "{message}"
        );
    };
    for (path, mut ask) in bodies("fake+nope") {
        check(path, &ask, "model", "nope").await;
        ask["model"] = "fake+sql".into();
        ask["adapters"] = json!([{"name": "Nope_1"}, {"name": "tone"}, {"name": "other"}]);
        check(path, &ask, "adapters", "Nope_1,other").await;
        if path != EMBEDDINGS {
            ask["stream"] = true.into();
            check(path, &ask, "adapters", "Nope_1,other").await;
        }
    }
    for (path, ask) in [
        ("/tokenize", json!({"model": "fake+nope", "prompt": "a"})),
        ("/detokenize", json!({"model": "fake+nope", "tokens": [70]})),
    ] {
        check(path, &ask, "model", "nope").await;
    }
    // A bare name may be an adapter that another worker has, and another model's is nobody's.
    for (name, missing) in [
        ("nope", Some("nope")),
        ("ns/nope", None),
        ("other+nope", None),
    ] {
        let answer = worker
            .server
            .post(COMPLETIONS, &ask(name, &json!({})))
            .await;
        assert_eq!(answer.status(), 404, "{name}");
        let told = answer.headers().get("x-hyprstream-missing-adapters");
        assert_eq!(told.map(|told| told.to_str().unwrap()), missing, "{name}");
    }
}

#[tokio::test]
async fn what_is_no_stack_is_refused_before_anything_runs() {
    let worker = Worker::start().await;
    let named = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|at| json!({"name": format!("a{at}")}))
            .collect()
    };
    for (model, adapters, param, code) in [
        ("fake+sql+sql", json!([]), "model", Value::Null),
        (
            "fake+sql",
            json!([{"name": "sql"}]),
            "adapters",
            Value::Null,
        ),
        (
            "sql",
            json!([{"name": "sql", "scale": 0}]),
            "adapters",
            Value::Null,
        ),
        (
            "fake",
            json!([{"name": "sql"}, {"name": "sql"}]),
            "adapters",
            Value::Null,
        ),
        ("fake+sql@11", json!([]), "model", Value::Null),
        ("fake+sql@nan", json!([]), "model", Value::Null),
        (
            "fake",
            json!([{"name": "sql", "scale": -10.5}]),
            "adapters[0].scale",
            Value::Null,
        ),
        (
            "fake",
            json!([{"name": "a\nb"}]),
            "adapters[0].name",
            Value::Null,
        ),
        (
            "fake",
            json!(named(9)),
            "adapters",
            json!("too_many_adapters"),
        ),
        (
            "sql",
            json!(named(8)),
            "adapters",
            json!("too_many_adapters"),
        ),
        (
            "fake+1+2+3+4+5+6+7+8+9",
            json!([]),
            "model",
            json!("too_many_adapters"),
        ),
    ] {
        for (path, mut ask) in bodies(model) {
            ask["adapters"] = adapters.clone();
            let error = worker.server.refused(path, &ask, 400).await;
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!(param), &code),
                "{path}: {ask}"
            );
        }
    }
}

#[tokio::test]
async fn load_routes_need_the_workers_key() {
    let api = ApiOptions {
        keys: ApiKeys::new(["secret"]),
        ..ApiOptions::default()
    };
    let worker = Worker::empty(Setup {
        api,
        ..Setup::default()
    })
    .await;
    let load = json!({"lora_name": "sql", "lora_path": worker.write("sql", "sql")});
    for (path, ask) in [(LOAD, &load), (UNLOAD, &json!({"lora_name": "sql"}))] {
        worker.server.refused(path, ask, 401).await;
    }
    assert_eq!(
        worker
            .server
            .status_with_key("/v1/lora_adapters", None)
            .await,
        401
    );
    let url = format!("{}{LOAD}", worker.server.url);
    let request = worker
        .server
        .client
        .post(url)
        .json(&load)
        .bearer_auth("secret");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let key = Some("Bearer secret");
    assert_eq!(
        worker.server.status_with_key("/v1/models/sql", key).await,
        200
    );
}
