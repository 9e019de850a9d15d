//! One sequence of tokens on its way through the model.

use crate::BlockId;

/// A prompt with what was generated after it.
#[derive(Debug)]
pub(crate) struct Sequence<T> {
    /// Prompt and answer so far; never empty.
    pub(crate) tokens: Vec<u32>,
    /// How many of `tokens` are in the cache. Invariant: fewer than all of them between steps.
    pub(crate) computed: usize,
    /// Cache blocks in order of position.
    pub(crate) blocks: Vec<BlockId>,
    /// What the engine keeps with it.
    pub(crate) of: T,
}

impl<T> Sequence<T> {
    pub(crate) fn new(prompt: Vec<u32>, of: T) -> Self {
        Self {
            tokens: prompt,
            computed: 0,
            blocks: Vec::new(),
            of,
        }
    }

    /// Tokens that are not in the cache yet.
    pub(crate) fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }
}
