//! What the engine's thread tells about a request.

use std::time::Duration;

use super::error::GenerationError;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it, or a stop rule of the request did.
    Stop,
    /// It reached its greatest length.
    Length,
}

impl FinishReason {
    /// The word that the OpenAI API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// The log-probability of one token, natural logarithm, before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens at its position, likeliest first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that the prefix cache held, and that were not computed again.
    pub cached_tokens: usize,
    /// Tokens generated so far, those not shown included.
    pub completion_tokens: usize,
    /// Sum of the log-probabilities of the tokens generated so far, as [`TokenLogprobs`] has
    /// them; `None` unless log-probabilities or a ranking was asked for.
    pub cumulative_logprob: Option<f64>,
    /// From submission to the first step.
    pub queue_time: Duration,
    /// From the first step to the first token.
    pub prefill_time: Duration,
    /// From the first to the latest token.
    pub decode_time: Duration,
    /// Why it ended, once it has.
    pub finish_reason: Option<FinishReason>,
}

impl Stats {
    /// From submission to the first token.
    pub fn time_to_first_token(&self) -> Duration {
        self.queue_time + self.prefill_time
    }

    /// From submission to the latest token.
    pub fn elapsed(&self) -> Duration {
        self.time_to_first_token() + self.decode_time
    }
}

/// One message to the holder of a stream.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(crate) stats: Stats,
    /// Set in the last event.
    pub(crate) end: Option<Result<FinishReason, GenerationError>>,
}
