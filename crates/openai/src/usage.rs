//! Token counts.

use serde::{Deserialize, Serialize};

/// What a request cost, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, special ones included.
    pub prompt_tokens: u64,
    /// Tokens generated over all choices, the ending ones included.
    pub completion_tokens: u64,
    /// Sum of both.
    pub total_tokens: u64,
}

impl Usage {
    /// Counts of `prompt_tokens` and `completion_tokens`.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}
