//! One sequence of tokens on its way through the model.

use std::sync::Arc;

use crate::{
    AdapterId, LogitsWanted, SequenceStep,
    cache::{BlockList, Chain, Scope},
};

/// A prompt with what was generated after it.
#[derive(Debug)]
pub(crate) struct Sequence<T> {
    /// Prompt and answer so far; never empty.
    pub(crate) tokens: Vec<u32>,
    /// How many of `tokens` are in the cache. Invariant: fewer than all of them between steps.
    pub(crate) computed: usize,
    /// What is wanted from the model.
    pub(crate) output: Output,
    /// Who may share its cache; `None` for nobody.
    pub(crate) scope: Option<Arc<Scope>>,
    /// Adapters that it runs with, and their scales. They are part of `scope`.
    pub(crate) adapters: Vec<(AdapterId, f32)>,
    /// Lower runs earlier.
    pub(crate) priority: i32,
    /// Tokens that the prefix cache had when it was first let in; `None` before that.
    pub(crate) cached: Option<usize>,
    /// What the engine keeps with it.
    pub(crate) of: T,
    pub(super) blocks: BlockList,
    /// Of `tokens` in `scope`; grows with what is published.
    pub(super) chain: Chain,
    pub(super) order: Order,
    /// Tokens of the step that is being planned.
    pub(super) share: usize,
}

/// What the model is to give for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// The logits after the last token.
    Next,
    /// The logits of every position from this one on; earlier ones were taken.
    Logits(usize),
    /// The hidden state of every position from this one on; earlier ones were taken.
    Hidden(usize),
}

/// Who comes first: the lower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    /// The step of its arrival, earlier or later by its priority.
    pub(super) due: i64,
    /// Number of its arrival.
    pub(super) number: u64,
}

impl<T> Sequence<T> {
    pub(crate) fn new(prompt: Vec<u32>, of: T) -> Self {
        Self {
            tokens: prompt,
            computed: 0,
            output: Output::Next,
            scope: None,
            adapters: Vec::new(),
            priority: 0,
            cached: None,
            of,
            blocks: BlockList::default(),
            chain: Chain::default(),
            order: Order::default(),
            share: 0,
        }
    }

    /// Tokens that are not in the cache yet.
    pub(crate) fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens that may come from the prefix cache: what is wanted of later ones is computed, and
    /// of the last one something always is.
    pub(super) fn sharable(&self) -> usize {
        let wanted_from = match self.output {
            Output::Next => usize::MAX,
            Output::Logits(from) | Output::Hidden(from) => from,
        };
        wanted_from.min(self.tokens.len() - 1)
    }

    /// What the backend is told of the next `tokens` tokens.
    pub(super) fn step(&self, tokens: usize, block_size: usize) -> SequenceStep {
        let (from, to) = (self.computed, self.computed + tokens);
        let logits = match self.output {
            Output::Next if to == self.tokens.len() => LogitsWanted::Last,
            Output::Logits(wanted) if to > wanted => LogitsWanted::All,
            Output::Hidden(wanted) if to > wanted => LogitsWanted::Hidden,
            _ => LogitsWanted::None,
        };
        SequenceStep {
            tokens: self.tokens[from..to].to_vec(),
            position: from,
            blocks: self.blocks.ids()[..to.div_ceil(block_size)].to_vec(),
            logits,
            adapters: self.adapters.clone(),
        }
    }
}
