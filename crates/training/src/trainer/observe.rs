//! What a run tells, and what it is told.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use crate::checkpoint::{CheckpointError, Cost};

/// Who is told how a run goes. It is called by the thread that trains, which waits.
pub trait Observer {
    /// Something happened.
    fn hear(&mut self, event: Event<'_>);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn hear(&mut self, _: Event<'_>) {}
}

/// What happens in a run.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step(&'a Progress),
    /// Loss or gradient of a step was no finite number; it changed nothing.
    Skipped {
        /// Which, from 1.
        step: u64,
        /// As it was.
        loss: f64,
        /// As it was.
        norm: f64,
    },
    /// Memory did not suffice; the step is computed again in smaller parts, to a result that differs
    /// by the order of sums.
    Halved {
        /// Most tokens at once from now on.
        tokens: usize,
        /// What failed.
        message: &'a str,
    },
    /// It was judged.
    Evaluated {
        /// After which step.
        step: u64,
        /// Mean over tokens, or over pairs.
        loss: f64,
        /// As [`Progress::accuracy`].
        accuracy: f64,
        /// Whether it is the best so far.
        better: bool,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Of which step.
        step: u64,
        /// Its folder.
        path: &'a Path,
        /// What it cost.
        cost: Cost,
    },
    /// A checkpoint could not be written. The run goes on unless it was the last.
    NotSaved {
        /// Of which step.
        step: u64,
        /// Why.
        error: &'a CheckpointError,
    },
}

/// A step that is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Which, from 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Epochs that are done, with the part of the present one.
    pub epoch: f64,
    /// Before the step's update: mean over the tokens that count, in nats; with `dpo` over pairs.
    pub loss: f64,
    /// Part of the tokens that count which were the model's first choice; with `dpo` part of the
    /// pairs whose preferred answer gained more than the other.
    pub accuracy: f64,
    /// Before it was clipped.
    pub gradient_norm: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Tokens that were read.
    pub tokens: u64,
    /// Tokens that count.
    pub targets: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// How long the rest takes at the pace since this process began; none before it is known.
    pub remaining: Option<Duration>,
}

impl Progress {
    /// Per cent of all steps that are done.
    #[must_use]
    pub fn percentage(&self) -> f64 {
        self.step as f64 / self.steps.max(1) as f64 * 100.0
    }

    /// Tokens a second of this step.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

/// Ends a run from another thread, after the step that is being computed and a checkpoint. Clones
/// end the same run.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<AtomicU8>);

/// How a run is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Suspend,
    Cancel,
}

impl Control {
    /// Ends it for now.
    pub fn suspend(&self) {
        // A cancelled run stays so.
        self.0.fetch_max(1, Ordering::Relaxed);
    }

    /// Ends it for good.
    pub fn cancel(&self) {
        self.0.fetch_max(2, Ordering::Relaxed);
    }

    /// Whether somebody wishes an end, for now or for good.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.wish().is_some()
    }

    pub(super) fn wish(&self) -> Option<Wish> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Wish::Suspend),
            _ => Some(Wish::Cancel),
        }
    }
}

/// How fast steps follow one another in this process.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    from: u64,
}

impl Pace {
    pub(super) fn new(step: u64) -> Self {
        Self {
            began: Instant::now(),
            from: step,
        }
    }

    pub(super) fn remaining(&self, step: u64, total: u64) -> Option<Duration> {
        let done = step.checked_sub(self.from).filter(|done| *done > 0)?;
        let each = self.began.elapsed().as_secs_f64() / done as f64;
        Duration::try_from_secs_f64(each * total.saturating_sub(step) as f64).ok()
    }
}
