use serde_json::{Value, json};

use crate::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";

fn body(extra: &Value) -> Value {
    let mut body = json!({"model": "fake", "temperature": 1, "seed": 1, "max_tokens": 300,
        "messages": [{"role": "user", "content": "a"}]});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn text(server: &Server, extra: &Value) -> String {
    let answer = server.ask(CHAT, &body(extra)).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn every_form_of_an_answer_is_kept_by_a_model_of_noise() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0,
        "maximum": 99}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"],
        "additionalProperties": false});
    let format = json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": "n", "strict": true, "schema": schema}}});
    let read: Value = serde_json::from_str(&text(&server, &format).await).unwrap();
    assert!(read["a"].as_u64().unwrap() <= 99 && read["b"].is_string());
    let outputs = json!({"structured_outputs": {"json": schema}});
    serde_json::from_str::<Value>(&text(&server, &outputs).await).unwrap();
    let choice = json!({"structured_outputs": {"choice": ["red", "green"]}});
    assert!(["red", "green"].contains(&text(&server, &choice).await.as_str()));
    let regex = json!({"structured_outputs": {"regex": "[ab]{3}c"}});
    let told = text(&server, &regex).await;
    assert!(told.len() == 4 && told.ends_with('c'), "{told}");
    let grammar = json!({"structured_outputs": {"grammar": "start: \"x\" (\"y\" | \"z\")"}});
    assert!(["xy", "xz"].contains(&text(&server, &grammar).await.as_str()));
}

#[tokio::test]
async fn plain_completions_and_responses_keep_it_too() {
    let server = Server::start().await;
    let ask = json!({"model": "fake", "prompt": "a", "n": 2, "max_tokens": 20,
        "structured_outputs": {"choice": ["red", "green"]}});
    let answer = server.ask("/v1/completions", &ask).await;
    for choice in answer["choices"].as_array().unwrap() {
        assert!(
            ["red", "green"].contains(&choice["text"].as_str().unwrap()),
            "{answer}"
        );
    }
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"], "additionalProperties": false});
    let ask = json!({"model": "fake", "input": "a", "max_output_tokens": 50,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}});
    let answer = server.ask("/v1/responses", &ask).await;
    let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(
        serde_json::from_str::<Value>(text).unwrap()["a"].is_u64(),
        "{text}"
    );
}

#[tokio::test]
async fn an_answer_of_a_form_or_a_call_can_be_asked_for_together() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"], "additionalProperties": false});
    let tool = json!({"type": "function", "function": {"name": "f"}});
    for seed in 0..4 {
        let ask = body(
            &json!({"seed": seed, "tools": [tool], "parallel_tool_calls": false,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        );
        let answer = server.ask(CHAT, &ask).await;
        let choice = &answer["choices"][0];
        match choice["finish_reason"].as_str().unwrap() {
            "stop" => {
                let text = choice["message"]["content"].as_str().unwrap();
                assert!(
                    serde_json::from_str::<Value>(text).unwrap()["a"].is_u64(),
                    "{answer}"
                );
            }
            reason => {
                assert_eq!(reason, "tool_calls");
                let call = &choice["message"]["tool_calls"][0]["function"];
                assert_eq!(call["arguments"], "{}");
            }
        }
    }
}

#[tokio::test]
async fn cve_2025_48944_a_bad_grammar_fails_its_own_request() {
    let server = Server::start().await;
    for (extra, param) in [
        (
            json!({"structured_outputs": {"regex": "("}}),
            json!("structured_outputs"),
        ),
        // This one is found out only when it is followed, so no field is named.
        (
            json!({"structured_outputs": {"regex": "(a{1,9999}){1,9999}"}}),
            Value::Null,
        ),
        (
            json!({"structured_outputs": {"grammar": "start: nope"}}),
            json!("structured_outputs"),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema":
                {"type": "object", "properties": {"a": {"$ref": "http://example.org/x"}}}}}}),
            json!("response_format"),
        ),
    ] {
        let error = server.refused(CHAT, &body(&extra), 400).await;
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().len() < 600);
    }
    assert_eq!(server.get("/health").await.status(), 200);
    let choice = json!({"structured_outputs": {"choice": ["red"]}});
    assert_eq!(text(&server, &choice).await, "red");
}

#[tokio::test]
async fn a_model_that_thinks_may_do_so_before_an_answer_of_a_form() {
    let template = "{# <think> #}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\
        {% endfor %}assistant: ";
    let server = Server::with(Setup {
        parrot: true,
        template,
        ..Setup::default()
    })
    .await;
    for (say, thought) in [("<think>hm</think>\n\nred", Some("hm")), ("green", None)] {
        let ask = json!({"model": "fake", "temperature": 0,
            "messages": [{"role": "user", "content": format!("say {say}")}],
            "structured_outputs": {"choice": ["red", "green"]}});
        let answer = server.ask(CHAT, &ask).await;
        let message = &answer["choices"][0]["message"];
        assert!(
            say.ends_with(message["content"].as_str().unwrap()),
            "{answer}"
        );
        assert_eq!(message["reasoning_content"].as_str(), thought);
    }
}

#[tokio::test]
async fn a_stop_text_in_the_thoughts_does_not_end_the_answer() {
    let template = "{# <think> #}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\
        {% endfor %}assistant: ";
    let server = Server::with(Setup {
        parrot: true,
        template,
        ..Setup::default()
    })
    .await;
    for (say, thought, content) in [
        ("<think>a END b</think>yes END no", Some("a END b"), "yes "),
        ("yes END no", None, "yes "),
    ] {
        let ask = json!({"model": "fake", "temperature": 0, "stop": ["END"],
            "messages": [{"role": "user", "content": format!("say {say}")}]});
        let answer = server.ask(CHAT, &ask).await;
        let choice = &answer["choices"][0];
        assert_eq!(
            choice["message"]["reasoning_content"].as_str(),
            thought,
            "{answer}"
        );
        assert_eq!(choice["message"]["content"], content);
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn calls_of_strict_tools_follow_their_schema_without_being_forced() {
    let server = Server::with(Setup {
        parrot: true,
        ..Setup::default()
    })
    .await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"], "additionalProperties": false});
    let tool = json!({"type": "function",
        "function": {"name": "f", "strict": true, "parameters": schema}});
    // The parrot says what no schema allows; its grammar does not let it.
    let say = "well <tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 3}}\n</tool_call>";
    let ask = json!({"model": "fake", "temperature": 0, "max_tokens": 200, "tools": [tool],
        "messages": [{"role": "user", "content": format!("say {say}")}]});
    let answer = server.ask(CHAT, &ask).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        message["content"].as_str().map(str::trim),
        Some("well"),
        "{answer}"
    );
    let arguments = message["tool_calls"][0]["function"]["arguments"]
        .as_str()
        .unwrap();
    let read: Value = serde_json::from_str(arguments).unwrap();
    assert!(read["a"].is_u64(), "{answer}");
    let plain = json!({"model": "fake", "temperature": 0, "tools": [tool],
        "messages": [{"role": "user", "content": "say just words"}]});
    let answer = server.ask(CHAT, &plain).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "just words");
}
