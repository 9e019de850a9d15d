//! What a client asks of `/v1/responses`.

use serde_json::{Map, Value, json};

use super::input;
use crate::{
    chat::{ChatPrompt, EFFORTS, Message, Role, harmless},
    error::ApiError,
    fields::{self, Fields},
    ignored::Ignored,
    sampling::{self, MAX_LOGPROBS, Sampling},
    structured::{self, Structured},
    tools::{self, MAX_TOOLS, ToolChoice},
};

const NOT_STORED: &str = "answers are not stored by this server: send the whole conversation";
/// What can be included in an answer.
const LOGPROBS: &str = "message.output_text.logprobs";
/// Most entries of `include`.
const MAX_INCLUDED: usize = 16;
const ABSENT: &str = "is not supported by this server";

/// A request, read and checked as far as that is possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseRequest {
    /// Which model.
    pub model: String,
    /// The conversation, instructions included, and the tools.
    pub prompt: ChatPrompt,
    /// Most tokens to generate; `None` for what the context has room for.
    pub max_output_tokens: Option<u32>,
    /// How to choose tokens, when to stop, how to answer.
    pub sampling: Sampling,
    /// Whether tools are called.
    pub tool_choice: ToolChoice,
    /// Several calls in one answer are welcome.
    pub parallel_tool_calls: bool,
    /// What the answer must be.
    pub structured: Option<Structured>,
    /// Log-probabilities of the tokens of texts, with so many alternatives each.
    pub logprobs: Option<usize>,
    /// Leave the oldest turns of a conversation out that is too long.
    pub truncate: bool,
    /// Fields that the answer repeats, as they were sent.
    pub repeated: Map<String, Value>,
    /// What the items hold beside.
    pub ignored: Ignored,
}

impl ResponseRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let repeated = [
            "frequency_penalty",
            "instructions",
            "max_output_tokens",
            "metadata",
            "parallel_tool_calls",
            "presence_penalty",
            "prompt_cache_key",
            "reasoning",
            "safety_identifier",
            "text",
            "tool_choice",
            "tools",
            "top_logprobs",
            "truncation",
            "user",
        ];
        let repeated = fields.copy(&repeated);
        let mut request = Self::read(&mut fields)?;
        request.ignored = fields.finish()?;
        request.repeated = repeated;
        Ok(request)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        fields::schema(Self::read)
    }

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let mut messages = input::messages(fields)?;
        if let Some(instructions) = fields.string("instructions")? {
            messages.insert(0, Message::new(Role::System, instructions));
        }
        let tools = fields.each("tools", MAX_TOOLS, |tool| {
            if tool.word("type", &["function"])?.is_none() && !tool.describes() {
                return Err(tool.error("type", "is required"));
            }
            tools::function(tool)
        })?;
        let mut tools = tools::distinct(fields, tools.unwrap_or_default())?;
        let tool_choice = tools::choice(fields, &mut tools)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let structured = fields.nested("text", |text| {
            text.only("verbosity", &[json!("medium")], ABSENT)?;
            Ok(text.nested("format", structured::text_format)?.flatten())
        })?;
        // The form holds for text, of which there is none beside a forced call.
        let structured = structured.flatten().filter(|_| !tool_choice.is_forced());
        let effort = fields.nested("reasoning", |reasoning| {
            reasoning.only("summary", &[json!("auto")], "thoughts are told as they are")?;
            reasoning.refuse("generate_summary", ABSENT)?;
            reasoning.word("effort", &EFFORTS)
        })?;
        let request = Self {
            model,
            max_output_tokens: sampling::tokens(fields, "max_output_tokens", 1)?,
            parallel_tool_calls: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            sampling: Sampling {
                stream,
                ..Sampling::read_common(fields)?
            },
            prompt: ChatPrompt {
                messages,
                tools,
                add_generation_prompt: true,
                reasoning_effort: effort.flatten(),
                ..ChatPrompt::default()
            },
            logprobs: logprobs(fields)?,
            truncate: fields.word("truncation", &["auto", "disabled"])? == Some("auto"),
            tool_choice,
            structured,
            repeated: Map::new(),
            ignored: Ignored::default(),
        };
        if request.sampling.prompt_logprobs.is_some() {
            return Err(fields.error("prompt_logprobs", "is told by /v1/completions only"));
        }
        harmless(fields)?;
        absent(fields)?;
        Ok(request)
    }
}

/// What `include` and `top_logprobs` ask for.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let item = || json!({"enum": [LOGPROBS]});
    let include = fields.array("include", MAX_INCLUDED, item)?;
    let include = include.unwrap_or_default();
    if include.iter().any(|what| what != LOGPROBS) {
        let why = format!("can be {LOGPROBS} only: there is nothing else to include");
        return Err(fields.error("include", why));
    }
    match fields.integer("top_logprobs", 0..=MAX_LOGPROBS as i64)? {
        Some(1..) if include.is_empty() => {
            let why = format!("is allowed only with {LOGPROBS} in include");
            Err(fields.error("top_logprobs", why))
        }
        top => Ok((!include.is_empty()).then_some(top.unwrap_or(0) as usize)),
    }
}

/// Fields of features that are not there, at values other than "without it".
fn absent(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("store", &[json!(false)], NOT_STORED)?;
    fields.only("background", &[json!(false)], NOT_STORED)?;
    for name in ["previous_response_id", "conversation"] {
        fields.refuse(name, NOT_STORED)?;
    }
    fields.only(
        "stream_options",
        &[json!({}), json!({"include_obfuscation": false})],
        ABSENT,
    )?;
    for name in ["max_tool_calls", "prompt"] {
        fields.refuse(name, ABSENT)?;
    }
    Ok(())
}
