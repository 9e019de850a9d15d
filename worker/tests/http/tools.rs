use serde_json::{Value, json};

use crate::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";
const HERMES: &str = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}\
    {% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

async fn parrot(template: &'static str) -> Server {
    Server::with(Setup {
        template,
        parrot: true,
        ..Setup::default()
    })
    .await
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"], "additionalProperties": false}}})
}

fn body(say: &str, extra: &Value) -> Value {
    let mut body = json!({"model": "fake", "temperature": 0, "max_tokens": 400,
        "messages": [{"role": "user", "content": format!("say {say}")}],
        "tools": [tool("get_weather"), tool("other")]});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A message put together from the deltas of a stream, and why it ended.
fn joined(events: &[Value]) -> (Value, Value) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for event in events {
        let choice = &event["choices"][0];
        content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        for delta in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = delta["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert_eq!(delta["type"], "function");
                assert!(delta["id"].is_string());
                calls.push(json!({"name": delta["function"]["name"], "arguments": ""}));
            }
            let so_far = calls[index]["arguments"].as_str().unwrap().to_owned();
            let more = delta["function"]["arguments"].as_str().unwrap();
            calls[index]["arguments"] = format!("{so_far}{more}").into();
        }
        if choice["finish_reason"].is_string() {
            reason = choice["finish_reason"].clone();
        }
    }
    (json!({"content": content, "calls": calls}), reason)
}

