//! What a client asks of `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::{
    chat::Message,
    error::ApiError,
    fields::Fields,
    sampling::{self, MAX_LOGPROBS, Sampling},
};

/// Most messages of one request.
const MAX_MESSAGES: usize = 4096;
const ABSENT: &str = "is not supported by this server";

/// A request, read and checked as far as that is possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// Which model.
    pub model: String,
    /// The conversation; at least one message.
    pub messages: Vec<Message>,
    /// Most tokens to generate; `None` for what the context has room for.
    pub max_tokens: Option<u32>,
    /// How to choose tokens, when to stop, how to answer.
    pub sampling: Sampling,
    /// Log-probabilities of the tokens, with so many alternatives each.
    pub logprobs: Option<usize>,
    /// End the prompt with the beginning of an answer.
    pub add_generation_prompt: bool,
}

impl ChatRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let request = Self {
            model: fields
                .string("model")?
                .ok_or_else(|| fields.error("model", "is required"))?,
            messages: messages(&mut fields)?,
            max_tokens: max_tokens(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            sampling: Sampling::read(&mut fields)?,
        };
        sampling::common_extras(&mut fields)?;
        harmless(&mut fields)?;
        absent(&mut fields)?;
        fields.finish()?;
        Ok(request)
    }
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = fields
        .array("messages")?
        .ok_or_else(|| fields.error("messages", "is required"))?;
    if items.is_empty() {
        return Err(fields.error("messages", "must hold at least one message"));
    }
    if items.len() > MAX_MESSAGES {
        return Err(fields.error("messages", format!("has more than {MAX_MESSAGES} messages")));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| Message::read(item, format!("messages[{index}]")))
        .collect()
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let old = sampling::tokens(fields, "max_tokens", 1)?;
    let new = sampling::tokens(fields, "max_completion_tokens", 1)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(fields.error(
            "max_tokens",
            "differs from max_completion_tokens, its newer name; set one",
        )),
        (old, new) => Ok(new.or(old)),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS as i64)?;
    match (wanted, top) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(fields.error("top_logprobs", "is allowed only with logprobs: true"))
        }
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}

/// Fields by which a client organises itself and which change nothing about an answer.
fn harmless(fields: &mut Fields) -> Result<(), ApiError> {
    fields.object("metadata")?;
    for name in [
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ] {
        fields.string(name)?;
    }
    // Nothing to be parallel without tools, and tools are refused.
    fields.boolean("parallel_tool_calls")?;
    Ok(())
}

/// Fields of features that are not there, at values other than "without it".
fn absent(fields: &mut Fields) -> Result<(), ApiError> {
    let empty = json!([]);
    fields.only(
        "store",
        &[json!(false)],
        "answers are not stored by this server",
    )?;
    fields.only("service_tier", &[json!("auto"), json!("default")], ABSENT)?;
    fields.only(
        "modalities",
        &[json!(["text"])],
        "only text is supported by this server",
    )?;
    fields.only("verbosity", &[json!("medium")], ABSENT)?;
    fields.only(
        "tools",
        std::slice::from_ref(&empty),
        "tool calls are not supported by this server",
    )?;
    fields.only(
        "tool_choice",
        &[json!("none"), json!("auto")],
        "there are no tools to choose from",
    )?;
    fields.only(
        "functions",
        &[empty],
        "function calls are not supported by this server",
    )?;
    fields.only(
        "function_call",
        &[json!("none"), json!("auto")],
        "there are no functions to call",
    )?;
    fields.only(
        "response_format",
        &[json!({"type": "text"})],
        "only {\"type\": \"text\"} is supported by this server",
    )?;
    fields.only(
        "chat_template_kwargs",
        &[Value::Object(serde_json::Map::new())],
        ABSENT,
    )?;
    fields.only("continue_final_message", &[json!(false)], ABSENT)?;
    for name in [
        "audio",
        "chat_template",
        "documents",
        "prediction",
        "reasoning_effort",
        "web_search_options",
    ] {
        fields.refuse(name, ABSENT)?;
    }
    Ok(())
}
