//! Starting an engine and giving it work.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    answer::Answer,
    embedding::Embedding,
    event::GenerationError,
    job::{Job, Kind},
    observer::Observer,
    pace::{Beginnings, Pace},
    request::{InvalidRequest, Pooling, Request, known_tokens},
    stream::TextStream,
    worker::Worker,
};
use crate::{
    Backend, ModelSpec,
    cache::{Blocks, Scope},
    sampling::Scratch,
    scheduler::{Output, Scheduler, SchedulerLimits, Sequence},
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
            max_prompt_rows: (MAX_PROMPT_LOGITS / spec.vocab_size.max(1)).max(1),
        };
        let blocks = Blocks::new(spec.num_blocks, spec.block_size);
        let (sender, receiver) = mpsc::channel(config.max_queue);
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            backend,
            tokenizer,
            scheduler: Scheduler::new(blocks, limits),
            arrivals: receiver,
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
            shared,
            spec,
            eos: config.eos,
            max_queue: config.max_queue,
            max_model_len,
            prefix_cache: config.prefix_cache,
            groups: AtomicU64::new(0),
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
    sender: mpsc::Sender<Vec<Sequence<Job>>>,
    shared: Arc<Shared>,
    spec: ModelSpec,
    eos: Vec<u32>,
    max_queue: usize,
    max_model_len: usize,
    prefix_cache: bool,
    /// Groups so far.
    groups: AtomicU64,
}

/// What the thread lets others see.
#[derive(Default)]
pub(crate) struct Shared {
    /// Accepted requests that had no step yet.
    pub(crate) queued: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) used_blocks: AtomicUsize,
    /// Whether the thread is gone.
    dead: watch::Sender<bool>,
    cause: OnceLock<String>,
    pub(crate) pace: Pace,
}

impl Shared {
    /// Says that the thread is gone or will be at once, and why if that is known.
    pub(crate) fn die(&self, cause: Option<String>) {
        if let Some(cause) = cause {
            self.cause.get_or_init(|| cause);
        }
        self.dead.send_replace(true);
    }