/// Checks what is found in `say`, whole and streamed.
#[track_caller]
fn check_found(
    whole: &Value,
    events: &[Value],
    content: &str,
    calls: &[(&str, &str)],
    reason: &str,
) {
    let message = &whole["choices"][0]["message"];
    let found = message["tool_calls"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(found.len(), calls.len(), "{message}");
    for (call, (name, arguments)) in found.iter().zip(calls) {
        assert!(call["id"].is_string() && call["type"] == "function");
        assert_eq!(call["function"]["name"], *name);
        assert_eq!(call["function"]["arguments"], *arguments);
    }
    assert_eq!(message["content"].as_str().unwrap_or_default(), content);
    assert_eq!(whole["choices"][0]["finish_reason"], reason);
    let (streamed, streamed_reason) = joined(events);
    let expected: Vec<Value> = calls
        .iter()
        .map(|(name, arguments)| json!({"name": name, "arguments": arguments}))
        .collect();
    assert_eq!(streamed, json!({"content": content, "calls": expected}));
    assert_eq!(streamed_reason, reason);
}

#[tokio::test]
async fn calls_are_found_in_the_format_of_each_family() {
    const MISTRAL: &str = "{% if tools %}[TOOL_CALLS]{% endif %}{% for m in messages %}\
        {{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant: ";
    const LLAMA: &str = "{% if tools %}<|python_tag|>{% endif %}{% for m in messages %}\
        {{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant: ";
    let arguments = r#"{"city": "Köln"}"#;
    for (template, say, content) in [
        (
            HERMES,
            r#"Sure.<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>"#,
            "Sure.",
        ),
        (
            MISTRAL,
            r#"[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln"}}]"#,
            "",
        ),
        (
            LLAMA,
            r#"{"name": "get_weather", "parameters": {"city": "Köln"}}"#,
            "",
        ),
    ] {
        let server = parrot(template).await;
        let whole = server.ask(CHAT, &body(say, &json!({}))).await;
        let events = server
            .events(CHAT, &body(say, &json!({"stream": true})))
            .await;
        check_found(
            &whole,
            &events,
            content,
            &[("get_weather", arguments)],
            "tool_calls",
        );
        // Mistral's templates insist on ids of nine characters.
        if template == MISTRAL {
            let id = whole["choices"][0]["message"]["tool_calls"][0]["id"]
                .as_str()
                .unwrap();
            assert_eq!(id.len(), 9);
        }
    }
}

#[tokio::test]
async fn words_are_words_and_one_call_is_one_if_so_wished() {
    let server = parrot(HERMES).await;
    let whole = server.ask(CHAT, &body("no calls < here", &json!({}))).await;
    let events = server
        .events(CHAT, &body("no calls < here", &json!({"stream": true})))
        .await;
    check_found(&whole, &events, "no calls < here", &[], "stop");
    let two = r#"<tool_call>{"name": "other", "arguments": {}}</tool_call><tool_call>{"name": "other", "arguments": {}}</tool_call>"#;
    let one = json!({"parallel_tool_calls": false});
    let whole = server.ask(CHAT, &body(two, &one)).await;
    let stream = json!({"parallel_tool_calls": false, "stream": true});
    let events = server.events(CHAT, &body(two, &stream)).await;
    check_found(&whole, &events, "", &[("other", "{}")], "tool_calls");
    let whole = server.ask(CHAT, &body(two, &json!({}))).await;
    let events = server
        .events(CHAT, &body(two, &json!({"stream": true})))
        .await;
    check_found(
        &whole,
        &events,
        "",
        &[("other", "{}"), ("other", "{}")],
        "tool_calls",
    );
    // With the choice none nothing is a call.
    let none = server
        .ask(CHAT, &body(two, &json!({"tool_choice": "none"})))
        .await;
    assert_eq!(none["choices"][0]["message"]["content"], two);
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_forced_call_parses_whatever_the_model_is() {
    let server = Server::with(Setup {
        template: HERMES,
        ..Setup::default()
    })
    .await;
    let named = json!({"type": "function", "function": {"name": "other"}});
    for (choice, reason) in [(json!("required"), "tool_calls"), (named, "stop")] {
        for seed in 0..3 {
            let extra = json!({"tool_choice": choice, "temperature": 1, "seed": seed,
                "parallel_tool_calls": false});
            let answer = server.ask(CHAT, &body("", &extra)).await;
            let choice = &answer["choices"][0];
            let call = &choice["message"]["tool_calls"][0]["function"];
            let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap())
                .unwrap_or_else(|error| panic!("{error}: {answer}"));
            assert!(arguments["city"].is_string(), "{answer}");
            assert_eq!(choice["finish_reason"], reason);
            assert_eq!(choice["message"]["content"], Value::Null);
            if reason == "stop" {
                assert_eq!(call["name"], "other");
            }
        }
    }
}

#[tokio::test]
async fn a_forced_call_that_is_cut_off_says_so_and_tells_its_beginning() {
    let server = Server::with(Setup {
        template: HERMES,
        ..Setup::default()
    })
    .await;
    let extra = json!({"tool_choice": "required", "max_tokens": 62, "stream": true});
    let events = server.events(CHAT, &body("", &extra)).await;
    let (message, reason) = joined(&events);
    assert_eq!(reason, "length");
    let arguments = message["calls"][0]["arguments"].as_str().unwrap();
    assert!(
        arguments.starts_with('{') && !arguments.ends_with('}'),
        "{message}"
    );
    assert_eq!(message["content"], "");
}

#[tokio::test]
async fn a_template_without_tools_still_tells_the_model_of_them() {
    let server = Server::start().await;
    let ask = json!({"model": "fake", "tools": [tool("get_weather")], "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function",
            "function": {"name": "get_weather", "arguments": "{\"city\": \"b\"}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "sun"},
    ]});
    let tokens = server.ask("/tokenize", &ask).await["tokens"].take();
    let prompt = server.ask("/detokenize", &json!({"tokens": tokens})).await;
    let prompt = prompt["prompt"].as_str().unwrap();
    assert!(prompt.starts_with("system: # Tools"), "{prompt}");
    for part in [
        "\"name\":\"get_weather\"",
        "<tool_call>\n{\"name\":\"get_weather\",\"arguments\":{\"city\":\"b\"}}\n</tool_call>",
        "<tool_response>\nsun\n</tool_response>",
    ] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
}

#[tokio::test]
async fn without_a_parser_tools_are_refused() {
    let api = hyprstream_worker::server::ApiOptions {
        tool_calls: hyprstream_worker::server::ToolCallParser::None,
        ..Default::default()
    };
    let server = Server::with(Setup {
        api,
        ..Setup::default()
    })
    .await;
    let error = server.refused(CHAT, &body("a", &json!({})), 400).await;
    assert_eq!(error["param"], "tools");
}
