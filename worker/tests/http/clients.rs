//! What clients that people use send, and what they look for in answers and errors.

use hyprstream_engine::fake::{self, FakeOptions};
use serde_json::{Value, json};

use crate::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";

async fn parrot() -> Server {
    Server::with(Setup {
        parrot: true,
        ..Setup::default()
    })
    .await
}

#[tokio::test]
async fn what_is_too_long_says_so_in_the_words_that_clients_look_for() {
    let server = Server::start().await;
    let long = "x ".repeat(12_000);
    let far_too_long = "x".repeat(200_000);
    let ids = vec![70; 12_001];
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    for (path, ask, param) in [
        (CHAT, json!({"messages": user(&long)}), "messages"),
        (CHAT, json!({"messages": user(&far_too_long)}), "messages"),
        (
            CHAT,
            json!({"messages": user("a"), "max_tokens": 12_000}),
            "max_tokens",
        ),
        (COMPLETIONS, json!({"prompt": long}), "prompt"),
        (COMPLETIONS, json!({"prompt": ids}), "prompt"),
        (RESPONSES, json!({"input": long}), "input"),
        (RESPONSES, json!({"input": far_too_long}), "input"),
        ("/v1/embeddings", json!({"input": long}), "input"),
        ("/v1/embeddings", json!({"input": ["a", ids]}), "input"),
    ] {
        let mut ask = ask;
        ask["model"] = "fake".into();
        let error = server.refused(path, &ask, 400).await;
        assert_eq!(error["code"], "context_length_exceeded", "{path} {error}");
        assert_eq!(error["param"], param, "{path} {error}");
        let message = error["message"].as_str().unwrap();
        let words = "this model's maximum context length is 12000 tokens";
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn a_full_queue_is_a_rate_limit() {
    let server = Server::with(Setup {
        fake: FakeOptions {
            step_time: std::time::Duration::from_millis(20),
            ..FakeOptions::default()
        },
        max_queue: 1,
        ..Setup::default()
    })
    .await;
    let ask = json!({"model": "fake", "prompt": "a", "max_tokens": 20, "n": 1});
    let answers = (0..60).map(|_| server.post(COMPLETIONS, &ask));
    let answers = futures::future::join_all(answers).await;
    let refused = answers.into_iter().find(|answer| answer.status() == 429);
    let refused = refused.expect("a queue of one takes no sixty");
    assert!(refused.headers().contains_key("retry-after"));
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["code"], "rate_limit_exceeded");
    assert_eq!(error["error"]["type"], "rate_limit_error");
}

#[tokio::test]
async fn a_history_is_taken_as_clients_keep_it_and_the_answer_says_what_was_read_over() {
    let server = parrot().await;
    let past = json!({"role": "assistant", "content": "a", "provider_specific_fields": {"x": 1}});
    let messages = json!([{"role": "user", "content": "say a"}, past,
        {"role": "user", "content": "say b"}]);
    for stream in [false, true] {
        let ask = json!({"model": "fake", "messages": messages, "stream": stream});
        let answer = server.post(CHAT, &ask).await;
        assert_eq!(answer.status(), 200);
        let told = &answer.headers()["x-hyprstream-ignored"];
        assert_eq!(told, "messages.provider_specific_fields");
        let ask = json!({"model": "fake", "input": messages, "stream": stream});
        let answer = server.post(RESPONSES, &ask).await;
        assert_eq!(answer.status(), 200);
        let told = &answer.headers()["x-hyprstream-ignored"];
        assert_eq!(told, "input.provider_specific_fields");
    }
    let ask = json!({"model": "fake", "messages": messages});
    let counted = server.post("/tokenize", &ask).await;
    assert!(counted.headers().contains_key("x-hyprstream-ignored"));
    let plain = json!({"model": "fake", "messages": [{"role": "user", "content": "say a"}]});
    let answer = server.post(CHAT, &plain).await;
    assert!(!answer.headers().contains_key("x-hyprstream-ignored"));
}

#[tokio::test]
async fn a_call_is_forced_among_the_tools_that_are_allowed() {
    let server = Server::with(Setup {
        template: "{% if tools %}<tool_call>{{ tools|tojson }}{% endif %}{% for m in messages %}\
            {{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant: ",
        ..Setup::default()
    })
    .await;
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}}})
    };
    let allowed = json!([{"type": "function", "function": {"name": "g"}}]);
    let ask = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}],
        "tools": [tool("f"), tool("g")], "parallel_tool_calls": false,
        "response_format": {"type": "json_object"},
        "tool_choice": {"type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": allowed}}});
    let answer = server.ask(CHAT, &ask).await;
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "g", "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let flat = |name: &str| {
        let mut tool = tool(name)["function"].clone();
        tool["type"] = "function".into();
        tool
    };
    let ask = json!({"model": "fake", "input": "a", "tools": [flat("f"), flat("g")],
        "parallel_tool_calls": false, "text": {"format": {"type": "json_object"}},
        "tool_choice": {"type": "allowed_tools", "mode": "required",
            "tools": [{"type": "function", "name": "g"}]}});
    let answer = server.ask(RESPONSES, &ask).await;
    assert_eq!(answer["output"][0]["name"], "g", "{answer}");
    assert_eq!(answer["tools"].as_array().unwrap().len(), 2);
    assert_eq!(answer["tool_choice"]["type"], "allowed_tools");
}

