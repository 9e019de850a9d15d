//! Items of the input, made messages of a conversation.

use serde_json::{Map, Value, json};

use crate::{
    chat::{Message, PastCall, Role, parse_arguments},
    error::ApiError,
    fields::Fields,
};

/// Most items of one request.
const MAX_ITEMS: usize = 4096;
const KINDS: [&str; 4] = [
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
];

/// The conversation of `input`: a text of the user, or items.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = match fields.required("input", schema)? {
        Value::String(text) => return Ok(vec![Message::new(Role::User, text)]),
        Value::Array(items) => items,
        other => return Err(fields.wrong("input", "a string or an array of items", &other)),
    };
    if items.is_empty() || items.len() > MAX_ITEMS {
        return Err(fields.error("input", format!("must have from 1 to {MAX_ITEMS} items")));
    }
    let mut messages = Vec::new();
    let mut thoughts = None;
    for (index, item) in items.into_iter().enumerate() {
        let mut item = Fields::past(item, format!("input[{index}]"))?;
        read(&mut item, &mut messages, &mut thoughts)?;
        fields.absorb(item)?;
    }
    if messages.is_empty() {
        return Err(fields.error("input", "holds no message"));
    }
    Ok(messages)
}

fn read(
    fields: &mut Fields,
    messages: &mut Vec<Message>,
    thoughts: &mut Option<String>,
) -> Result<(), ApiError> {
    let kind = fields.word("type", &KINDS)?.unwrap_or("message");
    // Items of earlier answers carry these.
    fields.string("id")?;
    fields.string("status")?;
    match kind {
        "function_call" => {
            let call_id = fields.required_string("call_id")?;
            let name = fields.required_string("name")?;
            let value = fields.required("arguments", || json!({"type": "string"}))?;
            let arguments = parse_arguments(value).ok_or_else(|| {
                fields.error("arguments", "must be an object of JSON in a string")
            })?;
            let call = PastCall {
                id: Some(call_id),
                name,
                arguments,
            };
            answer(messages, thoughts).tool_calls.push(call);
        }
        "function_call_output" => {
            let call_id = fields.required_string("call_id")?;
            let output = text(fields, "output")?;
            messages.push(Message {
                tool_call_id: Some(call_id),
                ..Message::new(Role::Tool, output)
            });
        }
        "reasoning" => {
            fields.take("summary", || json!({"type": "array"}));
            if fields.has("content") {
                *thoughts = Some(text(fields, "content")?);
            }
        }
        _ => {
            const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];
            let role = match fields.word("role", &ROLES)? {
                None => return Err(fields.error("role", "is required")),
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                Some(_) => Role::System,
            };
            let mut message = Message::new(role, text(fields, "content")?);
            if role == Role::Assistant {
                message.reasoning_content = thoughts.take();
            }
            messages.push(message);
        }
    }
    Ok(())
}

/// The message of the assistant to which a call belongs.
fn answer<'a>(messages: &'a mut Vec<Message>, thoughts: &mut Option<String>) -> &'a mut Message {
    if messages
        .last()
        .is_none_or(|last| last.role != Role::Assistant)
    {
        messages.push(Message {
            reasoning_content: thoughts.take(),
            ..Message::new(Role::Assistant, String::new())
        });
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

/// The text in the field `name`: a string, or parts that are joined by a line break.
fn text(fields: &mut Fields, name: &str) -> Result<String, ApiError> {
    let parts = match fields.required(name, || Value::Null)? {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(fields.wrong(name, "a string or an array of parts", &other)),
    };
    if parts.is_empty() {
        return Err(fields.error(name, "has no parts"));
    }
    let path = fields.name(name);
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = fields.child(part, format!("{path}[{index}]"))?;
        let kinds = ["input_text", "output_text", "text", "reasoning_text"];
        let name = match part.string("type")?.as_deref() {
            Some(kind) if kinds.contains(&kind) => "text",
            // What a model of another server said instead of an answer.
            Some("refusal") => "refusal",
            _ => return Err(part.error("type", "only parts of text are supported by this server")),
        };
        texts.push(part.required_string(name)?);
        // Answers of this API carry them.
        part.without("annotations", &json!([]));
        let _ = part.array("logprobs", usize::MAX, || Value::Null)?;
        fields.absorb(part)?;
    }
    Ok(texts.join("\n"))
}

fn schema() -> Value {
    let string = json!({"type": "string"});
    let kinds = json!(["input_text", "output_text", "text", "reasoning_text"]);
    let part = json!({
        "type": "object",
        "properties": {"type": {"enum": kinds}, "text": string, "logprobs": {"type": ["array", "null"]}},
        "required": ["type", "text"],
        "additionalProperties": true,
    });
    let refusal = json!({
        "type": "object",
        "properties": {"type": {"enum": ["refusal"]}, "refusal": string},
        "required": ["type", "refusal"],
        "additionalProperties": true,
    });
    let part = json!({"anyOf": [part, refusal]});
    let text = json!({"anyOf": [string, {"type": "array", "items": part, "minItems": 1}]});
    let object = |kind: Option<&str>, mut own: Map<String, Value>, required: &[&str]| {
        let nullable = json!({"type": ["string", "null"]});
        own.insert("id".to_owned(), nullable.clone());
        own.insert("status".to_owned(), nullable);
        let mut required: Vec<&str> = required.to_vec();
        match kind {
            Some(kind) => {
                own.insert("type".to_owned(), json!({"enum": [kind]}));
                required.push("type");
            }
            None => {
                own.insert("type".to_owned(), json!({"enum": ["message", null]}));
            }
        }
        json!({"type": "object", "properties": own, "required": required,
            "additionalProperties": true})
    };
    let own = |value: Value| value.as_object().cloned().unwrap_or_default();
    let message = own(
        json!({"role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": text}),
    );
    let call = own(json!({"call_id": string, "name": string, "arguments": string}));
    let output = own(json!({"call_id": string, "output": text}));
    let thoughts = own(json!({"summary": {"type": ["array", "null"]}, "content": text}));
    let items = json!([
        object(None, message, &["role", "content"]),
        object(
            Some("function_call"),
            call,
            &["call_id", "name", "arguments"]
        ),
        object(Some("function_call_output"), output, &["call_id", "output"]),
        object(Some("reasoning"), thoughts, &[]),
    ]);
    json!({"anyOf": [string, {"type": "array", "items": {"anyOf": items}, "minItems": 1,
        "maxItems": MAX_ITEMS}]})
}
