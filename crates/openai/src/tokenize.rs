//! `/tokenize` and `/detokenize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    chat::ChatRequest,
    error::ApiError,
    fields::{self, Fields},
    sampling,
};

/// Most tokens of one request.
const MAX_TOKENS: usize = 1 << 20;

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
        /// Tell the text of each token.
        return_token_strs: bool,
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
        if !Fields::from_body(body)?.has("prompt") {
            return Ok(Self::Chat(Box::new(ChatRequest::from_json(body)?)));
        }
        Fields::read_body(body, Self::read_text)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        json!({"anyOf": [fields::schema(Self::read_text), ChatRequest::schema()]})
    }

    fn read_text(fields: &mut Fields) -> Result<Self, ApiError> {
        Ok(Self::Text {
            prompt: fields.required_string("prompt")?,
            model: fields.string("model")?,
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true),
            return_token_strs: fields.boolean("return_token_strs")?.unwrap_or(false),
        })
    }
}

/// Answer of `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenizeResponse {
    /// How many tokens.
    pub count: usize,
    /// Longest prompt plus answer in tokens.
    pub max_model_len: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Their texts, if asked for, invalid UTF-8 replaced.
    pub token_strs: Option<Vec<String>>,
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
        Fields::read_body(body, Self::read)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        fields::schema(Self::read)
    }

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.string("model")?;
        let read = fields.array("tokens", MAX_TOKENS, sampling::token_id_schema)?;
        fields.require("tokens");
        let tokens = match read {
            Some(tokens) => tokens,
            None if fields.describes() => Vec::new(),
            None => return Err(fields.error("tokens", "is required")),
        };
        let tokens = tokens
            .iter()
            .map(|id| sampling::token_id(id, "tokens"))
            .collect::<Result<_, _>>()?;
        Ok(Self { model, tokens })
    }
}

/// Answer of `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
