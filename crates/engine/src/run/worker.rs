//! The loop of the engine's thread.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use futures::executor::block_on;

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::{
    adapter::{Attached, Command},
    answer::{AdvanceError, Answer, Tools},
    embedding::Embedding,
    error::GenerationError,
    job::{Job, Kind},
    observer::{Observer, StepReport},
    pace::Beginnings,
    shared::Shared,
};
use crate::{
    Backend, BackendError, StepBatch, StepLogits,
    sampling::{SampleError, Scratch},
    scheduler::{Output, Plan, Scheduler, Sequence, Share},
    text::Tokenizer,
};

/// Everything that the thread owns.
pub(crate) struct Worker {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) scheduler: Scheduler<Job>,
    pub(crate) arrivals: mpsc::Receiver<Vec<Sequence<Job>>>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) attached: Attached,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) beginnings: Beginnings,
    pub(crate) scratch: Scratch,
}

/// What wakes the thread.
enum Wake {
    Work(Vec<Sequence<Job>>),
    Command(Command),
    /// Nobody can send work any more.
    End,
}

/// Says that the thread is gone, however it went.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.die(None);
    }
}

impl Worker {
    /// Runs until nobody can send work any more and all is done, or until the backend is broken.
    pub(crate) fn run(mut self) {
        let _last_word = LastWord(Arc::clone(&self.shared));
        loop {
            let stepped = match self.receive() {
                Ok(true) => {
                    self.drop_abandoned();
                    let plan = self.scheduler.plan();
                    self.step(&plan).map(|()| self.publish(&plan))
                }
                Ok(false) => return,
                Err(cause) => Err(cause),
            };
            if let Err(cause) = stepped {
                error!(cause, "the backend is broken, the engine ends");
                self.shared.die(Some(cause));
                self.fail_all();
                return;
            }
        }
    }

    /// Takes what has arrived and does what is commanded; without work it sleeps until there is
    /// some. Says whether to go on. `Err` only when the backend is broken for good.
    fn receive(&mut self) -> Result<bool, String> {
        while self.scheduler.is_empty() {
            self.detach();
            let wake = block_on(std::future::poll_fn(|context| self.poll_wake(context)));
            match wake {
                Wake::Work(sequences) => self.add(sequences),
                Wake::Command(command) => self.obey(command)?,
                Wake::End => return Ok(false),
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command)?;
        }
        while let Ok(sequences) = self.arrivals.try_recv() {
            self.add(sequences);
        }
        self.detach();
        Ok(true)
    }

    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<Wake> {
        if let Poll::Ready(Some(command)) = self.commands.poll_recv(context) {
            return Poll::Ready(Wake::Command(command));
        }
        let work = self.arrivals.poll_recv(context);
        work.map(|sequences| sequences.map_or(Wake::End, Wake::Work))
    }

    /// `Err` only when the backend is broken for good.
    fn obey(&mut self, command: Command) -> Result<(), String> {
        let Command::Attach {
            packed,
            held,
            id,
            told,
        } = command
        else {
            // All are looked at before each step and each sleep.
            return Ok(());
        };
        let backend = &mut self.backend;
        let attach = AssertUnwindSafe(|| backend.attach(id, packed));
        let done = catch_unwind(attach).unwrap_or_else(|panic| {
            let text = words_of(panic.as_ref());
            Err(BackendError::Step(format!("panic: {text}")))
        });
        if done.is_ok() {
            self.attached.add(id, held);
        }
        let fatal = match &done {
            Err(BackendError::Fatal(cause)) => Err(cause.clone()),
            _ => Ok(()),
        };
        // Whoever asked may be gone; then nobody has it, which is seen at once.
        let _ = told.send(done);
        fatal
    }

    /// Takes adapters from the backend that nobody has any more.
    fn detach(&mut self) {
        let backend = &mut self.backend;
        self.attached.forget_unheld(|id| backend.detach(id));
    }

