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
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (
            json!({"include": ["reasoning.encrypted_content"]}),
            "include",
        ),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"truncation": "middle"}), "truncation"),
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
fn what_a_client_added_to_past_items_is_read_over_and_named() {
    let request = read(&json!({"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a", "x": 1}], "y": 1},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}",
            "namespace": "n", "created_by": null},
        {"type": "function_call_output", "call_id": "c", "output": "7"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b",
            "annotations": [{"type": "url_citation"}], "logprobs": [{"token": "b"}]}]},
    ]}))
    .unwrap();
    assert_eq!(
        request.ignored.header().as_deref(),
        Some(
            "input.content.x, input.y, input.namespace, input.encrypted_content, \
             input.content.annotations"
        )
    );
}

#[test]
fn a_form_of_text_does_not_hold_for_a_forced_call() {
    let tool = json!({"type": "function", "name": "f"});
    let format = json!({"type": "json_schema", "name": "a", "schema": {"type": "object"}});
    let ask =
        |choice: &str| json!({"tools": [tool], "tool_choice": choice, "text": {"format": format}});
    let forced = read(&ask("required")).unwrap();
    assert_eq!(
        (forced.structured, forced.tool_choice.is_forced()),
        (None, true)
    );
    assert!(read(&ask("auto")).unwrap().structured.is_some());
}

#[test]
fn logprobs_of_text_can_be_included() {
    let include = json!(["message.output_text.logprobs"]);
    let request = read(&json!({"include": include, "top_logprobs": 3})).unwrap();
    assert_eq!(request.logprobs, Some(3));
    assert_eq!(
        read(&json!({"include": include})).unwrap().logprobs,
        Some(0)
    );
    assert_eq!(read(&json!({"top_logprobs": 0})).unwrap().logprobs, None);
}

#[test]
fn an_answer_repeats_what_was_asked() {
    let request = read(&json!({"temperature": 0.5, "metadata": {"a": "b"},
        "truncation": "auto"}))
    .unwrap();
    let used = Sampled {
        temperature: 0.5,
        top_p: 1.0,
    };
    let response = Response::begun("resp_1".into(), 1, "m".into(), &request.repeated, used);
    assert_eq!((response.temperature, response.top_p), (0.5, 1.0));
    assert_eq!(response.metadata, json!({"a": "b"}));
    assert_eq!(response.tool_choice, "auto");
    assert_eq!(
        (response.truncation.as_str(), response.top_logprobs),
        ("auto", 0)
    );
}
