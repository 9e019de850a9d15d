//! Answers of `/v1/completions`, whole and in pieces.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Usage,
    chat::{PromptLogprobs, nullable},
};

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completion {
    /// Names this answer.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model as the request named it.
    pub model: String,
    /// The answers, ordered by index: `n` for the first prompt, `n` for the second, and so on.
    pub choices: Vec<CompletionChoice>,
    /// Token counts over all prompts and choices.
    pub usage: Usage,
    /// What answered: the commit.
    pub system_fingerprint: Option<String>,
}

/// One answer, or in a stream what a piece adds to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionChoice {
    /// From 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Of every token, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended: `stop` or `length`; null in a stream before the end.
    pub finish_reason: Option<String>,
    /// Of the prompt's tokens, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// One piece of a streamed answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionChunk {
    /// The same in all pieces of an answer.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model as the request named it.
    pub model: String,
    /// One choice, or none in the piece that carries the usage.
    pub choices: Vec<CompletionChoice>,
    /// With `include_usage`: null, and the counts in the last piece. Otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nullable")]
    #[schemars(with = "Option<Usage>")]
    pub usage: Option<Option<Usage>>,
    /// What answered: the commit.
    pub system_fingerprint: Option<String>,
}

/// Log-probabilities in the older form: columns instead of rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// Text of every token; of a part of a character `bytes:\\xNN`, with every byte.
    pub tokens: Vec<String>,
    /// Natural logarithm of every token's probability.
    pub token_logprobs: Vec<Option<f32>>,
    /// Of every position the likeliest tokens, likeliest first. Of two with the same text the second
    /// is called `token_id:N`.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where every token begins, in characters from the beginning of the text.
    pub text_offset: Vec<usize>,
}
