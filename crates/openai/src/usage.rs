//! Token counts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a request cost, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt, special ones included.
    pub prompt_tokens: u64,
    /// Tokens generated over all choices, the ending ones included.
    pub completion_tokens: u64,
    /// Sum of both.
    pub total_tokens: u64,
    /// What the prompt's tokens were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// How long it took, with `include_timings`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// What the prompt's tokens were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Tokens that were not computed again, since another request had begun with them.
    pub cached_tokens: u64,
}

/// How long a request took; with several choices the longest of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timings {
    /// From acceptance to the first step.
    pub queue_seconds: f64,
    /// From the first step to the first token.
    pub prefill_seconds: f64,
    /// From the first to the last token.
    pub decode_seconds: f64,
    /// From acceptance to the first token.
    pub time_to_first_token_seconds: f64,
}

impl Usage {
    /// Counts of `prompt_tokens` and `completion_tokens`.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: None,
            timings: None,
        }
    }
}
