//! One message of a conversation.

use serde_json::{Map, Value, json};

use crate::{error::ApiError, fields::Fields};

/// Most calls of one message.
const MAX_CALLS: usize = 128;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions. `developer`, the newer name of the API for the same, is read as this, since
    /// it is the role that chat templates know.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

impl Role {
    /// The name that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// The text; text parts are joined by a line break. Empty where the message has none.
    pub content: String,
    /// Name of the speaker; templates may show it.
    pub name: Option<String>,
    /// Calls that the assistant made.
    pub tool_calls: Vec<PastCall>,
    /// The call of which this is the result.
    pub tool_call_id: Option<String>,
    /// What the assistant thought; templates may show it.
    pub reasoning_content: Option<String>,
}

/// A call in the conversation so far.
#[derive(Clone, Debug, PartialEq)]
pub struct PastCall {
    /// Its id.
    pub id: Option<String>,
    /// Name of the tool.
    pub name: String,
    /// Its arguments, as an object: templates write it as JSON in their own way.
    pub arguments: Map<String, Value>,
}

impl Message {
    /// A message without calls.
    pub fn new(role: Role, content: String) -> Self {
        Self {
            role,
            content,
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning_content: None,
        }
    }

    pub(super) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
        let role = match fields.word("role", &ROLES)? {
            None if fields.describes() => Role::User,
            None => return Err(fields.error("role", "is required")),
            Some("system" | "developer") => Role::System,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            Some(_) => Role::User,
        };
        fields.refuse("function_call", "is replaced by tool_calls")?;
        fields.refuse("audio", "audio is not supported by this server")?;
        // Answers of this API carry it, and clients send answers back as they are.
        fields.without("annotations", &json!([]));
        // Where a model of another server refused, that is what it said.
        let refusal = match role {
            Role::Assistant if !fields.has("content") => fields.string("refusal")?,
            _ => None,
        };
        let tool_calls = fields
            .each("tool_calls", MAX_CALLS, past_call)?
            .unwrap_or_default();
        let tool_call_id = fields.string("tool_call_id")?;
        let mut reasoning_content = fields.string("reasoning_content")?;
        // vLLM's and OpenRouter's name for it; as an object or list it is something else.
        if reasoning_content.is_none() && role == Role::Assistant && fields.has_string("reasoning")
        {
            reasoning_content = fields.string("reasoning")?;
        }
        let misplaced = [
            ("tool_calls", Role::Assistant, !tool_calls.is_empty()),
            ("tool_call_id", Role::Tool, tool_call_id.is_some()),
            (
                "reasoning_content",
                Role::Assistant,
                reasoning_content.is_some(),
            ),
        ];
        for (name, owner, there) in misplaced {
            if there && role != owner {
                let why = format!(
                    "is allowed only in a message of the role {}",
                    owner.as_str()
                );
                return Err(fields.error(name, why));
            }
        }
        if role == Role::Tool && tool_call_id.is_none() {
            return Err(fields.error("tool_call_id", "is required in a message of the role tool"));
        }
        let name = fields.string("name")?;
        let content = match fields.take("content", content_schema) {
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => join(fields, parts)?,
            Some(other) => {
                return Err(fields.wrong("content", "a string or an array of parts", &other));
            }
            None if fields.describes() || !tool_calls.is_empty() => String::new(),
            // An answer that was cut within its thoughts, or that was a refusal.
            None if reasoning_content.is_some() || refusal.is_some() => refusal.unwrap_or_default(),
            None => return Err(fields.error("content", "is required")),
        };
        Ok(Self {
            role,
            content,
            name,
            tool_calls,
            tool_call_id,
            reasoning_content,
        })
    }
}

fn past_call(fields: &mut Fields) -> Result<PastCall, ApiError> {
    fields.only("type", &[json!("function")], "must be function")?;
    let id = fields.string("id")?;
    // Pieces of a streamed answer carry it, and some clients leave it in.
    fields.integer("index", 0..=i64::from(u32::MAX))?;
    let called = fields.nested("function", |function| {
        let name = function.required_string("name")?;
        let arguments = function.take("arguments", || json!({"type": ["string", "object"]}));
        Ok((
            name,
            arguments.map_or(Ok(Map::new()), |value| arguments_of(function, value))?,
        ))
    })?;
    match called {
        Some((name, arguments)) => Ok(PastCall {
            id,
            name,
            arguments,
        }),
        None if fields.describes() => Ok(PastCall {
            id,
            name: String::new(),
            arguments: Map::new(),
        }),
        None => Err(fields.error("function", "is required")),
    }
}

fn arguments_of(fields: &Fields, value: Value) -> Result<Map<String, Value>, ApiError> {
    parse_arguments(value).ok_or_else(|| {
        fields.error(
            "arguments",
            "must be an object of JSON, as a string or as such",
        )
    })
}

/// The arguments of a call, written as JSON in a string or as such.
pub(crate) fn parse_arguments(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        Value::String(text) if text.trim().is_empty() => Some(Map::new()),
        Value::String(text) => serde_json::from_str(&text).ok(),
        _ => None,
    }
}

fn content_schema() -> Value {
    let string = json!({"type": "string"});
    let part = |kind: &str| {
        json!({
            "type": "object",
            "properties": {"type": {"enum": [kind]}, kind: string},
            "required": ["type", kind],
            "additionalProperties": true,
        })
    };
    let part = json!({"anyOf": [part("text"), part("refusal")]});
    json!({"anyOf": [string, {"type": "array", "items": part, "minItems": 1}]})
}

/// The texts of the parts of a message's content.
fn join(message: &mut Fields, parts: Vec<Value>) -> Result<String, ApiError> {
    let path = message.name("content");
    if parts.is_empty() {
        return Err(ApiError::invalid(path, "has no parts"));
    }
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let mut fields = message.child(part, format!("{path}[{index}]"))?;
        let name = match fields.string("type")?.as_deref() {
            Some("text") => "text",
            // So the client keeps what a model of another server said instead of an answer.
            Some("refusal") => "refusal",
            None => return Err(fields.error("type", "is required")),
            Some(_) => {
                return Err(fields.error("type", "only text parts are supported by this server"));
            }
        };
        let text = fields.string(name)?;
        texts.push(text.ok_or_else(|| fields.error(name, "is required"))?);
        message.absorb(fields)?;
    }
    Ok(texts.join("\n"))
}
