use serde_json::{Value, json};

use super::*;
use crate::{ApiError, Structured, tools::ToolChoice};

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
    assert_eq!(request.prompt.messages[0].role, Role::User);
    assert_eq!((request.max_tokens, request.logprobs), (None, None));
    assert_eq!((request.sampling.n, request.sampling.stream), (1, false));
    assert!(request.prompt.add_generation_prompt && request.sampling.skip_special_tokens);
}

#[test]
fn an_unknown_field_is_refused_by_name_at_every_depth() {
    refused(json!({"temprature": 1}), "temprature");
    refused(
        json!({"stream": true, "stream_options": {"x": 1}}),
        "stream_options.x",
    );
    refused(
        json!({"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}),
        "tools[0].function.x",
    );
}

#[test]
fn what_a_client_added_to_past_messages_is_read_over_and_named() {
    let call = json!({"id": "c", "type": "function", "index": 0, "extra_content": {"a": 1},
        "function": {"name": "f", "arguments": "{}", "provider_specific_fields": {}}});
    let request = read(json!({"messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": null, "tool_calls": [call], "audio": null,
            "function_call": null, "refusal": null, "annotations": [], "thinking_blocks": null,
            "provider_specific_fields": {"a": null}, "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c", "content": "7", "artifact": [1]},
        {"role": "user", "content": "b", "x": 1},
    ]}))
    .unwrap();
    assert_eq!(
        request.ignored.header().as_deref(),
        Some(
            "messages.content.cache_control, messages.tool_calls.function.provider_specific_fields, \
            messages.tool_calls.extra_content, messages.provider_specific_fields, \
            messages.artifact, messages.x"
        )
    );
    let messages = request.prompt.messages;
    assert_eq!(messages[1].reasoning_content.as_deref(), Some("hm"));
    assert_eq!(messages[1].tool_calls[0].name, "f");
    assert_eq!(read(json!({})).unwrap().ignored.header(), None);
}

#[test]
fn what_a_model_refused_elsewhere_is_what_it_said() {
    for said in [
        json!({"role": "assistant", "content": null, "refusal": "no"}),
        json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
    ] {
        let request = read(json!({"messages": [said]})).unwrap();
        assert_eq!(request.prompt.messages[0].content, "no");
        assert_eq!(request.ignored.header(), None);
    }
}

#[test]
fn what_a_past_message_says_is_never_read_over() {
    for (message, param) in [
        (
            json!({"content": [{"type": "image_url"}]}),
            "content[0].type",
        ),
        (json!({"content": "a", "audio": {"id": "a"}}), "audio"),
        (
            json!({"content": "a", "function_call": {"name": "f"}}),
            "function_call",
        ),
        (json!({"text": "a"}), "content"),
    ] {
        let mut message = message;
        message["role"] = "assistant".into();
        refused(
            json!({"messages": [message]}),
            &format!("messages[0].{param}"),
        );
    }
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
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
        (json!({"store": true}), "store"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"reasoning_effort": "huge"}), "reasoning_effort"),
        (json!({"adapters": [{"scale": 1}]}), "adapters[0].name"),
        (json!({"chat_template": "x"}), "chat_template"),
        (
            json!({"messages": [{"role": "tool", "content": "a"}]}),
            "messages[0].tool_call_id",
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
    assert_eq!(request.prompt.messages[0].content, "a\nb");
    assert_eq!(request.prompt.messages[0].role, Role::System);
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

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

#[test]
fn tools_are_read_and_kept_as_they_were_sent() {
    let request = read(
        json!({"tools": [tool("f"), tool("g")], "tool_choice": "required",
        "parallel_tool_calls": false}),
    )
    .unwrap();
    assert_eq!(request.prompt.tools[0].value, tool("f"));
    assert_eq!(request.tool_choice, ToolChoice::Required);
    assert!(!request.parallel_tool_calls);
    let named = json!({"type": "function", "function": {"name": "g"}});
    let request = read(json!({"tools": [tool("f"), tool("g")], "tool_choice": named})).unwrap();
    assert_eq!(request.tool_choice, ToolChoice::Named("g".into()));
    let named = json!({"type": "function", "function": {"name": "h"}});
    for (extra, param) in [
        (json!({"tools": [tool("f"), tool("f")]}), "tools"),
        (json!({"tools": [tool("a b")]}), "tools[0].function.name"),
        (json!({"tools": vec![tool("f"); 129]}), "tools"),
        (
            json!({"tools": [tool("f")], "tool_choice": named}),
            "tool_choice",
        ),
        (
            json!({"tools": [tool("f")], "tool_choice": "any"}),
            "tool_choice",
        ),
        (
            json!({"tools": [tool("f")], "tool_choice": "required",
                "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
        ),
    ] {
        refused(extra, param);
    }
    // It holds for text, and there is none.
    let request = read(json!({"tools": [tool("f")], "tool_choice": "required",
        "response_format": {"type": "json_object"}}))
    .unwrap();
    assert_eq!(request.structured, None);
}

#[test]
fn tools_that_are_not_allowed_are_as_if_they_were_not_offered() {
    let names = json!([{"type": "function", "function": {"name": "g"}}]);
    let flat = json!([{"type": "function", "name": "g"}]);
    for (mode, expected) in [
        ("auto", ToolChoice::Auto),
        ("required", ToolChoice::Required),
    ] {
        for choice in [
            json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": names}}),
            json!({"type": "allowed_tools", "mode": mode, "tools": flat}),
        ] {
            let request =
                read(json!({"tools": [tool("f"), tool("g")], "tool_choice": choice})).unwrap();
            assert_eq!(request.tool_choice, expected);
            assert_eq!(request.prompt.tools.len(), 1);
            assert_eq!(request.prompt.tools[0].name, "g");
        }
    }
    for (choice, param) in [
        (json!({"mode": "never", "tools": flat}), "tool_choice.mode"),
        (json!({"tools": flat}), "tool_choice.mode"),
        (json!({"mode": "auto"}), "tool_choice.tools"),
        (json!({"mode": "auto", "tools": []}), "tool_choice.tools"),
        (
            json!({"mode": "auto", "tools": [{"type": "function", "name": "h"}]}),
            "tool_choice.tools",
        ),
        (
            json!({"mode": "auto", "tools": [{"type": "mcp", "name": "g"}]}),
            "tool_choice.tools[0].type",
        ),
        (
            json!({"mode": "auto", "tools": flat, "x": 1}),
            "tool_choice.x",
        ),
    ] {
        let mut choice = choice;
        choice["type"] = "allowed_tools".into();
        refused(
            json!({"tools": [tool("f"), tool("g")], "tool_choice": choice}),
            param,
        );
    }
}

#[test]
fn calls_and_their_results_are_part_of_a_conversation() {
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "f", "arguments": "{\"a\": [1]}"}});
    let request = read(json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
    ]}))
    .unwrap();
    let messages = request.prompt.messages;
    assert_eq!(messages[1].tool_calls[0].arguments["a"], json!([1]));
    assert_eq!(messages[1].reasoning_content.as_deref(), Some("hm"));
    assert_eq!(messages[2].role, Role::Tool);
    let bad = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "[1]"}});
    refused(
        json!({"messages": [{"role": "assistant", "tool_calls": [bad]}]}),
        "messages[0].tool_calls[0].function.arguments",
    );
    refused(
        json!({"messages": [{"role": "user", "content": "a", "tool_calls": [call]}]}),
        "messages[0].tool_calls",
    );
}