    fn health(&self) -> Result<(), String> {
        if !*self.dead.borrow() {
            return Ok(());
        }
        let cause = self.cause.get().cloned();
        Err(cause.unwrap_or_else(|| "the engine has stopped".to_owned()))
    }
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
        let max_tokens = self.validate(&request)?;
        let scope = self.scope(&request, None);
        let (sequence, stream) = self.prepare(request, max_tokens, scope);
        self.send(vec![sequence])?;
        Ok(stream)
    }

    /// Accepts several ways to continue one prompt, and returns their answers in order. Whole
    /// cache blocks of the prompt are computed once, also where the prefix cache is off.
    ///
    /// # Errors
    /// As [`Self::submit`]; all are accepted or none is begun.
    pub fn submit_group(&self, requests: Vec<Request>) -> Result<Vec<TextStream>, SubmitError> {
        self.submit_groups(vec![requests])
    }

    /// Accepts the groups of one client's request, each as in [`Self::submit_group`], and returns
    /// all answers in order. The groups let others in between: whoever comes later waits for
    /// about one of their prompts, not for all.
    ///
    /// # Errors
    /// As [`Self::submit`]; all are accepted or none is begun.
    pub fn submit_groups(&self, groups: Vec<Vec<Request>>) -> Result<Vec<TextStream>, SubmitError> {
        let mut all = Vec::new();
        for requests in groups {
            let Some(first) = requests.first() else {
                return Err(InvalidRequest::EmptyGroup.into());
            };
            let same = |other: &Request| {
                other.prompt == first.prompt && other.cache_salt == first.cache_salt
            };
            if !requests.iter().all(same) {
                return Err(InvalidRequest::MixedGroup.into());
            }
            let group = self.inner.groups.fetch_add(1, Ordering::Relaxed);
            let scope = self.scope(first, Some(group));
            for request in requests {
                let max_tokens = self.validate(&request)?;
                all.push((request, max_tokens, scope.clone()));
            }
        }
        if all.is_empty() {
            return Err(InvalidRequest::EmptyGroup.into());
        }
        if all.len() > self.inner.max_queue {
            let (requests, limit) = (all.len(), self.inner.max_queue);
            return Err(InvalidRequest::GroupTooLarge { requests, limit }.into());
        }
        let (sequences, streams) = all
            .into_iter()
            .map(|(request, max_tokens, scope)| self.prepare(request, max_tokens, scope))
            .unzip();
        self.send(sequences)?;
        Ok(streams)
    }

    /// The hidden states of each of `texts`, given in tokens, pooled and not normalised, of length
    /// [`ModelSpec::hidden_size`]. They are scheduled like prompts and let others in between as
    /// in [`Self::submit_groups`]; dropping the future stops them.
    ///
    /// # Errors
    /// [`GenerationError::Refused`] as [`Self::submit`], or the computation of one broke off.
    pub async fn embed(
        &self,
        texts: Vec<Vec<u32>>,
        pooling: Pooling,
    ) -> Result<Vec<Vec<f32>>, GenerationError> {
        for tokens in &texts {
            self.check_embedding(tokens).map_err(SubmitError::from)?;
        }
        let mut vectors = Vec::with_capacity(texts.len());
        let mut texts = texts.into_iter().peekable();
        // A part of the queue at a time: the rest is for others.
        let part = (self.inner.max_queue / 4).max(1);
        while texts.peek().is_some() {
            let (sequences, receivers): (Vec<_>, Vec<_>) = texts
                .by_ref()
                .take(part)
                .map(|tokens| {
                    let (sender, receiver) = oneshot::channel();
                    let embedding = Embedding::new(tokens.len(), pooling, sender);
                    let wanted_from = Embedding::wanted_from(tokens.len(), pooling);
                    let mut sequence = Sequence::new(tokens, Job::new(Kind::Embedding(embedding)));
                    sequence.output = Output::Hidden(wanted_from);
                    (sequence, receiver)
                })
                .unzip();
            self.send(sequences)?;
            for receiver in receivers {
                let vector = receiver.await;
                vectors.push(vector.unwrap_or(Err(GenerationError::EngineStopped))?);
            }
        }
        Ok(vectors)
    }

    fn check_embedding(&self, tokens: &[u32]) -> Result<(), InvalidRequest> {
        let (spec, limit) = (&self.inner.spec, self.inner.max_model_len);
        if spec.hidden_size == 0 {
            return Err(InvalidRequest::NoEmbeddings);
        }
        match tokens.len() {
            0 => Err(InvalidRequest::EmptyPrompt),
            tokens if tokens > limit => Err(InvalidRequest::PromptTooLong { tokens, limit }),
            _ => known_tokens("prompt", tokens, spec.vocab_size),
        }
    }

    fn validate(&self, request: &Request) -> Result<usize, InvalidRequest> {
        request.validate(self.inner.spec.vocab_size, self.inner.max_model_len)
    }

    /// Who may share the prompt of `request`.
    fn scope(&self, request: &Request, group: Option<u64>) -> Option<Arc<Scope>> {
        let salt = request.cache_salt.clone();
        let scope = |group| {
            Arc::new(Scope {
                salt,
                adapters: Vec::new(),
                group,
            })
        };
        match (self.inner.prefix_cache, group) {
            (true, _) => Some(scope(None)),
            (false, Some(group)) => Some(scope(Some(group))),
            (false, None) => None,
        }
    }

    fn prepare(
        &self,
        request: Request,
        max_tokens: usize,
        scope: Option<Arc<Scope>>,
    ) -> (Sequence<Job>, TextStream) {
        // One event a token and one for the end: the thread never waits for a slow reader, and
        // what a reader has not fetched is bounded by what it asked for.
        let (events, receiver) = mpsc::channel(max_tokens + 2);
        let answer = Answer::new(&request, max_tokens, &self.inner.eos, events);
        let stream = TextStream::new(receiver, request.prompt.len());
        let job = Job::new(Kind::Answer(Box::new(answer)));
        let mut sequence = Sequence::new(request.prompt, job);
        sequence.priority = request.priority;
        sequence.scope = scope;
        if request.prompt_logprobs.is_some() {
            sequence.output = Output::Logits(0);
        }
        (sequence, stream)
    }

    fn send(&self, sequences: Vec<Sequence<Job>>) -> Result<(), SubmitError> {
        let inner = &self.inner;
        if inner.shared.health().is_err() {
            return Err(SubmitError::Stopped);
        }
        let count = sequences.len();
        let claim = |queued: usize| (queued + count <= inner.max_queue).then_some(queued + count);
        let queued = &inner.shared.queued;
        queued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, claim)
            .map_err(|_| self.full())?;
        inner.sender.try_send(sequences).map_err(|error| {
            queued.fetch_sub(count, Ordering::AcqRel);
            match error {
                mpsc::error::TrySendError::Full(_) => self.full(),
                mpsc::error::TrySendError::Closed(_) => SubmitError::Stopped,
            }
        })
    }

    fn full(&self) -> SubmitError {
        SubmitError::Full {
            retry_after: self.inner.shared.pace.retry_after(self.inner.max_queue),
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
            running: shared.running.load(Ordering::Acquire),
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
        self.inner.shared.health()
    }

    /// Waits until the engine has stopped, and says why. The future does not keep the engine
    /// running: it ends as well when the last handle is dropped and all work is done.
    pub fn died(&self) -> impl Future<Output = String> + Send + use<> {
        let shared = Arc::clone(&self.inner.shared);
        let mut dead = shared.dead.subscribe();
        async move {
            // It fails only without a sender, which `shared` is.
            let _ = dead.wait_for(|dead| *dead).await;
            shared.health().err().unwrap_or_default()
        }
    }
}
