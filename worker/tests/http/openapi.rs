use serde_json::{Value, json};

use crate::server::Server;

#[tokio::test]
async fn the_document_names_every_route_and_each_exists() {
    let server = Server::start().await;
    let document: Value = server.get("/openapi.json").await.json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path.replace("{id}", "fake");
        for method in item.as_object().unwrap().keys() {
            let status = match method.as_str() {
                "get" => server.get(&url).await.status(),
                _ => server.post(&url, &json!({})).await.status(),
            };
            let documented = item[method]["responses"].get(status.as_str()).is_some();
            assert!(documented, "{method} {path} answers {status}");
        }
    }
}

#[tokio::test]
async fn adapters_say_that_they_are_not_there() {
    let server = Server::start().await;
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        let error = server.refused(path, &json!({"lora_name": "a"}), 501).await;
        assert_eq!(error["code"], "adapters_unsupported");
    }
    let list: Value = server.get("/v1/lora_adapters").await.json().await.unwrap();
    assert_eq!(list["data"], json!([]));
    let ask = json!({"model": "fake+sql@0.5", "prompt": "a"});
    let error = server.refused("/v1/completions", &ask, 404).await;
    assert!(
        error["message"].as_str().unwrap().contains("sql"),
        "{error}"
    );
    let ask = json!({"model": "fake", "prompt": "a", "adapters": [{"name": "a"}]});
    assert_eq!(
        server.refused("/v1/completions", &ask, 400).await["param"],
        "adapters"
    );
}

#[tokio::test]
async fn load_counts_what_runs() {
    let server = Server::start().await;
    let load: Value = server.get("/load").await.json().await.unwrap();
    assert_eq!(
        (&load["server_load"], &load["total_blocks"]),
        (&json!(0), &json!(4096))
    );
    assert_eq!(server.get("/ping").await.status(), 200);
    assert_eq!(server.post("/ping", &json!({})).await.status(), 200);
}
