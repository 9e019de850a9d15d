use hyprstream_worker::server::{ApiKeys, ApiOptions};
use serde_json::json;

use crate::server::{Server, Setup};

#[tokio::test]
async fn cve_2025_59425_with_a_key_every_route_but_the_probes_needs_it() {
    let api = ApiOptions {
        keys: ApiKeys::new(["secret"]),
        ..ApiOptions::default()
    };
    let server = Server::with(Setup {
        api,
        ..Setup::default()
    })
    .await;
    for path in ["/health", "/ready", "/ping", "/metrics"] {
        assert_eq!(server.status_with_key(path, None).await, 200, "{path}");
    }
    for path in [
        "/v1/models",
        "/version",
        "/load",
        "/openapi.json",
        "/v1/lora_adapters",
        "/nothing",
        "/health/",
        "//health",
    ] {
        for key in [
            None,
            Some("secret"),
            Some("Bearer secre"),
            Some("Bearer "),
            Some("Basic secret"),
        ] {
            let status = server.status_with_key(path, key).await;
            assert_eq!(status, 401, "{path} with {key:?}");
        }
    }
    assert_eq!(
        server
            .status_with_key("/v1/models", Some("Bearer secret"))
            .await,
        200
    );
    assert_eq!(
        server
            .status_with_key("/v1/models", Some("bearer secret"))
            .await,
        200
    );
    assert_eq!(
        server
            .status_with_key("/nothing", Some("Bearer secret"))
            .await,
        404
    );
    let ask = json!({"model": "fake", "prompt": "a"});
    for path in [
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/v1/embeddings",
        "/v1/responses",
        "/detokenize",
        "/v1/load_lora_adapter",
    ] {
        let error = server.refused(path, &ask, 401).await;
        assert_eq!(error["code"], "invalid_api_key", "{path}");
    }
}

#[tokio::test]
async fn with_a_key_nothing_that_the_document_tells_of_is_open_but_the_probes() {
    let api = ApiOptions {
        keys: ApiKeys::new(["secret"]),
        ..ApiOptions::default()
    };
    let server = Server::with(Setup {
        api,
        ..Setup::default()
    })
    .await;
    let document = hyprstream_openai::openapi::document("1");
    let mut closed = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            let url = format!("{}{}", server.url, path.replace("{id}", "fake"));
            let status = server.client.request(method, url).send().await.unwrap();
            let is_open = status.status() != 401;
            let says_open = operation.get("security") == Some(&json!([]));
            assert_eq!(is_open, says_open, "{path}");
            assert_eq!(
                is_open,
                ["/health", "/ready", "/ping", "/metrics"].contains(&path.as_str()),
                "{path}"
            );
            closed += usize::from(!is_open);
        }
    }
    assert!(closed >= 12, "{closed}");
}
