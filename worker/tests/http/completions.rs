use hyprstream_engine::fake;
use serde_json::{Value, json};

use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";

fn body(prompt: &Value) -> Value {
    json!({"model": "default/fake", "prompt": prompt, "max_tokens": 5, "temperature": 0})
}

#[tokio::test]
async fn a_text_its_tokens_and_lists_of_them_are_continued_alike() {
    let server = Server::start().await;
    let ids = server
        .ask(
            "/tokenize",
            &json!({"prompt": "hello there", "add_special_tokens": false}),
        )
        .await["tokens"]
        .take();
    let text = server.ask(COMPLETIONS, &body(&json!("hello there"))).await;
    let tokens = server.ask(COMPLETIONS, &body(&ids)).await;
    let list = server
        .ask(COMPLETIONS, &body(&json!(["hello there", "other"])))
        .await;
    let ids_list = server.ask(COMPLETIONS, &body(&json!([ids]))).await;
    assert_eq!(text["object"], "text_completion");
    for answer in [&tokens, &list, &ids_list] {
        assert_eq!(answer["choices"][0]["text"], text["choices"][0]["text"]);
    }
    assert_eq!(list["choices"].as_array().unwrap().len(), 2);
    assert_eq!(list["usage"]["completion_tokens"], 10);
    let back = server.ask("/detokenize", &json!({"tokens": ids})).await;
    assert_eq!(back["prompt"], "hello there");
}

#[tokio::test]
async fn without_max_tokens_sixteen_are_generated() {
    let server = Server::start().await;
    let answer = server
        .ask(
            COMPLETIONS,
            &json!({"model": "fake", "prompt": "a", "temperature": 0}),
        )
        .await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn an_echo_begins_with_the_prompt() {
    let server = Server::start().await;
    let mut ask = body(&json!("hello"));
    let plain = server.ask(COMPLETIONS, &ask).await["choices"][0]["text"].take();
    ask["echo"] = true.into();
    let echoed = server.ask(COMPLETIONS, &ask).await["choices"][0]["text"].take();
    assert_eq!(echoed, format!("hello{}", plain.as_str().unwrap()));
    ask["stream"] = true.into();
    let events = server.events(COMPLETIONS, &ask).await;
    let text: String = events
        .iter()
        .map(|event| event["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, echoed.as_str().unwrap());
}

#[tokio::test]
async fn logprobs_come_in_columns() {
    let server = Server::start().await;
    let mut ask = body(&json!("hello"));
    ask["logprobs"] = 2.into();
    let answer = server.ask(COMPLETIONS, &ask).await;
    let told = &answer["choices"][0]["logprobs"];
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(told[column].as_array().unwrap().len(), 5, "{column}");
    }
    let prompt = fake::tokenizer().encode("hello", true).unwrap();
    let first = fake::greedy(&prompt, 1)[0];
    let text = String::from_utf8_lossy(fake::tokenizer().token_bytes(first)).into_owned();
    assert_eq!(told["tokens"][0], text);
    assert_eq!(told["top_logprobs"][0].as_object().unwrap().len(), 2);
    assert_eq!(told["text_offset"][0], 0);
}

#[tokio::test]
async fn an_empty_prompt_is_refused_where_the_tokenizer_adds_nothing() {
    let server = Server::start().await;
    let error = server.refused(COMPLETIONS, &body(&json!("")), 400).await;
    assert_eq!(error["param"], "prompt");
}