#[tokio::test]
async fn logprobs_of_a_response_are_those_of_its_text() {
    let server = parrot().await;
    let ask = json!({"model": "fake", "input": "say h\u{e9}llo", "top_logprobs": 2,
        "include": ["message.output_text.logprobs"]});
    let answer = server.ask(RESPONSES, &ask).await;
    let part = &answer["output"][0]["content"][0];
    let told = part["logprobs"].as_array().unwrap();
    let bytes: Vec<u8> = told
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert!(bytes.starts_with("h\u{e9}llo".as_bytes()), "{part}");
    assert_eq!(told[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(answer["top_logprobs"], 2);
    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    let text = server
        .post(RESPONSES, &streamed)
        .await
        .text()
        .await
        .unwrap();
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events.map(|e| serde_json::from_str(e).unwrap()).collect();
    let deltas = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .flat_map(|event| event["logprobs"].as_array().unwrap());
    let count = deltas.count();
    let done = events
        .iter()
        .find(|event| event["type"] == "response.output_text.done")
        .unwrap();
    assert_eq!(done["logprobs"].as_array().unwrap().len(), count);
    assert!(count >= 4, "{count}");
}

#[tokio::test]
async fn a_conversation_that_is_too_long_loses_its_oldest_turns_where_that_is_asked_for() {
    let server = parrot().await;
    let turn = |text: &str| {
        [
            json!({"role": "user", "content": text}),
            json!({"role": "assistant", "content": "ok"}),
        ]
    };
    let filler = "x ".repeat(1000);
    let mut items: Vec<Value> = (0..20).flat_map(|_| turn(&filler)).collect();
    items.push(json!({"role": "user", "content": "say yes"}));
    let ask = json!({"model": "fake", "input": items, "instructions": "be kind",
        "max_output_tokens": 100});
    let error = server.refused(RESPONSES, &ask, 400).await;
    assert_eq!(error["code"], "context_length_exceeded");
    let mut auto = ask.clone();
    auto["truncation"] = "auto".into();
    let answer = server.ask(RESPONSES, &auto).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "yes");
    assert_eq!(answer["truncation"], "auto");
    let tokens = answer["usage"]["input_tokens"].as_u64().unwrap();
    // As little as possible was left out, and there is room for the answer.
    assert!((9_000..=11_900).contains(&tokens), "{tokens}");
    // What cannot be left out is too long all the same.
    auto["input"] = json!("x ".repeat(12_000));
    let error = server.refused(RESPONSES, &auto, 400).await;
    assert_eq!(error["code"], "context_length_exceeded");
}

#[tokio::test]
async fn json_is_spaced_as_the_client_says() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": [2]}},
        "required": ["a", "b"], "additionalProperties": false});
    let compact = r#"{"a":1,"b":2}"#;
    for (pattern, spaces) in [("", 0), ("_", 3)] {
        let ask = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}],
            "structured_outputs": {"json": schema, "whitespace_pattern": pattern}});
        let answer = server.ask(CHAT, &ask).await;
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(text.replace('_', ""), compact);
        assert!(text.matches('_').count() >= spaces, "{text}");
    }
    let ask = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}],
        "structured_outputs": {"json": schema, "whitespace_pattern": "("}});
    let error = server.refused(CHAT, &ask, 400).await;
    assert_eq!(error["code"], "invalid_grammar", "{error}");
}

