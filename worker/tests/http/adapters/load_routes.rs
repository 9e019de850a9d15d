//! The routes that load adapters, as vLLM's and KubeAI's clients use them.

use std::fs;

use serde_json::{Value, json};

use super::{LOAD, UNLOAD, Worker};
use crate::server::{Server, Setup};

async fn empty() -> Worker {
    Worker::empty(Setup::default()).await
}

/// The error of an answer, which both forms tell alike.
async fn refused(server: &Server, path: &str, ask: &Value, status: u16) -> (String, String, Value) {
    let response = server.post(path, ask).await;
    assert_eq!(response.status(), status, "{ask}");
    let json: Value = response.json().await.unwrap();
    let error = &json["error"];
    for same in ["message", "type", "param"] {
        assert_eq!(json[same], error[same], "{json}");
    }
    assert_eq!(
        (&json["object"], &json["code"]),
        (&json!("error"), &json!(status))
    );
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    (text("type"), text("message"), error["code"].clone())
}

#[tokio::test]
async fn an_adapter_is_loaded_listed_replaced_and_unloaded() {
    let worker = empty().await;
    let server = &worker.server;
    let ask = |path: &str, more: Value| {
        let mut ask = json!({"lora_name": "sql", "lora_path": path});
        for (name, value) in more.as_object().unwrap() {
            ask[name] = value.clone();
        }
        ask
    };
    let text = async |path: &str, ask: Value| {
        let response = server.post(path, &ask).await;
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(kind.starts_with("text/plain"), "{kind}");
        response.text().await.unwrap()
    };
    let list = async || -> Value { server.get("/v1/lora_adapters").await.json().await.unwrap() };
    assert_eq!(list().await, json!({"object": "list", "data": []}));

    let first = worker.write("first", "first");
    let added = text(LOAD, ask(&first, json!({}))).await;
    assert_eq!(added, "Success: LoRA adapter 'sql' added successfully.");
    let listed = list().await["data"][0].take();
    assert_eq!(
        (&listed["name"], &listed["state"]),
        (&json!("sql"), &json!("loaded"))
    );
    assert_eq!(
        (&listed["origin"], &listed["serving"]["rank"]),
        (&json!("request"), &json!(8))
    );

    let second = worker.write("second", "second");
    let more = json!({"load_inplace": true, "is_3d_lora_weight": false, "base_model_name": "fake"});
    text(LOAD, ask(&second, more)).await;
    let digest = list().await["data"][0]["serving"]["digest"].take();
    assert_ne!(digest, listed["serving"]["digest"]);
    // A path below the root may be told without it.
    let more = json!({"load_inplace": true, "expected_digest": digest});
    text(LOAD, ask("second", more)).await;

    let removed = text(UNLOAD, json!({"lora_name": "sql", "lora_int_id": 1})).await;
    assert_eq!(removed, "Success: LoRA adapter 'sql' removed successfully.");
    assert_eq!(list().await["data"], json!([]));
}

#[tokio::test]
async fn refusals_have_vllms_classes_and_change_nothing() {
    let worker = empty().await;
    let path = worker.write("sql", "sql");
    let damaged = worker.write("damaged", "damaged file");
    let load = |name: &str, path: &str| json!({"lora_name": name, "lora_path": path});
    assert_eq!(
        worker.server.post(LOAD, &load("sql", &path)).await.status(),
        200
    );
    let other = worker.write("other", "other");
    let mut expecting = load("sql", &other);
    expecting["load_inplace"] = true.into();
    expecting["expected_digest"] = "0".repeat(64).into();
    let mut unknown = load("new", &path);
    unknown["pinned"] = true.into();
    let (bad, taken, absent) = ("BadRequestError", "InvalidUserInput", "NotFoundError");
    for (route, ask, status, kind, code) in [
        (
            LOAD,
            json!({"lora_path": path}),
            400,
            taken,
            json!("missing_field"),
        ),
        (
            LOAD,
            json!({"lora_name": "a", "lora_path": ""}),
            400,
            taken,
            json!("missing_field"),
        ),
        (LOAD, load("fake", &path), 400, taken, json!("InvalidName")),
        (LOAD, load("a b", &path), 400, taken, json!("InvalidName")),
        (LOAD, load("sql", &path), 400, taken, json!("AlreadyLoaded")),
        (LOAD, load("new", "nothing"), 404, absent, json!("NotFound")),
        (
            LOAD,
            load("new", "../../etc"),
            404,
            absent,
            json!("NotFound"),
        ),
        (LOAD, load("new", &damaged), 400, bad, json!("DamagedFile")),
        (LOAD, expecting, 409, "ConflictError", json!("OtherDigest")),
        (LOAD, unknown, 400, bad, json!("unknown_field")),
        (
            LOAD,
            json!({"lora_name": 1, "lora_path": path}),
            400,
            bad,
            Value::Null,
        ),
        (
            UNLOAD,
            json!({"lora_name": "new"}),
            404,
            absent,
            json!("NotLoaded"),
        ),
        (UNLOAD, json!({}), 400, taken, json!("missing_field")),
    ] {
        let (found, message, reason) = refused(&worker.server, route, &ask, status).await;
        assert_eq!((found.as_str(), &reason), (kind, &code), "{ask}: {message}");
    }
    let models: Value = worker.server.get("/v1/models").await.json().await.unwrap();
    let ids = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"]);
    assert_eq!(ids.collect::<Vec<_>>(), ["fake", "sql"]);
}

