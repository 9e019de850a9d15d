//! What the scheduler keeps with a sequence.

use std::time::Instant;

use super::{
    adapter::Adapter, answer::Answer, embedding::Embedding, error::GenerationError, event::Stats,
    observer::Observer,
};

/// What becomes of what the model computes.
pub(crate) struct Job {
    pub(crate) kind: Kind,
    #[allow(dead_code, reason = "it keeps them attached")]
    adapters: Vec<Adapter>,
    submitted: Instant,
    first_step: Option<Instant>,
}

/// An answer or a vector.
pub(crate) enum Kind {
    Answer(Box<Answer>),
    Embedding(Embedding),
}

impl Job {
    /// A job that was submitted just now, to run with `adapters`.
    pub(crate) fn new(kind: Kind, adapters: Vec<Adapter>) -> Self {
        Self {
            kind,
            adapters,
            submitted: Instant::now(),
            first_step: None,
        }
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match &self.kind {
            Kind::Answer(answer) => answer.is_abandoned(),
            Kind::Embedding(embedding) => embedding.is_abandoned(),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        match &self.kind {
            Kind::Answer(answer) => answer.has_ended(),
            Kind::Embedding(embedding) => embedding.has_ended(),
        }
    }

    pub(crate) fn stats(&self) -> &Stats {
        match &self.kind {
            Kind::Answer(answer) => &answer.stats,
            Kind::Embedding(embedding) => &embedding.stats,
        }
    }

    /// Notes the first step, and says whether it was that. `cached` tokens need not be computed.
    pub(crate) fn begin(&mut self, now: Instant, cached: usize) -> bool {
        if self.first_step.is_some() {
            return false;
        }
        self.first_step = Some(now);
        let stats = match &mut self.kind {
            Kind::Answer(answer) => {
                answer.first_step = Some(now);
                &mut answer.stats
            }
            Kind::Embedding(embedding) => &mut embedding.stats,
        };
        stats.queue_time = now - self.submitted;
        stats.cached_tokens = cached;
        true
    }

    /// Whether it had a step.
    pub(crate) fn has_begun(&self) -> bool {
        self.first_step.is_some()
    }

    /// Ends it with an error.
    pub(crate) fn fail(&mut self, error: GenerationError, observer: &dyn Observer) {
        match &mut self.kind {
            Kind::Answer(answer) => answer.fail(error, observer),
            Kind::Embedding(embedding) => embedding.fail(error, observer),
        }
    }
}
