//! What a client asks of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use crate::{
    chat::{Message, Role},
    error::ApiError,
    fields::{self, Fields},
    ignored::Ignored,
    sampling::{self, MAX_LOGPROBS, Sampling},
    structured::{self, Structured},
    tools::{self, Tool, ToolChoice},
};

/// Most messages of one request.
const MAX_MESSAGES: usize = 4096;
/// Most documents of one request.
const MAX_DOCUMENTS: usize = 64;
const ABSENT: &str = "is not supported by this server";
/// Efforts that the API knows.
pub(crate) const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// A request, read and checked as far as that is possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// Which model.
    pub model: String,
    /// The conversation and what else goes into the prompt.
    pub prompt: ChatPrompt,
    /// Most tokens to generate; `None` for what the context has room for.
    pub max_tokens: Option<u32>,
    /// How to choose tokens, when to stop, how to answer.
    pub sampling: Sampling,
    /// Log-probabilities of the tokens, with so many alternatives each.
    pub logprobs: Option<usize>,
    /// Whether tools are called.
    pub tool_choice: ToolChoice,
    /// Several calls in one answer are welcome.
    pub parallel_tool_calls: bool,
    /// What every answer must be, and the field that says so.
    pub structured: Option<(Structured, &'static str)>,
    /// Tell the thoughts of a model that thinks.
    pub include_reasoning: bool,
    /// What the messages hold beside.
    pub ignored: Ignored,
}

/// What a chat template makes a prompt of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatPrompt {
    /// The conversation; at least one message.
    pub messages: Vec<Message>,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Texts to answer from, each an object.
    pub documents: Vec<Value>,
    /// End the prompt with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// End the prompt within the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// Further variables of the template.
    pub template_kwargs: Map<String, Value>,
    /// How much to think.
    pub reasoning_effort: Option<&'static str>,
}

impl ChatRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let mut request = Self::read(&mut fields)?;
        request.ignored = fields.finish()?;
        Ok(request)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        fields::schema(Self::read)
    }

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let mut prompt = ChatPrompt::read(fields)?;
        let mut request = Self {
            model,
            max_tokens: max_tokens(fields)?,
            logprobs: logprobs(fields)?,
            tool_choice: tools::choice(fields, &mut prompt.tools)?,
            parallel_tool_calls: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            structured: structured::read(fields)?,
            include_reasoning: fields.boolean("include_reasoning")?.unwrap_or(true),
            sampling: Sampling::read(fields)?,
            prompt,
            ignored: Ignored::default(),
        };
        if request.tool_choice.is_forced() {
            // A response_format holds for text, of which there is none beside a forced call;
            // structured_outputs are about whatever is generated.
            let form = request
                .structured
                .take_if(|(_, name)| *name == "response_format");
            if form.is_none() && request.structured.is_some() {
                let why = "an answer cannot be of this form and a call of a tool as well";
                return Err(fields.error("structured_outputs", why));
            }
        }
        harmless(fields)?;
        absent(fields)?;
        Ok(request)
    }
}

impl ChatPrompt {
    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let messages = messages(fields)?;
        let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields.boolean("add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let why = "cannot be true together with add_generation_prompt";
            return Err(fields.error("continue_final_message", why));
        }
        let last = messages.last();
        if continue_final_message
            && last.is_none_or(|last| last.role != Role::Assistant || last.content.is_empty())
        {
            let why = "the last message must be a text of the assistant";
            return Err(fields.error("continue_final_message", why));
        }
        Ok(Self {
            tools: tools::tools(fields)?,
            documents: documents(fields)?,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            template_kwargs: template_kwargs(fields)?,
            reasoning_effort: fields.word("reasoning_effort", &EFFORTS)?,
            messages,
        })
    }
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let read = fields.each_past("messages", MAX_MESSAGES, Message::read)?;
    if fields.describes() {
        fields.require("messages");
        return Ok(Vec::new());
    }
    let messages = read.ok_or_else(|| fields.error("messages", "is required"))?;
    if messages.is_empty() {
        return Err(fields.error("messages", "must hold at least one message"));
    }
    Ok(messages)
}

fn documents(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let item = || json!({"type": "object"});
    let documents = fields
        .array("documents", MAX_DOCUMENTS, item)?
        .unwrap_or_default();
    if let Some(other) = documents.iter().find(|document| !document.is_object()) {
        return Err(fields.wrong("documents", "an array of objects", other));
    }
    for document in &documents {
        structured::check_schema(document, "documents")?;
    }
    Ok(documents)
}

/// Variables of chat templates that requests may set: they steer how a model thinks and speaks.
/// What a template is made of (`messages`, special tokens) is not among them, and a template of
/// one's own neither.
const KWARGS: [&str; 8] = [
    "date_string",
    "enable_thinking",
    "keep_thinking",
    "preserve_thinking",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
    "tools_in_user_message",
];
/// Longest text among them in bytes.
const MAX_KWARG_BYTES: usize = 256;

fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let name = "chat_template_kwargs";
    let schema = || {
        let any = json!({"type": ["boolean", "number", "string"], "maxLength": MAX_KWARG_BYTES});
        let properties: Map<String, Value> = KWARGS
            .iter()
            .map(|kwarg| ((*kwarg).to_owned(), any.clone()))
            .collect();
        json!({"type": "object", "properties": properties, "additionalProperties": false})
    };
    let map = match fields.take(name, schema) {
        None => return Ok(Map::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong(name, "an object", &other)),
    };
    for (key, value) in &map {
        let param = format!("{name}.{}", crate::excerpt(key));
        if !KWARGS.contains(&key.as_str()) {
            let why = format!("cannot be set; {} can", KWARGS.join(", "));
            return Err(ApiError::invalid(param, why));
        }
        let fits = match value {
            Value::Bool(_) | Value::Number(_) => true,
            Value::String(text) => text.len() <= MAX_KWARG_BYTES,
            _ => false,
        };
        if !fits {
            return Err(ApiError::invalid(
                param,
                "must be a boolean, a number or a short string",
            ));
        }
    }
    Ok(map)
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
pub(crate) fn harmless(fields: &mut Fields) -> Result<(), ApiError> {
    fields.object("metadata")?;
    for name in [
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ] {
        fields.string(name)?;
    }
    fields.only("service_tier", &[json!("auto"), json!("default")], ABSENT)
}

/// Fields of features that are not there, at values other than "without it".
fn absent(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only(
        "store",
        &[json!(false)],
        "answers are not stored by this server",
    )?;
    fields.only(
        "modalities",
        &[json!(["text"])],
        "only text is supported by this server",
    )?;
    fields.only("verbosity", &[json!("medium")], ABSENT)?;
    fields.only("functions", &[json!([])], "is replaced by tools")?;
    fields.only(
        "function_call",
        &[json!("none"), json!("auto")],
        "is replaced by tool_choice",
    )?;
    for name in ["audio", "chat_template", "prediction", "web_search_options"] {
        fields.refuse(name, ABSENT)?;
    }
    Ok(())
}
