//! `/v1/embeddings`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    adapters::{self, AdapterRequest},
    completion::{self, Prompt},
    error::ApiError,
    fields::{self, Fields},
};

/// Most texts of one request, as in the OpenAI API.
const MAX_INPUTS: usize = 2048;
/// Most dimensions that are looked at; only the model's own number is accepted.
const MAX_DIMENSIONS: i64 = 1 << 20;

/// What a client asks of `/v1/embeddings`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingRequest {
    /// Which model.
    pub model: String,
    /// Adapters to embed with, in this order.
    pub adapters: Vec<AdapterRequest>,
    /// What to embed.
    pub inputs: Vec<Prompt>,
    /// Numbers or base64 of little-endian f32.
    pub base64: bool,
    /// Numbers that are expected.
    pub dimensions: Option<usize>,
    /// How the hidden states of the tokens become one vector.
    pub pooling: Pooling,
    /// Scale the vector to length 1.
    pub normalize: bool,
    /// Add what the tokenizer puts before and after a text.
    pub add_special_tokens: bool,
}

/// How the hidden states of the tokens become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token: what a model that reads from left to right has gathered.
    #[default]
    Last,
    /// The mean over all tokens.
    Mean,
}

impl EmbeddingRequest {
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
        let input = fields.required("input", || completion::prompt_schema(MAX_INPUTS))?;
        fields.string("user")?;
        Ok(Self {
            model,
            adapters: adapters::read(fields)?,
            inputs: completion::prompts(input, "input", MAX_INPUTS)?,
            base64: fields.word("encoding_format", &["float", "base64"])? == Some("base64"),
            dimensions: fields
                .integer("dimensions", 1..=MAX_DIMENSIONS)?
                .map(|dimensions| dimensions as usize),
            pooling: match fields.word("pooling", &["last", "mean"])? {
                Some("mean") => Pooling::Mean,
                _ => Pooling::Last,
            },
            normalize: fields.boolean("normalize")?.unwrap_or(true),
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true),
        })
    }
}

/// Answer of `/v1/embeddings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingList {
    /// Always `list`.
    pub object: String,
    /// One entry an input, in their order.
    pub data: Vec<Embedding>,
    /// The model as the request named it.
    pub model: String,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// What an answer of `/v1/embeddings` cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingUsage {
    /// Tokens of all inputs.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

/// The vector of one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embedding {
    /// Which input, from 0.
    pub index: u32,
    /// Always `embedding`.
    pub object: String,
    /// The vector.
    pub embedding: Vector,
}

/// A vector on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Vector {
    /// Its numbers.
    Float(Vec<f32>),
    /// Base64 of its numbers as little-endian f32.
    Base64(String),
}
