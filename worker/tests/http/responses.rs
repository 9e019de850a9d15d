use serde_json::{Value, json};

use crate::server::{Server, Setup};

const RESPONSES: &str = "/v1/responses";

async fn parrot() -> Server {
    Server::with(Setup {
        parrot: true,
        ..Setup::default()
    })
    .await
}

/// The events of a stream of this API: named, and without a `[DONE]`.
async fn events(server: &Server, body: &Value) -> Vec<Value> {
    let text = server.post(RESPONSES, body).await.text().await.unwrap();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    blocks
        .map(|block| {
            let (name, data) = block.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(
                name.strip_prefix("event: ").unwrap(),
                data["type"].as_str().unwrap()
            );
            data
        })
        .collect()
}

#[tokio::test]
async fn an_answer_has_the_shape_of_the_api() {
    let server = parrot().await;
    let ask = json!({"model": "fake", "input": "say hello", "instructions": "be brief",
        "temperature": 0, "store": false});
    let answer = server.ask(RESPONSES, &ask).await;
    assert_eq!(
        (&answer["object"], &answer["status"]),
        (&json!("response"), &json!("completed"))
    );
    let item = &answer["output"][0];
    assert_eq!(
        (&item["type"], &item["role"]),
        (&json!("message"), &json!("assistant"))
    );
    assert_eq!(
        item["content"],
        json!([{"type": "output_text", "text": "hello",
        "annotations": [], "logprobs": []}])
    );
    // "he", "ll", "o" and the end.
    assert_eq!(answer["usage"]["output_tokens"], 4);
    assert_eq!(answer["instructions"], "be brief");
    let cut = json!({"model": "fake", "input": "say hello", "max_output_tokens": 2});
    let answer = server.ask(RESPONSES, &cut).await;
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(answer["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn a_stream_tells_of_every_item_and_adds_up() {
    let server = parrot().await;
    let ask = json!({"model": "fake", "input": [{"role": "user", "content": [
        {"type": "input_text", "text": "say héllo"}]}], "stream": true});
    let events = events(&server, &ask).await;
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    assert_eq!(
        kinds[kinds.len() - 4..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    assert_eq!(text, "héllo");
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], "héllo");
    assert!(last["usage"]["total_tokens"].as_u64().unwrap() > 7);
}

#[tokio::test]
async fn thoughts_and_calls_are_items_of_their_own() {
    let server = Server::with(Setup {
        parrot: true,
        template: "{# <think> #}{% if tools %}<tool_call>{% endif %}{% for m in messages %}\
            {{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant: ",
        ..Setup::default()
    })
    .await;
    let say =
        r#"say <think>hm</think>ok<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>"#;
    let ask = json!({"model": "fake", "input": say, "stream": true,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]});
    let events = events(&server, &ask).await;
    let last = &events.last().unwrap()["response"];
    let kinds: Vec<&Value> = last["output"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["type"])
        .collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"], "{last}");
    assert_eq!(last["output"][0]["content"][0]["text"], "hm");
    assert_eq!(last["output"][2]["arguments"], r#"{"a": 1}"#);
    let arguments: String = events
        .iter()
        .filter(|event| event["type"] == "response.function_call_arguments.delta")
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    assert_eq!(arguments, r#"{"a": 1}"#);
    // The same through the chat API.
    let chat = json!({"model": "fake", "messages": [{"role": "user", "content": say}],
        "tools": [{"type": "function", "function": {"name": "f"}}]});
    let answer = server.ask("/v1/chat/completions", &chat).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "hm");
    assert_eq!(message["content"], "ok");
    assert_eq!(message["tool_calls"][0]["function"]["name"], "f");
    let mut silent = chat.clone();
    silent["include_reasoning"] = false.into();
    let answer = server.ask("/v1/chat/completions", &silent).await;
    assert!(
        answer["choices"][0]["message"]
            .get("reasoning_content")
            .is_none()
    );
}

#[tokio::test]
async fn what_would_need_storage_is_refused() {
    let server = Server::start().await;
    for (extra, param) in [
        (json!({"store": true}), "store"),
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"background": true}), "background"),
    ] {
        let mut ask = json!({"model": "fake", "input": "a"});
        for (name, value) in extra.as_object().unwrap() {
            ask[name] = value.clone();
        }
        let error = server.refused(RESPONSES, &ask, 400).await;
        assert_eq!(error["param"], param);
    }
}
