//! The narrow interface between the engine and what computes: one step over a mixed batch.
//!
//! The engine decides what runs (which tokens of which sequences, which cache blocks they own);
//! the backend only computes and stores keys and values where it is told. It knows nothing of
//! requests, sampling, text or time.

use std::{any::Any, fmt};

/// Index of a cache block, from 0 to [`ModelSpec::num_blocks`] - 1.
pub type BlockId = u32;

/// Names an attached adapter. A name is never given twice while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(u64);

impl AdapterId {
    /// The name of this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }
}

/// A low-rank adapter as one backend wants it, made off the engine's thread.
pub struct PackedAdapter {
    content: Box<dyn Any + Send>,
    bytes: u64,
}

impl PackedAdapter {
    /// `content`, which takes `bytes` bytes of memory.
    pub fn new(content: impl Any + Send, bytes: u64) -> Self {
        Self {
            content: Box::new(content),
            bytes,
        }
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The content.
    ///
    /// # Errors
    /// [`BackendError::Step`]: it was packed for another kind of backend.
    pub fn take<T: Any>(self) -> Result<T, BackendError> {
        let content = self.content.downcast();
        content.map(|content| *content).map_err(|_| {
            BackendError::Step("the adapter was packed for another kind of backend".to_owned())
        })
    }
}

impl fmt::Debug for PackedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedAdapter")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// What runs a model. Owned by the engine's thread; never called from two threads at once.
pub trait Backend: Send {
    /// Facts about the loaded model. They do not change.
    fn spec(&self) -> &ModelSpec;

    /// Runs every sequence of `batch` through the model and returns the logits that were asked
    /// for, in f32, row after row: sequences in the order of the batch, positions ascending
    /// within a sequence; in the same order the hidden states of the sequences that want those.
    /// The caller may overwrite the rows.
    ///
    /// Keys and values of position `p` are stored at block `blocks[p / block_size]`, slot
    /// `p % block_size`. All positions before [`SequenceStep::position`] were stored by earlier
    /// steps (of this sequence or, with a shared prefix, of another). A block that is written in
    /// a step belongs to one sequence alone; a block that several share is full and is never
    /// written again. A result must not depend on what
    /// else is in the batch.
    ///
    /// # Errors
    /// After [`BackendError::Step`] the backend is sound and other requests go on; what the step
    /// wrote counts as lost. After [`BackendError::Fatal`] it is not called again.
    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError>;

    /// Takes an adapter, which later steps may name. It must be quick: what takes time is done
    /// when it is packed.
    ///
    /// # Errors
    /// [`BackendError::Step`] when it is not taken; nothing has changed then.
    fn attach(&mut self, id: AdapterId, adapter: PackedAdapter) -> Result<(), BackendError> {
        let _ = (id, adapter);
        Err(BackendError::Step(
            "this backend computes no adapters".to_owned(),
        ))
    }

    /// Gives up an adapter, which no later step names.
    fn detach(&mut self, id: AdapterId) {
        let _ = id;
    }
}

/// Facts about a loaded model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name of the architecture as in `config.json`, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Length of a row of logits. It may be more than the tokenizer knows (padding).
    pub vocab_size: usize,
    /// Longest sequence that the model was made for, in tokens (`max_position_embeddings`), or
    /// the smaller limit that the backend was loaded with.
    pub max_positions: usize,
    /// Tokens in one cache block.
    pub block_size: usize,
    /// Cache blocks that the backend has allocated.
    pub num_blocks: usize,
    /// Type in which the model computes: `float32`, `bfloat16`, `float16`.
    pub dtype: String,
    /// Where it computes: `cpu`, `cuda:0`.
    pub device: String,
    /// Length of a row of hidden states; 0 when the backend gives none.
    pub hidden_size: usize,
    /// How the weights are held: `none` (as `dtype`), `int8`, `int4`.
    pub quantization: String,
    /// Which kernels compute: `aten`, `avx512bf16`.
    pub kernels: String,
    /// Bytes of weights in memory, mapped files included.
    pub weight_bytes: u64,
    /// Bytes of the key and value cache.
    pub kv_cache_bytes: u64,
}

/// One step: some prompts or pieces of prompts, and the next token of running sequences, mixed.
#[derive(Clone, Debug, Default)]
pub struct StepBatch {
    /// Sequences; never empty, each at most once.
    pub sequences: Vec<SequenceStep>,
}

impl StepBatch {
    /// Tokens that the step computes.
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.tokens.len()).sum()
    }

    /// Rows of logits that the step returns.
    pub fn num_rows(&self) -> usize {
        self.sequences.iter().map(SequenceStep::num_rows).sum()
    }

    /// Rows of hidden states that the step returns.
    pub fn num_hidden_rows(&self) -> usize {
        self.sequences
            .iter()
            .map(SequenceStep::num_hidden_rows)
            .sum()
    }
}

/// What one sequence contributes to a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceStep {
    /// New tokens at positions `position..position + tokens.len()`; never empty, and each less
    /// than [`ModelSpec::vocab_size`].
    pub tokens: Vec<u32>,
    /// Position of the first of them, from 0: the number of tokens already in the cache.
    pub position: usize,
    /// The sequence's cache blocks in order of position, enough for all of `tokens`.
    pub blocks: Vec<BlockId>,
    /// Which rows of logits are wanted.
    pub logits: LogitsWanted,
    /// Attached adapters, and by what each is multiplied: `y = x W + scale * (x A) B`, summed in
    /// this order. They are the same in all steps of a sequence, and of those whose blocks it
    /// shares.
    pub adapters: Vec<(AdapterId, f32)>,
}

