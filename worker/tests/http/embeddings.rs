use hyprstream_engine::fake;
use serde_json::{Value, json};

use crate::server::Server;

const EMBEDDINGS: &str = "/v1/embeddings";

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

#[tokio::test]
async fn a_vector_is_the_pooled_state_of_its_text() {
    let server = Server::start().await;
    let ask = json!({"model": "fake", "input": ["hello", "there"], "normalize": false});
    let answer = server.ask(EMBEDDINGS, &ask).await;
    assert_eq!(answer["object"], "list");
    let tokens = fake::tokenizer().encode("hello", true).unwrap();
    let expected: Vec<f64> = fake::hidden(&tokens)
        .iter()
        .map(|x| f64::from(*x))
        .collect();
    assert_eq!(numbers(&answer["data"][0]["embedding"]), expected);
    assert_eq!(answer["data"][1]["index"], 1);
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() >= 2);
    let mean = json!({"model": "fake", "input": tokens, "normalize": false, "pooling": "mean"});
    let mean = server.ask(EMBEDDINGS, &mean).await;
    assert_ne!(mean["data"][0]["embedding"], answer["data"][0]["embedding"]);
}

#[tokio::test]
async fn vectors_are_of_length_one_and_base64_says_the_same() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    let server = Server::start().await;
    let plain = server
        .ask(EMBEDDINGS, &json!({"model": "fake", "input": "hello"}))
        .await;
    let plain = numbers(&plain["data"][0]["embedding"]);
    let length: f64 = plain.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    let ask = json!({"model": "fake", "input": "hello", "encoding_format": "base64",
        "dimensions": fake::HIDDEN_SIZE});
    let coded = server.ask(EMBEDDINGS, &ask).await;
    let bytes = STANDARD
        .decode(coded["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let floats = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    for (a, b) in floats.zip(plain) {
        assert!((f64::from(a) - b).abs() < 1e-6);
    }
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_name() {
    let server = Server::start().await;
    for (extra, param) in [
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [99_999]}), "input"),
        (json!({"input": "x".repeat(100_000)}), "input"),
        (json!({"dimensions": 3}), "dimensions"),
        (json!({"encoding_format": "hex"}), "encoding_format"),
        (json!({"pooling": "max"}), "pooling"),
    ] {
        let mut ask = json!({"model": "fake", "input": "a"});
        for (name, value) in extra.as_object().unwrap() {
            ask[name] = value.clone();
        }
        let error = server.refused(EMBEDDINGS, &ask, 400).await;
        assert_eq!(error["param"], param, "{extra}: {error}");
    }
}
