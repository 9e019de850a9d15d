use serde_json::{Value, json};

use super::*;
use crate::ApiError;

#[track_caller]
fn read(mut extra: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut()
        .unwrap()
        .append(extra.as_object_mut().unwrap());
    ChatRequest::from_json(&serde_json::to_vec(&body).unwrap())
}

#[track_caller]
#[allow(clippy::needless_pass_by_value, reason = "shorter to call")]
fn refused(extra: Value, param: &str) {
    let error = read(extra.clone()).expect_err(&extra.to_string());
    assert_eq!(error.kind.status(), 400);
    assert_eq!(error.param.as_deref(), Some(param), "{extra}: {error}");
    assert!(error.message.starts_with(param), "{error}");
}

#[test]
fn the_smallest_request_has_the_defaults_of_the_api() {
    let request = read(json!({})).unwrap();
    assert_eq!(request.messages[0].role, Role::User);
    assert_eq!((request.max_tokens, request.logprobs), (None, None));
    assert_eq!((request.sampling.n, request.sampling.stream), (1, false));
    assert!(request.add_generation_prompt && request.sampling.skip_special_tokens);
}

#[test]
fn an_unknown_field_is_refused_by_name_at_every_depth() {
    refused(json!({"temprature": 1}), "temprature");
    refused(
        json!({"stream": true, "stream_options": {"x": 1}}),
        "stream_options.x",
    );
    refused(
        json!({"messages": [{"role": "user", "content": "a", "x": 1}]}),
        "messages[0].x",
    );
    refused(
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}),
        "messages[0].content[0].x",
    );
}

#[test]
fn an_impossible_value_is_refused_by_name() {
    for (extra, param) in [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "1"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": -1}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 9}), "n"),
        (json!({"n": 1e300}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (
            json!({"max_tokens": 1, "max_completion_tokens": 2}),
            "max_tokens",
        ),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"seed": 1e30}), "seed"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": [1]}), "stop"),
        (json!({"stop": 1}), "stop"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"stream": 1}), "stream"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "king", "content": "a"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": []}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": 1}]}),
            "messages[0].content",
        ),
        (json!({"model": null}), "model"),
        (json!({"model": 1}), "model"),
        (json!({"user": 1}), "user"),
    ] {
        refused(extra, param);
    }
}

#[test]
fn a_feature_that_is_not_there_is_refused_unless_it_is_switched_off() {
    for (extra, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"store": true}), "store"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"adapters": [{"name": "a"}]}), "adapters"),
        (json!({"chat_template": "x"}), "chat_template"),
        (
            json!({"messages": [{"role": "tool", "content": "a"}]}),
            "messages[0].role",
        ),
    ] {
        refused(extra, param);
    }
    read(json!({
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "store": false,
        "modalities": ["text"], "user": "u", "metadata": {"a": "b"}, "reasoning_effort": null,
        "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false},
    }))
    .unwrap();
}

#[test]
fn text_parts_are_joined_and_developer_is_system() {
    let request = read(json!({"messages": [{"role": "developer", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}))
    .unwrap();
    assert_eq!(request.messages[0].content, "a\nb");
    assert_eq!(request.messages[0].role, Role::System);
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in ["", "[]", "1", "null", "{", "\u{0}", "{\"model\": \"m\"} x"] {
        let error = ChatRequest::from_json(body.as_bytes()).unwrap_err();
        assert_eq!(error.kind.status(), 400, "{body:?}");
    }
    let deep = "[".repeat(100_000);
    assert!(ChatRequest::from_json(deep.as_bytes()).is_err());
}

#[test]
fn a_null_usage_and_an_absent_one_differ_on_the_wire() {
    let mut chunk = ChatChunk {
        id: "i".into(),
        object: "chat.completion.chunk".into(),
        created: 0,
        model: "m".into(),
        system_fingerprint: None,
        choices: vec![],
        usage: None,
    };
    assert!(!serde_json::to_string(&chunk).unwrap().contains("usage"));
    chunk.usage = Some(None);
    let text = serde_json::to_string(&chunk).unwrap();
    assert!(text.contains("\"usage\":null"), "{text}");
    assert_eq!(serde_json::from_str::<ChatChunk>(&text).unwrap(), chunk);
}
