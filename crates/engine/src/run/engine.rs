//! Starting an engine and giving it work.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    answer::Answer,
    event::GenerationError,
    observer::Observer,
    request::{InvalidRequest, Pooling, Request},
    stream::TextStream,
    worker::Worker,
};
use crate::{
    Backend, ModelSpec,
    blocks::BlockPool,
    scheduler::{Scheduler, SchedulerLimits, Sequence},
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

/// A request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// It cannot be run at all.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Too many requests wait already.
    #[error("too many requests wait already, there may be room in {} s", retry_after.as_secs())]
    Full {
        /// When there will probably be room, judged by recent throughput.
        retry_after: Duration,
    },
    /// The engine is no more.
    #[error("the engine has stopped")]
    Stopped,
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
        };
        let blocks = BlockPool::new(spec.num_blocks, spec.block_size);
        let (sender, receiver) = mpsc::channel(config.max_queue);
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            backend,
            tokenizer,
            scheduler: Scheduler::new(blocks, limits),
            arrivals: receiver,
            observer,
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())
            .map_err(StartError::Thread)?;
        let inner = Inner {
            sender,
            shared,
            spec,
            eos: config.eos,
            max_queue: config.max_queue,
            max_model_len,
        };
        Ok(EngineHandle {
            inner: Arc::new(inner),
        })
    }
}

/// Gives an engine work. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

struct Inner {
    sender: mpsc::Sender<Sequence<Answer>>,
    shared: Arc<Shared>,
    spec: ModelSpec,
    eos: Vec<u32>,
    max_queue: usize,
    max_model_len: usize,
}

/// What the thread lets others see.
#[derive(Default)]
pub(crate) struct Shared {
    /// Accepted requests that had no step yet.
    pub(crate) queued: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) used_blocks: AtomicUsize,
    pub(crate) dead: AtomicBool,
    pub(crate) cause: OnceLock<String>,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait for their first step.
    pub queued: usize,
    /// Cache blocks in use.
    pub used_blocks: usize,
    /// Cache blocks in all.
    pub total_blocks: usize,
}

impl EngineHandle {
    /// Accepts `request` and returns its answer as it comes.
    ///
    /// # Errors
    /// The request is invalid, too many wait, or the engine has stopped. Nothing was begun.
    pub fn submit(&self, request: Request) -> Result<TextStream, SubmitError> {
        let inner = &self.inner;
        let max_tokens = request.validate(inner.spec.vocab_size, inner.max_model_len)?;
        if inner.shared.dead.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let claim = |queued: usize| (queued < inner.max_queue).then_some(queued + 1);
        inner
            .shared
            .queued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, claim)
            .map_err(|_| self.full())?;
        // One event a token and one for the end: the thread never waits for a slow reader, and
        // what a reader has not fetched is bounded by what it asked for.
        let (events, receiver) = mpsc::channel(max_tokens + 2);
        let prompt_tokens = request.prompt.len();
        let (prompt, answer) = Answer::new(request, max_tokens, &inner.eos, events);
        match inner.sender.try_send(Sequence::new(prompt, answer)) {
            Ok(()) => Ok(TextStream::new(receiver, prompt_tokens)),
            Err(error) => {
                inner.shared.queued.fetch_sub(1, Ordering::AcqRel);
                Err(match error {
                    mpsc::error::TrySendError::Full(_) => self.full(),
                    mpsc::error::TrySendError::Closed(_) => SubmitError::Stopped,
                })
            }
        }
    }

    /// Accepts several ways to continue one prompt, which is computed once, and returns their
    /// answers in order.
    ///
    /// # Errors
    /// As [`Self::submit`]; all are accepted or none is begun.
    pub fn submit_group(&self, requests: Vec<Request>) -> Result<Vec<TextStream>, SubmitError> {
        let Some(first) = requests.first() else {
            return Err(InvalidRequest::EmptyGroup.into());
        };
        if requests.iter().any(|other| other.prompt != first.prompt) {
            return Err(InvalidRequest::MixedGroup.into());
        }
        requests.into_iter().map(|r| self.submit(r)).collect()
    }

    /// The hidden states of `tokens`, pooled and not normalised, of length
    /// [`ModelSpec::hidden_size`]. It is scheduled like a prompt; dropping the future stops it.
    ///
    /// # Errors
    /// [`GenerationError::Refused`] as [`Self::submit`], or the computation broke off.
    #[allow(clippy::unused_async, reason = "embeddings are not computed yet")]
    pub async fn embed(
        &self,
        tokens: Vec<u32>,
        pooling: Pooling,
    ) -> Result<Vec<f32>, GenerationError> {
        let _ = (tokens, pooling);
        Err(SubmitError::Invalid(InvalidRequest::NoEmbeddings).into())
    }

    fn full(&self) -> SubmitError {
        SubmitError::Full {
            retry_after: Duration::from_secs(1),
        }
    }

    /// Facts about the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.inner.spec
    }

    /// Most tokens of prompt and answer together.
    pub fn max_model_len(&self) -> usize {
        self.inner.max_model_len
    }

    /// Tokens by which the model ends an answer.
    pub fn eos(&self) -> &[u32] {
        &self.inner.eos
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let shared = &self.inner.shared;
        Load {
            running: shared.running.load(Ordering::Relaxed),
            queued: shared.queued.load(Ordering::Relaxed),
            used_blocks: shared.used_blocks.load(Ordering::Relaxed),
            total_blocks: self.inner.spec.num_blocks,
        }
    }

    /// Nothing, or why the engine has stopped.
    ///
    /// # Errors
    /// The cause in words.
    pub fn health(&self) -> Result<(), String> {
        let shared = &self.inner.shared;
        if !shared.dead.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(shared
            .cause
            .get()
            .cloned()
            .unwrap_or_else(|| "the engine has stopped".to_owned()))
    }
}
