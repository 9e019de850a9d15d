//! The loop of the engine's thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::{
    answer::Answer,
    engine::Shared,
    event::GenerationError,
    observer::{Observer, StepReport},
};
use crate::{
    Backend, BackendError, StepBatch, StepLogits,
    scheduler::{Plan, Scheduler, Sequence, Share},
    text::Tokenizer,
};

/// Everything that the thread owns.
pub(crate) struct Worker {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) scheduler: Scheduler<Answer>,
    pub(crate) arrivals: mpsc::Receiver<Sequence<Answer>>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) shared: Arc<Shared>,
}

/// Says that the thread is gone, however it went.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::Release);
    }
}

impl Worker {
    /// Runs until nobody can send work any more and all is done, or until the backend is broken.
    pub(crate) fn run(mut self) {
        let _last_word = LastWord(Arc::clone(&self.shared));
        while self.receive() {
            self.drop_abandoned();
            let plan = self.scheduler.plan();
            if let Err(cause) = self.step(&plan) {
                error!(cause, "the backend is broken, the engine ends");
                self.shared.cause.get_or_init(|| cause);
                self.shared.dead.store(true, Ordering::Release);
                self.fail_all();
                return;
            }
            self.publish(&plan);
        }
    }

    /// Takes what has arrived; without work it sleeps until something does. Says whether to go on.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_empty() {
            match self.arrivals.blocking_recv() {
                Some(sequence) => self.scheduler.add(sequence),
                None => return false,
            }
        }
        while let Ok(sequence) = self.arrivals.try_recv() {
            self.scheduler.add(sequence);
        }
        true
    }

    fn drop_abandoned(&mut self) {
        let Self {
            scheduler,
            observer,
            shared,
            ..
        } = self;
        scheduler.remove(|sequence| {
            let abandoned = sequence.of.is_abandoned();
            if abandoned {
                if !sequence.of.has_begun() {
                    shared.queued.fetch_sub(1, Ordering::AcqRel);
                }
                observer.finished(sequence.of.stats(), "abort");
            }
            abandoned
        });
    }

    /// Runs the plan. `Err` only when the backend is broken for good.
    fn step(&mut self, plan: &Plan) -> Result<(), String> {
        let now = Instant::now();
        for share in &plan.shares {
            if self.scheduler.running_mut(share.index).of.begin(now) {
                self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            }
        }
        match self.compute(&plan.shares) {
            Ok(()) => {}
            Err(BackendError::Fatal(cause)) => return Err(cause),
            Err(BackendError::Step(cause)) if plan.shares.len() == 1 => {
                self.fail(plan.shares[0], &cause);
            }
            // One of them is to blame. Each runs alone, so that only that one fails; the cache
            // is written anew where the failed step wrote.
            Err(BackendError::Step(cause)) => {
                warn!(
                    cause,
                    sequences = plan.shares.len(),
                    "a step failed, trying one by one"
                );
                for &share in &plan.shares {
                    match self.compute(&[share]) {
                        Ok(()) => {}
                        Err(BackendError::Step(cause)) => self.fail(share, &cause),
                        Err(BackendError::Fatal(cause)) => return Err(cause),
                    }
                }
            }
        }
        self.scheduler.remove(|sequence| sequence.of.has_ended());
        Ok(())
    }

    /// Runs `shares` in one step of the backend and takes a token for each that is due one.
    fn compute(&mut self, shares: &[Share]) -> Result<(), BackendError> {
        if shares.is_empty() {
            return Ok(());
        }
        let Self {
            backend,
            scheduler,
            tokenizer,
            observer,
            ..
        } = self;
        let batch = StepBatch {
            sequences: shares.iter().map(|&s| scheduler.step_of(s)).collect(),
        };
        let mut logits = guarded_step(backend.as_mut(), &batch)?;
        if logits.num_rows() != batch.num_rows() {
            let (rows, wanted) = (logits.num_rows(), batch.num_rows());
            return Err(BackendError::Step(format!(
                "{rows} rows of logits instead of {wanted}"
            )));
        }
        let mut rows = logits.rows_mut();
        for (share, step) in shares.iter().zip(&batch.sequences) {
            let sequence = scheduler.running_mut(share.index);
            sequence.computed += share.tokens;
            for row in rows.by_ref().take(step.num_rows()) {
                match sequence.of.advance(row, tokenizer, observer.as_ref()) {
                    Ok(token) => sequence.tokens.push(token),
                    Err(error) => {
                        warn!(%error, "no token can be chosen");
                        let error = GenerationError::Failed(error.to_string());
                        sequence.of.fail(error, observer.as_ref());
                    }
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, share: Share, cause: &str) {
        warn!(cause, "a request failed in the backend");
        let error = GenerationError::Failed(cause.to_owned());
        self.scheduler
            .running_mut(share.index)
            .of
            .fail(error, self.observer.as_ref());
    }

    fn fail_all(&mut self) {
        self.arrivals.close();
        while let Ok(sequence) = self.arrivals.try_recv() {
            self.scheduler.add(sequence);
        }
        let Self {
            scheduler,
            observer,
            ..
        } = self;
        scheduler.remove(|sequence| {
            sequence
                .of
                .fail(GenerationError::EngineStopped, observer.as_ref());
            true
        });
        self.shared.queued.store(0, Ordering::Release);
        self.shared.running.store(0, Ordering::Relaxed);
        self.shared.used_blocks.store(0, Ordering::Relaxed);
    }

    fn publish(&self, plan: &Plan) {
        let blocks = self.scheduler.blocks();
        let report = StepReport {
            running: self.scheduler.num_running(),
            waiting: self.scheduler.num_waiting(),
            used_blocks: blocks.total() - blocks.available(),
            cached_blocks: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            tokens: plan.shares.iter().map(|share| share.tokens).sum(),
            preempted: plan.preempted,
        };
        self.shared.running.store(report.running, Ordering::Relaxed);
        self.shared
            .used_blocks
            .store(report.used_blocks, Ordering::Relaxed);
        self.observer.step(&report);
    }
}

/// A step whose panic is an error of that step.
fn guarded_step<'a>(
    backend: &'a mut dyn Backend,
    batch: &StepBatch,
) -> Result<StepLogits<'a>, BackendError> {
    // A backend's state after an error is its own promise (`BackendError::Step`); a panic inside
    // it is an error that it did not foresee, and a request must not end the engine.
    catch_unwind(AssertUnwindSafe(once(move || backend.step(batch)))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("of no words");
        Err(BackendError::Step(format!("panic: {text}")))
    })
}

/// The same closure, known to be called once, so that it may give its captures away.
fn once<R, F: FnOnce() -> R>(closure: F) -> F {
    closure
}