impl SequenceStep {
    /// Rows of logits that this sequence asks for.
    pub fn num_rows(&self) -> usize {
        match self.logits {
            LogitsWanted::None | LogitsWanted::Hidden => 0,
            LogitsWanted::Last => 1,
            LogitsWanted::All => self.tokens.len(),
        }
    }

    /// Rows of hidden states that this sequence asks for.
    pub fn num_hidden_rows(&self) -> usize {
        match self.logits {
            LogitsWanted::Hidden => self.tokens.len(),
            _ => 0,
        }
    }

    /// Refuses what would lead a backend out of its cache or its embedding.
    ///
    /// # Errors
    /// [`BackendError::Step`] with what is wrong.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), BackendError> {
        let refuse = |why: String| Err(BackendError::Step(why));
        let end = self.position.saturating_add(self.tokens.len());
        if self.tokens.is_empty() {
            return refuse("a sequence has no new tokens".into());
        }
        if end > spec.max_positions {
            let most = spec.max_positions;
            return refuse(format!("a sequence of {end} tokens exceeds {most}"));
        }
        let unknown = |token: &&u32| **token as usize >= spec.vocab_size;
        if let Some(token) = self.tokens.iter().find(unknown) {
            let limit = spec.vocab_size;
            return refuse(format!("the token {token} is not below {limit}"));
        }
        let blocks = self.blocks.len();
        if blocks < end.div_ceil(spec.block_size) {
            return refuse(format!("{blocks} blocks cannot hold {end} tokens"));
        }
        let outside = |block: &&BlockId| **block as usize >= spec.num_blocks;
        match self.blocks.iter().find(outside) {
            Some(block) => refuse(format!(
                "the block {block} is not below {}",
                spec.num_blocks
            )),
            None => Ok(()),
        }
    }
}

/// Which of a sequence's new positions yield logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: a piece of a prompt that is not its end.
    None,
    /// The last one: the next token is to be sampled.
    #[default]
    Last,
    /// Every one: the prompt's own log-probabilities are wanted.
    All,
    /// No logits, but every new position's hidden state after the last norm: what the head would
    /// be applied to (embeddings).
    Hidden,
}

/// Rows of logits and of hidden states, borrowed from the backend until its next step.
#[derive(Debug)]
pub struct StepLogits<'a> {
    values: &'a mut [f32],
    vocab_size: usize,
    hidden: &'a mut [f32],
    hidden_size: usize,
}

impl<'a> StepLogits<'a> {
    /// Rows of `vocab_size` values each, one after the other.
    ///
    /// # Errors
    /// [`BackendError::Step`] when `values` is not a whole number of rows.
    pub fn new(values: &'a mut [f32], vocab_size: usize) -> Result<Self, BackendError> {
        if vocab_size == 0 || !values.len().is_multiple_of(vocab_size) {
            return Err(BackendError::Step(format!(
                "{} logits are not rows of {vocab_size}",
                values.len()
            )));
        }
        Ok(Self {
            values,
            vocab_size,
            hidden: &mut [],
            hidden_size: 1,
        })
    }

    /// Rows of logits as in [`Self::new`], and rows of `hidden_size` values of hidden states.
    ///
    /// # Errors
    /// [`BackendError::Step`] when either is not a whole number of rows.
    pub fn with_hidden(
        values: &'a mut [f32],
        vocab_size: usize,
        hidden: &'a mut [f32],
        hidden_size: usize,
    ) -> Result<Self, BackendError> {
        if hidden_size == 0 || !hidden.len().is_multiple_of(hidden_size) {
            return Err(BackendError::Step(format!(
                "{} hidden values are not rows of {hidden_size}",
                hidden.len()
            )));
        }
        let logits = Self::new(values, vocab_size)?;
        Ok(Self {
            hidden,
            hidden_size,
            ..logits
        })
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }

    /// Number of rows of hidden states.
    pub fn num_hidden_rows(&self) -> usize {
        self.hidden.len() / self.hidden_size
    }

    /// The rows of hidden states in order.
    pub fn hidden_rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.hidden.chunks_exact(self.hidden_size)
    }

    /// The rows of logits, each to be overwritten at will, and those of hidden states.
    pub fn rows(
        &mut self,
    ) -> (
        std::slice::ChunksExactMut<'_, f32>,
        std::slice::ChunksExact<'_, f32>,
    ) {
        (
            self.values.chunks_exact_mut(self.vocab_size),
            self.hidden.chunks_exact(self.hidden_size),
        )
    }

    /// The rows in order, each to be overwritten at will.
    pub fn rows_mut(&mut self) -> std::slice::ChunksExactMut<'_, f32> {
        self.values.chunks_exact_mut(self.vocab_size)
    }
}

/// Why a step gave no logits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// This step failed (an exception of the library, memory for its activations); the backend
    /// is sound. The requests in it fail, the others go on.
    #[error("the step failed: {0}")]
    Step(String),
    /// The backend cannot be used any more (a device error that sticks). The engine ends.
    #[error("the backend failed: {0}")]
    Fatal(String),
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {} on {}",
            self.architecture, self.dtype, self.device
        )
    }
}
