//! What a client asks of `/v1/completions`.

use serde_json::{Value, json};

use crate::{
    error::ApiError,
    fields::Fields,
    sampling::{self, MAX_LOGPROBS, Sampling},
};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 64;
/// Most choices over all prompts of one request.
const MAX_TOTAL_CHOICES: usize = 128;
/// Tokens to generate when the request does not say, as in the OpenAI API.
const DEFAULT_MAX_TOKENS: u32 = 16;
const ABSENT: &str = "is not supported by this server";

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text. Special tokens written in it are read as such: this is the raw interface.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// A request, read and checked as far as that is possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// Which model.
    pub model: String,
    /// What to continue, 1 to 64 of them; each gets `n` choices.
    pub prompts: Vec<Prompt>,
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// How to choose tokens, when to stop, how to answer.
    pub sampling: Sampling,
    /// Log-probabilities of the tokens, with so many alternatives each.
    pub logprobs: Option<usize>,
    /// Begin the answer with the prompt.
    pub echo: bool,
}

impl CompletionRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = fields
            .string("model")?
            .ok_or_else(|| fields.error("model", "is required"))?;
        let prompt = fields.required("prompt")?;
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS as i64)?;
        let request = Self {
            model,
            prompts: prompts(prompt)?,
            max_tokens: sampling::tokens(&mut fields, "max_tokens", 1)?
                .unwrap_or(DEFAULT_MAX_TOKENS),
            logprobs: logprobs.map(|count| count as usize),
            echo: fields.boolean("echo")?.unwrap_or(false),
            sampling: Sampling::read(&mut fields)?,
        };
        if request.prompts.len() * request.sampling.n > MAX_TOTAL_CHOICES {
            let why = format!("times the number of prompts is more than {MAX_TOTAL_CHOICES}");
            return Err(fields.error("n", why));
        }
        if request.echo && request.logprobs.is_some() {
            return Err(fields.error("echo", "together with logprobs is not supported yet"));
        }
        let n = request.sampling.n;
        fields.only(
            "best_of",
            &[json!(n)],
            "must be n: choosing among more is not supported",
        )?;
        fields.only(
            "suffix",
            &[json!("")],
            "inserting text is not supported by this server",
        )?;
        fields.refuse("response_format", ABSENT)?;
        sampling::common_extras(&mut fields)?;
        fields.finish()?;
        Ok(request)
    }
}

fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || {
        ApiError::invalid(
            "prompt",
            "must be a string, an array of strings, an array of token ids, or an array of such",
        )
    };
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid("prompt", "is empty"));
        }
        Value::Array(items) => items,
        _ => return Err(wrong()),
    };
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(token_ids(&items)?)]);
    }
    if items.len() > MAX_PROMPTS {
        let why = format!("has more than {MAX_PROMPTS} prompts");
        return Err(ApiError::invalid("prompt", why));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) => Ok(Prompt::Tokens(token_ids(&ids)?)),
            _ => Err(wrong()),
        })
        .collect()
}

fn token_ids(items: &[Value]) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .map(|id| sampling::token_id(id, "prompt"))
        .collect()
}
