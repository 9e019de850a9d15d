//! One message of a conversation.

use serde_json::Value;

use crate::{error::ApiError, fields::Fields};

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
}

impl Role {
    /// The name that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// The text; text parts are joined by a line break.
    pub content: String,
    /// Name of the speaker; templates may show it.
    pub name: Option<String>,
}

const NO_TOOLS: &str = "tool calls are not supported by this server";

impl Message {
    pub(super) fn read(value: Value, path: String) -> Result<Self, ApiError> {
        let mut fields = Fields::new(value, path)?;
        let role = match fields.string("role")?.as_deref() {
            None => return Err(fields.error("role", "is required")),
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool" | "function") => return Err(fields.error("role", NO_TOOLS)),
            Some(_) => {
                return Err(fields.error("role", "must be system, developer, user or assistant"));
            }
        };
        fields.only("tool_calls", &[Value::Array(Vec::new())], NO_TOOLS)?;
        fields.refuse("tool_call_id", NO_TOOLS)?;
        fields.refuse("function_call", NO_TOOLS)?;
        fields.refuse("audio", "audio is not supported by this server")?;
        // Answers of this API carry these two as null, and clients send answers back as they are.
        fields.refuse("refusal", "is not supported by this server")?;
        fields.only(
            "annotations",
            &[Value::Array(Vec::new())],
            "is not supported by this server",
        )?;
        let name = fields.string("name")?;
        let content = match fields.required("content")? {
            Value::String(text) => text,
            Value::Array(parts) => join(parts, &fields.name("content"))?,
            other => return Err(fields.wrong("content", "a string or an array of parts", &other)),
        };
        fields.finish()?;
        Ok(Self {
            role,
            content,
            name,
        })
    }
}

fn join(parts: Vec<Value>, path: &str) -> Result<String, ApiError> {
    if parts.is_empty() {
        return Err(ApiError::invalid(path, "has no parts"));
    }
    let texts = parts
        .into_iter()
        .enumerate()
        .map(|(index, part)| {
            let mut fields = Fields::new(part, format!("{path}[{index}]"))?;
            match fields.string("type")?.as_deref() {
                Some("text") => {}
                None => return Err(fields.error("type", "is required")),
                Some(_) => {
                    return Err(
                        fields.error("type", "only text parts are supported by this server")
                    );
                }
            }
            let text = fields
                .string("text")?
                .ok_or_else(|| fields.error("text", "is required"))?;
            fields.finish()?;
            Ok(text)
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    Ok(texts.join("\n"))
}
