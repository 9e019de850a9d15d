//! What a client of the engine asks for.

use std::sync::Arc;

use super::{adapter::Adapter, shared::Shared};
use crate::{
    grammar::Constraint,
    sampling::{InvalidParams, SamplingParams},
    text::Aside,
};

/// A prompt and how to continue it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens to continue; at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// When to end.
    pub stop: StopRules,
    /// Tell log-probabilities, with so many alternatives each.
    pub logprobs: Option<usize>,
    /// Tell the log-probabilities of the prompt's own tokens, with so many alternatives each, in
    /// the first piece. Every position is computed then, whatever the prefix cache holds.
    pub prompt_logprobs: Option<usize>,
    /// Sum up the log-probabilities of the answer in [`crate::Stats::cumulative_logprob`], so
    /// that answers can be compared.
    pub rank: bool,
    /// Show special tokens in the text.
    pub show_special_tokens: bool,
    /// Adapters of this engine and by what each is multiplied, from -10 to 10. Their changes are
    /// summed; 0 is the model without.
    pub adapters: Vec<(Adapter, f32)>,
    /// What the text must look like.
    pub constraint: Option<Constraint>,
    /// Lower runs earlier; requests of the same priority run in the order of arrival. Waiting
    /// long outweighs any priority. Beyond 100, up or down, it counts as 100.
    pub priority: i32,
    /// Only requests of the same salt share cached prefixes: nobody else can find out from the
    /// time to the first token what a prompt was.
    pub cache_salt: Option<Arc<str>>,
}

/// How the hidden states of all positions of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last position.
    Last,
}

/// When an answer ends.
#[derive(Clone, Debug, Default)]
pub struct StopRules {
    /// Most tokens; `None` for what the context has room for. None at all is allowed when the
    /// log-probabilities of the prompt are wanted.
    pub max_tokens: Option<usize>,
    /// The answer does not end by itself or by a stop rule before so many tokens.
    pub min_tokens: usize,
    /// End before one of these texts; none of them empty.
    pub strings: Vec<String>,
    /// Where those texts are not looked for.
    pub aside: Option<Aside>,
    /// End at one of these tokens, which is not shown.
    pub tokens: Vec<u32>,
    /// Show the stop text that ended the answer.
    pub include_string: bool,
    /// Go on after the model's own ending.
    pub ignore_eos: bool,
}

/// A request that cannot be run, whatever the load.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRequest {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, but prompt and answer together may have {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens of prompt and answer.
        limit: usize,
    },
    /// Prompt and answer would be too long together.
    #[error(
        "the prompt has {tokens} tokens and max_tokens is {max_tokens}, but together they may be {limit}"
    )]
    AnswerTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Most tokens of prompt and answer.
        limit: usize,
    },
    /// No answer can be so short and so long.
    #[error("min_tokens is {min_tokens}, but max_tokens is {max_tokens}")]
    MinAboveMax {
        /// Least.
        min_tokens: usize,
        /// Most.
        max_tokens: usize,
    },
    /// Nothing can be generated into no room.
    #[error("max_tokens is 0")]
    NoAnswer,
    /// The prompt or a stop rule names a token that the model does not have.
    #[error("{name} names the token {token}, but the model has {vocab_size} tokens")]
    UnknownToken {
        /// Where.
        name: &'static str,
        /// The id.
        token: u32,
        /// Tokens that there are.
        vocab_size: usize,
    },
    /// An empty stop text would end every answer.
    #[error("a stop text is empty")]
    EmptyStopString,
    /// The backend gives no hidden states.
    #[error("the model as loaded gives no embeddings")]
    NoEmbeddings,
    /// Requests of a group continue the same prompt.
    #[error("the requests of a group have different prompts")]
    MixedGroup,
    /// There is no request in a group.
    #[error("a group has no requests")]
    EmptyGroup,
    /// What one client wants at once is more than the queue has room for.
    #[error("{requests} answers are wanted at once, but at most {limit} can wait")]
    GroupTooLarge {
        /// Answers that are wanted.
        requests: usize,
        /// Most that can wait.
        limit: usize,
    },
    /// An adapter is attached to another engine.
    #[error("an adapter is not attached to this engine")]
    ForeignAdapter,
    /// An adapter is to be multiplied by too much, or by no number.
    #[error("an adapter's scale is {scale}, but it must be from -{MAX_SCALE} to {MAX_SCALE}")]
    AdapterScale {
        /// What was asked for.
        scale: f32,
    },
    /// A sampling parameter is out of its range.
    #[error(transparent)]
    Sampling(#[from] InvalidParams),
}

/// Most that an adapter may be multiplied by, in either direction.
pub(crate) const MAX_SCALE: f32 = 10.0;

/// What is left of `adapters` without those of scale 0.
///
/// # Errors
/// A scale is too large or no number, or one is not of the engine of `shared`.
pub(crate) fn stack_of(
    mut adapters: Vec<(Adapter, f32)>,
    shared: &Arc<Shared>,
) -> Result<Vec<(Adapter, f32)>, InvalidRequest> {
    for (adapter, scale) in &adapters {
        if !(-MAX_SCALE..=MAX_SCALE).contains(scale) {
            return Err(InvalidRequest::AdapterScale { scale: *scale });
        }
        if !adapter.is_of(shared) {
            return Err(InvalidRequest::ForeignAdapter);
        }
    }
    adapters.retain(|(_, scale)| *scale != 0.0);
    Ok(adapters)
}

impl Request {
    /// Checks the request and says how many tokens it may generate at most.
    pub(crate) fn validate(
        &self,
        vocab_size: usize,
        max_len: usize,
    ) -> Result<usize, InvalidRequest> {
        let tokens = self.prompt.len();
        if tokens == 0 {
            return Err(InvalidRequest::EmptyPrompt);
        }
        let scores_only = self.stop.max_tokens == Some(0) && self.prompt_logprobs.is_some();
        if tokens + usize::from(!scores_only) > max_len {
            return Err(InvalidRequest::PromptTooLong {
                tokens,
                limit: max_len,
            });
        }
        let max_tokens = self.stop.max_tokens.unwrap_or(max_len - tokens);
        if max_tokens == 0 && !scores_only {
            return Err(InvalidRequest::NoAnswer);
        }
        if max_tokens > max_len - tokens {
            return Err(InvalidRequest::AnswerTooLong {
                tokens,
                max_tokens,
                limit: max_len,
            });
        }
        if self.stop.min_tokens > max_tokens {
            let min_tokens = self.stop.min_tokens;
            return Err(InvalidRequest::MinAboveMax {
                min_tokens,
                max_tokens,
            });
        }
        known_tokens("prompt", &self.prompt, vocab_size)?;
        known_tokens("stop_token_ids", &self.stop.tokens, vocab_size)?;
        if self.stop.strings.iter().any(String::is_empty) {
            return Err(InvalidRequest::EmptyStopString);
        }
        self.sampling.validate(vocab_size)?;
        Ok(max_tokens)
    }
}

/// Refuses tokens that the model does not have.
pub(crate) fn known_tokens(
    name: &'static str,
    tokens: &[u32],
    vocab_size: usize,
) -> Result<(), InvalidRequest> {
    match tokens.iter().find(|token| **token as usize >= vocab_size) {
        None => Ok(()),
        Some(&token) => Err(InvalidRequest::UnknownToken {
            name,
            token,
            vocab_size,
        }),
    }
}
