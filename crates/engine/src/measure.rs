//! Inner parts that an example measures one by one. No part of the interface.

use crate::{
    Constraint, SamplingParams,
    grammar::Matcher,
    sampling::{Allowed, Sampler, Scratch, Tell},
};

/// The choice of tokens.
#[derive(Debug)]
pub struct Sampling {
    sampler: Sampler,
    tell: Tell,
    scratch: Scratch,
}

impl Sampling {
    /// Chooses with `params`, and tells so many alternatives.
    pub fn new(params: SamplingParams, logprobs: Option<usize>) -> Self {
        Self {
            sampler: Sampler::new(params, &[]),
            tell: logprobs.map_or(Tell::Token, Tell::Logprobs),
            scratch: Scratch::default(),
        }
    }

    /// The next token.
    pub fn next(&mut self, logits: &mut [f32]) -> Option<u32> {
        let (grammar, scratch) = (None::<&mut Matcher>, &mut self.scratch);
        let sampled = self
            .sampler
            .sample(logits, &[], grammar, self.tell, scratch);
        sampled.ok().map(|sampled| sampled.token)
    }
}

/// The way through a grammar.
#[derive(Debug)]
pub struct Walk(Matcher);

impl Walk {
    /// At the beginning.
    pub fn new(constraint: &Constraint) -> Self {
        Self(constraint.start())
    }

    /// Finds out all that is allowed, and accepts `token`. Says whether that ended the text.
    ///
    /// # Errors
    /// It is not allowed.
    pub fn step(&mut self, token: u32) -> Result<bool, String> {
        self.0.mask().map_err(|error| error.to_string())?;
        self.0.accept(token).map_err(|error| error.to_string())
    }

    /// As [`Self::step`], but finds out only whether `token` is allowed.
    ///
    /// # Errors
    /// It is not allowed.
    pub fn step_one(&mut self, token: u32) -> Result<bool, String> {
        self.0.allows(token).map_err(|error| error.to_string())?;
        self.0.accept(token).map_err(|error| error.to_string())
    }
}