#[tokio::test]
async fn offsets_lie_within_the_text_and_names_of_tokens_are_distinct() {
    let server = parrot().await;
    let ask = json!({"model": "fake", "prompt": "say a\u{20ac}b", "max_tokens": 40, "logprobs": 5,
        "temperature": 0});
    for extra in [
        json!({}),
        json!({"echo": true}),
        json!({"stop": ["b"]}),
        json!({"skip_special_tokens": false}),
    ] {
        let mut ask = ask.clone();
        for (name, value) in extra.as_object().unwrap() {
            ask[name] = value.clone();
        }
        let answer = server.ask(COMPLETIONS, &ask).await;
        let choice = &answer["choices"][0];
        let chars = choice["text"].as_str().unwrap().chars().count();
        let told = &choice["logprobs"];
        let offsets: Vec<usize> = serde_json::from_value(told["text_offset"].clone()).unwrap();
        assert!(offsets.is_sorted(), "{extra} {told}");
        assert!(
            offsets.iter().all(|offset| *offset <= chars),
            "{extra} {choice}"
        );
        for top in told["top_logprobs"].as_array().unwrap() {
            assert!(
                top.is_null() || top.as_object().unwrap().len() >= 5,
                "{top}"
            );
        }
        ask["stream"] = true.into();
        let events = server.events(COMPLETIONS, &ask).await;
        let streamed = events
            .iter()
            .filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array())
            .flatten();
        let streamed: Vec<usize> = streamed.map(|at| at.as_u64().unwrap() as usize).collect();
        assert_eq!(streamed, offsets, "{extra}");
    }
}

#[tokio::test]
async fn two_thousand_texts_are_embedded_in_one_request_and_others_get_their_turn() {
    let server = Server::with(Setup {
        fake: FakeOptions {
            step_time: std::time::Duration::from_millis(2),
            ..FakeOptions::default()
        },
        // Far fewer than the inputs.
        max_queue: 40,
        ..Setup::default()
    })
    .await;
    let texts: Vec<String> = (0..2048).map(|n| format!("text {n}")).collect();
    let many = json!({"model": "fake", "input": texts, "normalize": false});
    let one = json!({"model": "fake", "prompt": "a", "max_tokens": 1});
    let embedded = server.ask("/v1/embeddings", &many);
    tokio::pin!(embedded);
    let mut between = 0;
    let answer = loop {
        tokio::select! {
            answer = &mut embedded => break answer,
            _ = server.ask(COMPLETIONS, &one) => between += 1,
        }
    };
    assert!(between > 3, "{between}");
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 2048);
    let tokens = fake::tokenizer().encode("text 2047", true).unwrap();
    let expected: Vec<f64> = fake::hidden(&tokens)
        .iter()
        .map(|x| f64::from(*x))
        .collect();
    assert_eq!(data[2047]["embedding"], json!(expected));
    for (input, code) in [
        (json!(vec!["a"; 2049]), Value::Null),
        (
            json!(vec![vec![70; 1000]; 301]),
            json!("max_tokens_per_request"),
        ),
    ] {
        let ask = json!({"model": "fake", "input": input});
        let error = server.refused("/v1/embeddings", &ask, 400).await;
        assert_eq!((&error["param"], &error["code"]), (&json!("input"), &code));
    }
}