#[test]
fn one_form_of_an_answer_can_be_asked_for() {
    let schema = json!({"type": "object"});
    let request = read(json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": "a", "schema": schema, "strict": true}}}))
    .unwrap();
    assert_eq!(
        request.structured,
        Some((Structured::JsonSchema(schema.clone()), "response_format"))
    );
    for (outputs, expected) in [
        (json!({"regex": "a+"}), Structured::Regex("a+".into())),
        (
            json!({"choice": ["a", "b"]}),
            Structured::Choice(vec!["a".into(), "b".into()]),
        ),
        (
            json!({"grammar": "start: \"a\""}),
            Structured::Lark("start: \"a\"".into()),
        ),
        (
            json!({"json": schema}),
            Structured::JsonSchema(schema.clone()),
        ),
        (
            json!({"json": schema.to_string()}),
            Structured::JsonSchema(schema.clone()),
        ),
        (json!({"json_object": true}), Structured::JsonObject),
        (
            json!({"json_object": true, "whitespace_pattern": "[ ]?"}),
            Structured::JsonSchema(
                json!({"type": "object", "x-guidance": {"whitespace_pattern": "[ ]?"}}),
            ),
        ),
    ] {
        let read = read(json!({"structured_outputs": outputs}))
            .unwrap()
            .structured;
        assert_eq!(read, Some((expected, "structured_outputs")));
    }
    let mut deep = json!({});
    for _ in 0..40 {
        deep = json!({"properties": deep});
    }
    for (extra, param) in [
        (json!({"structured_outputs": {}}), "structured_outputs.json"),
        (
            json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
            "structured_outputs.json",
        ),
        (
            json!({"structured_outputs": {"json": deep}}),
            "structured_outputs.json",
        ),
        (
            json!({"structured_outputs": {"regex": "a".repeat(5000)}}),
            "structured_outputs.regex",
        ),
        (
            json!({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({"structured_outputs": {"json": "nope"}}),
            "structured_outputs.json",
        ),
        (
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            "structured_outputs",
        ),
    ] {
        refused(extra, param);
    }
}

#[test]
fn cve_2025_62426_template_variables_are_of_a_list_and_small() {
    read(json!({"chat_template_kwargs": {"enable_thinking": false}})).unwrap();
    for (kwargs, key) in [
        (json!({"messages": "x"}), "messages"),
        (json!({"chat_template": "{{ x }}"}), "chat_template"),
        (json!({"tokenize": true}), "tokenize"),
        (json!({"enable_thinking": {"a": 1}}), "enable_thinking"),
        (json!({"date_string": "x".repeat(1000)}), "date_string"),
    ] {
        refused(
            json!({"chat_template_kwargs": kwargs}),
            &format!("chat_template_kwargs.{key}"),
        );
    }
}

#[test]
fn going_on_with_the_last_message_needs_one_of_the_assistant() {
    let request = read(json!({"continue_final_message": true,
        "messages": [{"role": "assistant", "content": "a"}]}))
    .unwrap();
    assert!(!request.prompt.add_generation_prompt);
    refused(
        json!({"continue_final_message": true}),
        "continue_final_message",
    );
    refused(
        json!({"continue_final_message": true, "add_generation_prompt": true,
            "messages": [{"role": "assistant", "content": "a"}]}),
        "continue_final_message",
    );
}
