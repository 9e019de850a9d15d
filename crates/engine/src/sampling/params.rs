//! How a request wants its tokens chosen.

use std::sync::Arc;

/// How to choose tokens. The default is plain sampling from the model's distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 always takes the likeliest token (the lowest id among equals).
    pub temperature: f32,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Drop tokens less likely than this fraction of the likeliest; 0 drops none.
    pub min_p: f32,
    /// Keep the tokens whose information is nearest to the expected one (locally typical
    /// sampling), until they reach this probability; 1 keeps all.
    pub typical_p: f32,
    /// Makes the choice reproducible, whatever else is in the batch; `None` picks one by chance.
    pub seed: Option<u64>,
    /// Divides (or multiplies, where negative) the logits of tokens of prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens of the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens of the answer once for each time; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// No other tokens are chosen. The model's ending is among them only if it is named.
    pub allowed_tokens: Option<Arc<[u32]>>,
    /// Sequences of tokens that are never completed.
    pub bad_words: Vec<Vec<u32>>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            seed: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_tokens: None,
            bad_words: Vec::new(),
        }
    }
}

/// A parameter has a value that no sampler can honour.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidParams {
    /// A number is not finite or out of its range.
    #[error("{name} cannot be {value}")]
    OutOfRange {
        /// Name of the parameter.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// A list that leaves nothing to choose, or forbids nothing, is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A token id that the model does not have.
    #[error("{name} names the token {token}, but the model has {vocab_size} tokens")]
    UnknownToken {
        /// Name of the parameter.
        name: &'static str,
        /// The id.
        token: u32,
        /// Tokens that there are.
        vocab_size: usize,
    },
}

impl SamplingParams {
    /// Whether every token that is possible keeps its share.
    pub(crate) fn cuts_nothing(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p == 0.0 && self.typical_p >= 1.0
    }

    /// Checks every value against its range and every token against `vocab_size`.
    ///
    /// # Errors
    /// The first value that is out of range, by name.
    pub fn validate(&self, vocab_size: usize) -> Result<(), InvalidParams> {
        let ranges = [
            ("temperature", self.temperature, 0.0..=1e6),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("typical_p", self.typical_p, f32::MIN_POSITIVE..=1.0),
            (
                "repetition_penalty",
                self.repetition_penalty,
                f32::MIN_POSITIVE..=1e6,
            ),
            ("presence_penalty", self.presence_penalty, -1e6..=1e6),
            ("frequency_penalty", self.frequency_penalty, -1e6..=1e6),
        ];
        for (name, value, range) in ranges {
            // NaN is in no range.
            if !range.contains(&value) {
                return Err(InvalidParams::OutOfRange { name, value });
            }
        }
        for &(token, value) in &self.logit_bias {
            let name = "logit_bias";
            if token as usize >= vocab_size {
                return Err(InvalidParams::UnknownToken {
                    name,
                    token,
                    vocab_size,
                });
            }
            if !value.is_finite() {
                return Err(InvalidParams::OutOfRange { name, value });
            }
        }
        let allowed = self.allowed_tokens.as_deref();
        if allowed.is_some_and(<[u32]>::is_empty) {
            return Err(InvalidParams::Empty("allowed_token_ids"));
        }
        if self.bad_words.iter().any(Vec::is_empty) {
            return Err(InvalidParams::Empty("bad_words"));
        }
        let named = allowed
            .into_iter()
            .flatten()
            .map(|t| ("allowed_token_ids", t));
        let bad = self.bad_words.iter().flatten().map(|t| ("bad_words", t));
        for (name, &token) in named.chain(bad) {
            if token as usize >= vocab_size {
                return Err(InvalidParams::UnknownToken {
                    name,
                    token,
                    vocab_size,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let default = SamplingParams::default;
        let named = |params: SamplingParams| match params.validate(10) {
            Err(
                InvalidParams::OutOfRange { name, .. }
                | InvalidParams::UnknownToken { name, .. }
                | InvalidParams::Empty(name),
            ) => name,
            Ok(()) => "",
        };
        assert_eq!(named(default()), "");
        for (params, name) in [
            (
                SamplingParams {
                    temperature: -1.0,
                    ..default()
                },
                "temperature",
            ),
            (
                SamplingParams {
                    top_p: 0.0,
                    ..default()
                },
                "top_p",
            ),
            (
                SamplingParams {
                    min_p: f32::NAN,
                    ..default()
                },
                "min_p",
            ),
            (
                SamplingParams {
                    typical_p: 0.0,
                    ..default()
                },
                "typical_p",
            ),
            (
                SamplingParams {
                    typical_p: 1.1,
                    ..default()
                },
                "typical_p",
            ),
            (
                SamplingParams {
                    repetition_penalty: 0.0,
                    ..default()
                },
                "repetition_penalty",
            ),
            (
                SamplingParams {
                    logit_bias: vec![(10, 0.0)],
                    ..default()
                },
                "logit_bias",
            ),
            (
                SamplingParams {
                    logit_bias: vec![(1, f32::INFINITY)],
                    ..default()
                },
                "logit_bias",
            ),
            (
                SamplingParams {
                    allowed_tokens: Some([].into()),
                    ..default()
                },
                "allowed_token_ids",
            ),
            (
                SamplingParams {
                    allowed_tokens: Some([10].into()),
                    ..default()
                },
                "allowed_token_ids",
            ),
            (
                SamplingParams {
                    bad_words: vec![vec![]],
                    ..default()
                },
                "bad_words",
            ),
            (
                SamplingParams {
                    bad_words: vec![vec![1, 10]],
                    ..default()
                },
                "bad_words",
            ),
        ] {
            assert_eq!(named(params), name);
        }
    }
}
