//! Starting an engine.

use std::{
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use tokio::sync::mpsc;

use super::{
    adapter::Attached,
    handle::{EngineHandle, Inner},
    observer::Observer,
    pace::Beginnings,
    shared::Shared,
    worker::Worker,
};
use crate::{
    Backend,
    cache::Blocks,
    sampling::Scratch,
    scheduler::{Scheduler, SchedulerLimits},
    text::Tokenizer,
};

/// Sizes of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most requests in one step.
    pub max_batch: usize,
    /// Most tokens in one step. Raised to `max_batch` if it is less.
    pub max_step_tokens: usize,
    /// Most requests that wait for their first step; further ones are turned away.
    pub max_queue: usize,
    /// Most tokens of prompt and answer together. Lowered to what the model and the cache have.
    pub max_model_len: usize,
    /// Keep the computed prompts of ended requests, for others that begin with the same tokens,
    /// as long as their cache blocks are not needed.
    pub prefix_cache: bool,
    /// Tokens by which the model ends an answer.
    pub eos: Vec<u32>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_batch: 32,
            max_step_tokens: 512,
            max_queue: 256,
            max_model_len: usize::MAX,
            prefix_cache: true,
            eos: Vec::new(),
        }
    }
}

/// Most logits of prompts that a step may return: 64 MiB of them.
const MAX_PROMPT_LOGITS: usize = 16 << 20;

/// Most commands that wait for the end of a step.
const MAX_COMMANDS: usize = 16;

/// An engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A size that must not be 0 is.
    #[error("{0} is 0")]
    Zero(&'static str),
    /// The operating system gave no thread.
    #[error("the engine's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Starts a thread that owns `backend`, and returns what gives it work. The thread ends when
    /// every clone of the handle is dropped and what was accepted is done.
    ///
    /// # Errors
    /// A size is 0, or there is no thread.
    pub fn start(
        backend: Box<dyn Backend>,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        observer: Arc<dyn Observer>,
    ) -> Result<EngineHandle, StartError> {
        let spec = backend.spec().clone();
        let max_model_len = config
            .max_model_len
            .min(spec.max_positions)
            .min(spec.num_blocks.saturating_mul(spec.block_size));
        let sizes = [
            ("max_batch", config.max_batch),
            ("max_queue", config.max_queue),
            ("the number of cache blocks", spec.num_blocks),
            ("the size of a cache block", spec.block_size),
            ("max_model_len", max_model_len),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(StartError::Zero(name));
        }
        let limits = SchedulerLimits {
            max_sequences: config.max_batch,
            max_step_tokens: config.max_step_tokens.max(config.max_batch),
            max_prompt_rows: (MAX_PROMPT_LOGITS / spec.vocab_size.max(1)).max(1),
        };
        let blocks = Blocks::new(spec.num_blocks, spec.block_size);
        let (sender, receiver) = mpsc::channel(config.max_queue);
        let (commands, orders) = mpsc::channel(MAX_COMMANDS);
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            backend,
            tokenizer,
            scheduler: Scheduler::new(blocks, limits),
            arrivals: receiver,
            commands: orders,
            attached: Attached::default(),
            observer,
            shared: Arc::clone(&shared),
            beginnings: Beginnings::default(),
            scratch: Scratch::default(),
        };
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())
            .map_err(StartError::Thread)?;
        let inner = Inner {
            sender,
            commands,
            shared,
            spec,
            eos: config.eos,
            max_queue: config.max_queue,
            max_model_len,
            prefix_cache: config.prefix_cache,
            groups: AtomicU64::new(0),
        };
        Ok(EngineHandle::new(inner))
    }
}
