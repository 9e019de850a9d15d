use serde_json::{Value, json};

use super::*;
use crate::{ApiError, chat::Role};

fn read(extra: &Value) -> Result<ResponseRequest, ApiError> {
    let mut body = json!({"model": "m", "input": "hi"});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    ResponseRequest::from_json(&serde_json::to_vec(&body).unwrap())
}

#[test]
fn items_become_the_messages_of_a_conversation() {
    use Role::{Assistant, System, Tool, User};

    let request = read(&json!({
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}", "id": "fc"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {"type": "message", "id": "msg", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "sun", "annotations": [], "logprobs": []}]},
        ],
    }))
    .unwrap();
    let messages = &request.prompt.messages;
    let roles: Vec<Role> = messages.iter().map(|m| m.role).collect();
    assert_eq!(roles, [System, User, Assistant, Tool, Assistant]);
    assert_eq!(messages[2].tool_calls.len(), 2);
    assert_eq!(messages[2].tool_calls[0].arguments["a"], 1);
    assert_eq!(messages[2].reasoning_content.as_deref(), Some("hm"));
    assert_eq!(messages[3].tool_call_id.as_deref(), Some("c1"));
}

#[test]
fn what_would_need_storage_is_refused_unless_it_is_switched_off() {
    for (extra, param) in [
        (json!({"store": true}), "store"),
        (json!({"background": true}), "background"),
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"type": "image"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": "a", "x": 1}]}),
            "input[0].x",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"n": 2}), "n"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "a"}}}),
            "text.format.schema",
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
    ] {
        let error = read(&extra).expect_err(&extra.to_string());
        assert_eq!(error.param.as_deref(), Some(param), "{extra}: {error}");
    }
    read(
        &json!({"store": false, "background": false, "previous_response_id": null,
        "truncation": "disabled", "include": [], "text": {"format": {"type": "text"}}}),
    )
    .unwrap();
}

#[test]
fn an_answer_repeats_what_was_asked() {
    let request = read(&json!({"temperature": 0.5, "metadata": {"a": "b"}})).unwrap();
    let used = Sampled {
        temperature: 0.5,
        top_p: 1.0,
    };
    let response = Response::begun("resp_1".into(), 1, "m".into(), &request.repeated, used);
    assert_eq!((response.temperature, response.top_p), (0.5, 1.0));
    assert_eq!(response.metadata, json!({"a": "b"}));
    assert_eq!(response.tool_choice, "auto");
}
