//! Requests whose prompts no cache has seen.

use hyprstream_engine::{Request, SamplingParams, StopRules};

/// Makes prompts of random tokens.
pub(super) struct Prompts {
    random: fastrand::Rng,
    vocab_size: u32,
}

impl Prompts {
    /// Prompts over a vocabulary; the same seed gives the same prompts.
    pub(super) fn new(vocab_size: usize, seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            vocab_size: vocab_size as u32,
        }
    }

    /// So many tokens that begin like no other prompt.
    pub(super) fn unique(&mut self, tokens: usize) -> Vec<u32> {
        (0..tokens)
            .map(|_| self.random.u32(0..self.vocab_size))
            .collect()
    }
}

/// A greedy request for exactly `gen_tokens` tokens behind `prompt`.
pub(super) fn request(prompt: Vec<u32>, gen_tokens: usize) -> Request {
    Request {
        prompt,
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        stop: StopRules {
            max_tokens: Some(gen_tokens),
            ignore_eos: true,
            ..StopRules::default()
        },
        ..Request::default()
    }
}