#[tokio::test]
async fn bodies_are_held_to_the_same_limits_and_refused_in_both_forms() {
    let worker = empty().await;
    let long = json!({"lora_name": "a", "lora_path": "x".repeat(2 << 20)});
    let (kind, _, code) = refused(&worker.server, LOAD, &long, 413).await;
    assert_eq!(
        (kind.as_str(), code),
        ("BadRequestError", json!("request_too_large"))
    );
    let url = format!("{}{LOAD}", worker.server.url);
    let text = worker
        .server
        .client
        .post(url)
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(text.status(), 415);
    assert_eq!(text.json::<Value>().await.unwrap()["object"], "error");
}

#[tokio::test]
async fn without_a_root_load_routes_say_what_is_lacking() {
    let server = Server::start().await;
    let load = json!({"lora_name": "a", "lora_path": "/a"});
    let (kind, message, code) = refused(&server, LOAD, &load, 501).await;
    assert_eq!(
        (kind.as_str(), code),
        ("NotImplementedError", json!("NoRoot"))
    );
    assert!(message.contains("--adapter-root"), "{message}");
    let list: Value = server.get("/v1/lora_adapters").await.json().await.unwrap();
    assert_eq!(list["data"], json!([]));
}

/// What KubeAI's client makes of an answer to `/v1/load_lora_adapter`, told to ignore what is
/// loaded already: it reads two members at the top level, and looks for words.
async fn kubeai_loads(worker: &Worker, name: &str, path: &str) -> Result<(), String> {
    let ask = json!({"lora_name": name, "lora_path": path});
    let response = worker.server.post(LOAD, &ask).await;
    let status = response.status().as_u16();
    if status <= 299 {
        return Ok(());
    }
    let json: Value = response.json().await.unwrap();
    let message = json["message"].as_str().unwrap().to_owned();
    let already = message.contains("already") && message.contains("loaded");
    if status == 400 && json["type"] == "InvalidUserInput" && already {
        return Ok(());
    }
    Err(format!("{status}: {message}"))
}

#[tokio::test]
async fn kubeai_takes_for_loaded_what_is_and_nothing_else() {
    let worker = empty().await;
    let path = worker.write("sql", "sql");
    kubeai_loads(&worker, "sql", &path).await.unwrap();
    kubeai_loads(&worker, "sql", &path).await.unwrap();
    let damaged = worker.write("damaged", "damaged file");
    for (name, path) in [("new", "/nothing"), ("new", &damaged), ("fake", &path)] {
        kubeai_loads(&worker, name, path).await.unwrap_err();
    }
    let ask = json!({"model": "sql", "prompt": "a", "max_tokens": 1});
    worker.server.ask("/v1/completions", &ask).await;
}

#[tokio::test]
async fn a_vllm_client_loads_finds_asks_and_unloads_by_name() {
    let worker = empty().await;
    let server = &worker.server;
    let models = async || -> Vec<(Value, Value, Value)> {
        let list: Value = server.get("/v1/models").await.json().await.unwrap();
        let cards = list["data"].as_array().unwrap().iter();
        cards
            .map(|c| (c["id"].clone(), c["root"].clone(), c["parent"].clone()))
            .collect()
    };
    let path = worker.write("adapters/my_LoRA-1.0", "any");
    let load = json!({"lora_name": "my_LoRA-1.0", "lora_path": path});
    assert_eq!(server.post(LOAD, &load).await.status(), 200);
    let found = models().await;
    assert_eq!(found[1].0, "my_LoRA-1.0");
    assert_eq!(found[1].2, found[0].0);
    assert!(found[1].1.is_string());
    let ask = json!({"model": "my_LoRA-1.0", "prompt": "a", "max_tokens": 3});
    assert_eq!(
        server.ask("/v1/completions", &ask).await["model"],
        "my_LoRA-1.0"
    );
    let again = refused(server, LOAD, &load, 400).await;
    assert_eq!(again.0, "InvalidUserInput");
    let unload = json!({"lora_name": "my_LoRA-1.0"});
    assert_eq!(server.post(UNLOAD, &unload).await.status(), 200);
    assert_eq!(
        refused(server, UNLOAD, &unload, 404).await.0,
        "NotFoundError"
    );
    assert_eq!(models().await.len(), 1);
    server.refused("/v1/completions", &ask, 404).await;
}

#[tokio::test]
async fn files_that_are_gone_are_not_found() {
    let worker = empty().await;
    let path = worker.write("sql", "sql");
    fs::remove_file(worker.root.path().join("sql/adapter_model.safetensors")).unwrap();
    let load = json!({"lora_name": "sql", "lora_path": path});
    let (kind, ..) = refused(&worker.server, LOAD, &load, 404).await;
    assert_eq!(kind, "NotFoundError");
}
