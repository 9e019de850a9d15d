//! What a client asks of `/v1/completions`.

use serde_json::{Value, json};

use crate::{
    error::ApiError,
    fields::{self, Fields},
    sampling::{self, MAX_CHOICES, MAX_LOGPROBS, Sampling},
    structured::{self, Structured},
};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 64;
/// Most choices over all prompts of one request.
const MAX_TOTAL_CHOICES: usize = 128;
/// Tokens to generate when the request does not say, as in the OpenAI API.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Longest prompt in tokens that is looked at; the engine has its own limit.
const MAX_PROMPT_TOKENS: usize = 1 << 20;

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
    /// Generate so many choices for each prompt and answer with the `n` likeliest.
    pub best_of: usize,
    /// What every answer must be, and the field that says so.
    pub structured: Option<(Structured, &'static str)>,
}

impl CompletionRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        Fields::read_body(body, Self::read)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        fields::schema(Self::read)
    }

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let prompt = fields.required("prompt", || prompt_schema(MAX_PROMPTS))?;
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS as i64)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        // Nothing but the prompt's own log-probabilities: how prompts are scored.
        let least = i64::from(!(echo || fields.describes()));
        let max_tokens = sampling::tokens(fields, "max_tokens", least)?;
        let sampling = Sampling::read(fields)?;
        let best_of = fields.integer("best_of", 1..=MAX_CHOICES as i64)?;
        let request = Self {
            model,
            prompts: prompts(prompt, "prompt", MAX_PROMPTS)?,
            max_tokens: max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            logprobs: logprobs.map(|count| count as usize),
            echo,
            best_of: best_of.map_or(sampling.n, |best_of| best_of as usize),
            structured: structured::read(fields)?,
            sampling,
        };
        request.check(fields)?;
        fields.only(
            "suffix",
            &[json!("")],
            "inserting text is not supported by this server",
        )?;
        Ok(request)
    }

    fn check(&self, fields: &Fields) -> Result<(), ApiError> {
        if self.prompts.len() * self.best_of.max(self.sampling.n) > MAX_TOTAL_CHOICES {
            let why = format!("times the number of prompts is more than {MAX_TOTAL_CHOICES}");
            return Err(fields.error("n", why));
        }
        if self.best_of < self.sampling.n {
            return Err(fields.error("best_of", "is less than n"));
        }
        if self.best_of > self.sampling.n && self.sampling.stream {
            return Err(fields.error("best_of", "the best is known only at the end of a stream"));
        }
        Ok(())
    }
}

/// Schema of a prompt in all its forms, or of up to `most`.
pub(crate) fn prompt_schema(most: usize) -> Value {
    let text = json!({"type": "string"});
    let ids = json!({"type": "array", "items": sampling::token_id_schema(),
        "minItems": 1, "maxItems": MAX_PROMPT_TOKENS});
    json!({"anyOf": [
        text, ids,
        {"type": "array", "items": {"anyOf": [text, ids]}, "minItems": 1, "maxItems": most},
    ]})
}

/// The prompts in `value`, the field `param`, up to `most`.
pub(crate) fn prompts(value: Value, param: &str, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || {
        ApiError::invalid(
            param,
            "must be a string, an array of strings, an array of token ids, or an array of such",
        )
    };
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid(param, "is empty"));
        }
        Value::Array(items) => items,
        _ => return Err(wrong()),
    };
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(token_ids(&items, param)?)]);
    }
    if items.len() > most {
        let why = format!("has more than {most} prompts");
        return Err(ApiError::invalid(param, why));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) => Ok(Prompt::Tokens(token_ids(&ids, param)?)),
            _ => Err(wrong()),
        })
        .collect()
}

fn token_ids(items: &[Value], param: &str) -> Result<Vec<u32>, ApiError> {
    if items.len() > MAX_PROMPT_TOKENS {
        let why = format!("has more than {MAX_PROMPT_TOKENS} tokens");
        return Err(ApiError::invalid(param, why).with_code("context_length_exceeded"));
    }
    items
        .iter()
        .map(|id| sampling::token_id(id, param))
        .collect()
}
