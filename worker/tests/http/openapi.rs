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
async fn the_document_has_the_field_of_adapters_wherever_it_is_read() {
    let server = Server::start().await;
    let document: Value = server.get("/openapi.json").await.json().await.unwrap();
    for path in ["chat/completions", "completions", "responses", "embeddings"] {
        let body = &document["paths"][format!("/v1/{path}")]["post"]["requestBody"];
        let field = &body["content"]["application/json"]["schema"]["properties"]["adapters"];
        assert_eq!(field["maxItems"], 8, "{path}");
        assert_eq!(field["items"]["required"], json!(["name"]), "{path}");
    }
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
