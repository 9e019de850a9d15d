//! Giving an engine work.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    adapter::{Adapter, AdapterDigest, AttachError, Command},
    answer::Answer,
    embedding::Embedding,
    error::{GenerationError, SubmitError},
    job::{Job, Kind},
    request::{InvalidRequest, Pooling, Request, known_tokens, stack_of},
    shared::Shared,
    stream::TextStream,
};
use crate::{
    BackendError, ModelSpec, PackedAdapter,
    cache::Scope,
    scheduler::{Output, Sequence},
};

/// Gives an engine work. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

/// What all clones of a handle share.
pub(super) struct Inner {
    pub(super) sender: mpsc::Sender<Vec<Sequence<Job>>>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) spec: ModelSpec,
    pub(super) eos: Vec<u32>,
    pub(super) max_queue: usize,
    pub(super) max_model_len: usize,
    pub(super) prefix_cache: bool,
    /// Groups so far.
    pub(super) groups: AtomicU64,
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
    pub(super) fn new(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Accepts `request` and returns its answer as it comes.
    ///
    /// # Errors
    /// The request is invalid, too many wait, or the engine has stopped. Nothing was begun.
    pub fn submit(&self, mut request: Request) -> Result<TextStream, SubmitError> {
        let max_tokens = self.validate(&mut request)?;
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
        for mut requests in groups {
            let most: Vec<_> = requests.iter_mut().map(|r| self.validate(r)).collect();
            let Some(first) = requests.first() else {
                return Err(InvalidRequest::EmptyGroup.into());
            };
            let same = |other: &Request| {
                other.prompt == first.prompt
                    && other.cache_salt == first.cache_salt
                    && other.adapters == first.adapters
            };
            if !requests.iter().all(same) {
                return Err(InvalidRequest::MixedGroup.into());
            }
            let group = self.inner.groups.fetch_add(1, Ordering::Relaxed);
            let scope = self.scope(first, Some(group));
            for (request, max_tokens) in requests.into_iter().zip(most) {
                all.push((request, max_tokens?, scope.clone()));
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
    /// in [`Self::submit_groups`]; dropping the future stops them. `adapters` as in
    /// [`Request::adapters`].
    ///
    /// # Errors
    /// [`GenerationError::Refused`] as [`Self::submit`], or the computation of one broke off.
    pub async fn embed(
        &self,
        texts: Vec<Vec<u32>>,
        pooling: Pooling,
        adapters: Vec<(Adapter, f32)>,
    ) -> Result<Vec<Vec<f32>>, GenerationError> {
        let adapters = stack_of(adapters, &self.inner.shared).map_err(SubmitError::from)?;
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
                    let mut sequence =
                        sequence_of(tokens, Kind::Embedding(embedding), adapters.clone());
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

    /// Checks `request`, takes adapters away that do nothing, and says how many tokens it may
    /// generate.
    fn validate(&self, request: &mut Request) -> Result<usize, InvalidRequest> {
        let adapters = std::mem::take(&mut request.adapters);
        request.adapters = stack_of(adapters, &self.inner.shared)?;
        request.validate(self.inner.spec.vocab_size, self.inner.max_model_len)
    }

    /// Who may share the prompt of `request`.
    fn scope(&self, request: &Request, group: Option<u64>) -> Option<Arc<Scope>> {
        let salt = request.cache_salt.clone();
        let adapters = request.adapters.iter();
        let adapters = adapters
            .map(|(adapter, scale)| adapter.key(*scale))
            .collect();
        let scope = |group| {
            Arc::new(Scope {
                salt,
                adapters,
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
        let kind = Kind::Answer(Box::new(answer));
        let mut sequence = sequence_of(request.prompt, kind, request.adapters);
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

    /// Attaches an adapter between two steps, for the requests that are given it. It is detached
    /// when the last clone of what is returned is gone.
    ///
    /// # Errors
    /// The backend does not take it, which is nothing to others; or the engine has stopped.
    pub async fn attach(
        &self,
        digest: AdapterDigest,
        packed: PackedAdapter,
    ) -> Result<Adapter, AttachError> {
        let commands = &self.inner.commands;
        let adapter = Adapter::new(digest, Arc::clone(&self.inner.shared), commands.downgrade());
        let (told, hears) = oneshot::channel();
        let command = Command::Attach {
            packed,
            held: adapter.downgrade(),
            id: adapter.id(),
            told,
        };
        let sent = commands.send(command).await;
        sent.map_err(|_| AttachError::Stopped)?;
        match hears.await {
            Ok(Ok(())) => Ok(adapter),
            Ok(Err(BackendError::Step(why))) => Err(AttachError::Refused(why)),
            Ok(Err(BackendError::Fatal(_))) | Err(_) => Err(AttachError::Stopped),
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

/// A sequence that runs with `adapters`, and keeps them.
fn sequence_of(tokens: Vec<u32>, kind: Kind, adapters: Vec<(Adapter, f32)>) -> Sequence<Job> {
    let ids = adapters
        .iter()
        .map(|(adapter, scale)| (adapter.id(), *scale));
    let ids = ids.collect();
    let held = adapters.into_iter().map(|(adapter, _)| adapter).collect();
    let mut sequence = Sequence::new(tokens, Job::new(kind, held));
    sequence.adapters = ids;
    sequence
}
