//! `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{chat::ChatRequest, error::ApiError, fields::Fields, sampling};

/// What a client asks of `/tokenize`.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeRequest {
    /// The tokens of a text.
    Text {
        /// Which model.
        model: Option<String>,
        /// The text.
        prompt: String,
        /// Add what the tokenizer puts before and after a text.
        add_special_tokens: bool,
    },
    /// The tokens of a conversation as the chat template renders it.
    Chat(Box<ChatRequest>),
}

impl TokenizeRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let Some(prompt) = fields.string("prompt")? else {
            return Ok(Self::Chat(Box::new(ChatRequest::from_json(body)?)));
        };
        let request = Self::Text {
            prompt,
            model: fields.string("model")?,
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true),
        };
        fields.finish()?;
        Ok(request)
    }
}

/// Answer of `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeResponse {
    /// How many tokens.
    pub count: usize,
    /// Longest prompt plus answer in tokens.
    pub max_model_len: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
}

/// What a client asks of `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// Which model.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = fields.string("model")?;
        let tokens: Vec<Value> = fields
            .array("tokens")?
            .ok_or_else(|| fields.error("tokens", "is required"))?;
        let tokens = tokens
            .iter()
            .map(|id| sampling::token_id(id, "tokens"))
            .collect::<Result<_, _>>()?;
        fields.finish()?;
        Ok(Self { model, tokens })
    }
}

/// Answer of `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