    fn add(&mut self, sequences: Vec<Sequence<Job>>) {
        self.scheduler.add(sequences);
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
        let mut begun = 0;
        for share in &plan.shares {
            let sequence = self.scheduler.running_mut(share.index);
            let cached = sequence.cached.unwrap_or(0);
            begun += usize::from(sequence.of.begin(now, cached));
        }
        self.shared.queued.fetch_sub(begun, Ordering::AcqRel);
        let others = self.scheduler.num_waiting() > 0;
        self.beginnings.note(&self.shared.pace, now, begun, others);
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

    /// Runs `shares` in one step of the backend and gives each what it computed.
    fn compute(&mut self, shares: &[Share]) -> Result<(), BackendError> {
        if shares.is_empty() {
            return Ok(());
        }
        let Self {
            backend,
            scheduler,
            tokenizer,
            observer,
            scratch,
            ..
        } = self;
        let batch = StepBatch {
            sequences: shares.iter().map(|&s| scheduler.step_of(s)).collect(),
        };
        let mut computed = guarded_step(backend.as_mut(), &batch)?;
        check_rows(&computed, &batch)?;
        let (mut logits, mut hidden) = computed.rows();
        let mut tools = Tools {
            tokenizer,
            observer: observer.as_ref(),
            scratch,
        };
        for (share, step) in shares.iter().zip(&batch.sequences) {
            let mut rows = Rows {
                position: step.position,
                last: step.position + step.tokens.len() - 1,
                logits: logits.by_ref().take(step.num_rows()),
                hidden: hidden.by_ref().take(step.num_hidden_rows()),
            };
            // A request whose part panics is failed and removed, so that what it is left in does
            // not matter.
            let sequence = scheduler.running_mut(share.index);
            let give = AssertUnwindSafe(|| rows.give(sequence, &mut tools));
            let taken = catch_unwind(give)
                .unwrap_or_else(|panic| Err(AdvanceError::Panic(words_of(panic.as_ref()))));
            // A sequence that fails here may take fewer rows than it was given.
            rows.logits.for_each(drop);
            rows.hidden.for_each(drop);
            match taken {
                Ok(next) => {
                    scheduler.computed(*share);
                    let sequence = scheduler.running_mut(share.index);
                    sequence.tokens.extend(next);
                }
                Err(error) => {
                    warn!(%error, "no token can be chosen");
                    // Keys and values may be no numbers either, and others must not take them.
                    if matches!(error, AdvanceError::Sample(SampleError::NotANumber)) {
                        scheduler.distrust(share.index);
                    }
                    let error = match error {
                        AdvanceError::Sample(SampleError::Grammar(why)) => {
                            GenerationError::Grammar(why.to_string())
                        }
                        other => GenerationError::Failed(other.to_string()),
                    };
                    let sequence = scheduler.running_mut(share.index);
                    sequence.of.fail(error, observer.as_ref());
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
        self.commands.close();
        while let Ok(sequences) = self.arrivals.try_recv() {
            self.add(sequences);
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
            cached_blocks: blocks.num_idle(),
            prefix_queries: plan.prefix_queries,
            prefix_hits: plan.prefix_hits,
            tokens: plan.shares.iter().map(|share| share.tokens).sum(),
            preempted: plan.preempted,
        };
        self.observer.step(&report);
        self.shared
            .used_blocks
            .store(report.used_blocks, Ordering::Relaxed);
        self.shared.running.store(report.running, Ordering::Release);
    }
}

/// What a step computed for one sequence.
struct Rows<L, H> {
    /// Position of its first new token.
    position: usize,
    /// Position of its last new token.
    last: usize,
    logits: L,
    hidden: H,
}

impl<'a, 'b, L, H> Rows<L, H>
where
    L: Iterator<Item = &'a mut [f32]>,
    H: Iterator<Item = &'b [f32]>,
{
    /// Gives every row to what wants it, and returns the next token if one was chosen.
    fn give(
        &mut self,
        sequence: &mut Sequence<Job>,
        tools: &mut Tools<'_>,
    ) -> Result<Option<u32>, AdvanceError> {
        match &mut sequence.of.kind {
            Kind::Embedding(embedding) => {
                self.give_states(&mut sequence.output, embedding, tools);
                Ok(None)
            }
            Kind::Answer(answer) => {
                self.give_logits(&sequence.tokens, &mut sequence.output, answer, tools)
            }
        }
    }

    fn give_states(&mut self, output: &mut Output, embedding: &mut Embedding, tools: &Tools<'_>) {
        let Output::Hidden(wanted) = output else {
            return;
        };
        for (position, state) in (self.position..).zip(self.hidden.by_ref()) {
            // Earlier ones were taken before the sequence lost its blocks, or are not wanted.
            if position >= *wanted {
                embedding.add(state, tools.observer);
                *wanted = position + 1;
            }
        }
    }

    fn give_logits(
        &mut self,
        tokens: &[u32],
        output: &mut Output,
        answer: &mut Answer,
        tools: &mut Tools<'_>,
    ) -> Result<Option<u32>, AdvanceError> {
        let first = match output {
            Output::Logits(_) => self.position,
            _ => self.last,
        };
        for (position, row) in (first..).zip(self.logits.by_ref()) {
            let Some(&next) = tokens.get(position + 1) else {
                *output = Output::Next;
                return answer.advance(row, tools);
            };
            if let Output::Logits(wanted) = output
                && position >= *wanted
            {
                answer.score(row, next)?;
                *wanted = position + 1;
            }
        }
        Ok(None)
    }
}

/// Refuses a result that is not what was asked for.
fn check_rows(computed: &StepLogits<'_>, batch: &StepBatch) -> Result<(), BackendError> {
    for (what, rows, wanted) in [
        ("logits", computed.num_rows(), batch.num_rows()),
        (
            "hidden states",
            computed.num_hidden_rows(),
            batch.num_hidden_rows(),
        ),
    ] {
        if rows != wanted {
            return Err(BackendError::Step(format!(
                "{rows} rows of {what} instead of {wanted}"
            )));
        }
    }
    Ok(())
}

/// A step whose panic is an error of that step.
fn guarded_step<'a>(
    backend: &'a mut dyn Backend,
    batch: &StepBatch,
) -> Result<StepLogits<'a>, BackendError> {
    // A backend's state after an error is its own promise (`BackendError::Step`); a panic inside
    // it is an error that it did not foresee, and a request must not end the engine.
    catch_unwind(AssertUnwindSafe(once(move || backend.step(batch)))).unwrap_or_else(|panic| {
        let text = words_of(panic.as_ref());
        Err(BackendError::Step(format!("panic: {text}")))
    })
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("of no words").to_owned()
}

/// The same closure, known to be called once, so that it may give its captures away.
fn once<R, F: FnOnce() -> R>(closure: F) -> F {
    closure
}
