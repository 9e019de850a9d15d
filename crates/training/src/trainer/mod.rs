//! The loop that trains an adapter.

mod dpo;
mod error;
mod evaluate;
mod micro;
mod observe;
mod state;
mod step;
#[cfg(test)]
mod tests;

use std::time::Instant;

pub use error::TrainError;
pub use observe::{Control, Event, NoObserver, Observer, Progress};
pub use state::{Best, Cursor, Inputs, State};

use sha2::{Digest as _, Sha256};

use micro::Computer;
use observe::Pace;
use step::Step;

use crate::{
    checkpoint::{CheckpointError, CheckpointWriter, Checkpoints, Saved},
    job::Method,
    learner::{Dropout, Learner, Policy},
    optimiser::{self, AdamW},
    rows::Rows,
    samples::{Subset, Unit},
    schedule::{Decay, Schedule},
};

/// How a run goes: numbers alone, all of them checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// How it learns.
    pub method: Method,
    /// For [`Method::Dpo`].
    pub beta: f64,
    /// When it ends.
    pub length: Length,
    /// Rows of a step.
    pub batch: usize,
    /// Tokens of a row that is filled; `None` for one sample a row.
    pub packed: Option<usize>,
    /// Most tokens that are computed at once.
    pub micro_batch_tokens: usize,
    /// The highest.
    pub learning_rate: f64,
    /// Part of all steps.
    pub warmup: f64,
    /// After the warm-up.
    pub decay: Decay,
    /// The optimiser's constants.
    pub optimiser: AdamW,
    /// Part of each A's input.
    pub dropout: f32,
    /// Of order and dropout.
    pub seed: u64,
    /// Steps in a row that may be skipped.
    pub max_bad_steps: u32,
    /// When and how it is judged.
    pub eval: EvalRecipe,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl Recipe {
    /// SHA-256 of all that the result depends on, in hexadecimal, behind the version of its text.
    #[must_use]
    pub fn digest(&self) -> String {
        format!("{VERSION}{}", hex::encode(Sha256::digest(self.text())))
    }

    /// Whether `digest` is that of this recipe, by today's text or by that of checkpoints which are
    /// older than it: the words of Rust's `Debug`.
    pub(crate) fn has(&self, digest: &str) -> bool {
        if digest.starts_with(VERSION) {
            return digest == self.digest();
        }
        let before = Self {
            checkpoint_every: 0,
            ..self.clone()
        };
        digest == hex::encode(Sha256::digest(format!("{before:?}")))
    }

    /// All that the result depends on, a line each.
    ///
    /// Invariant: what a recipe of before comes to never changes. A field that is added writes nothing
    /// where it is what was done before it was there, and a name here stays when that of the field
    /// goes.
    fn text(&self) -> String {
        // Without `..`, so that no field is forgotten.
        let Self {
            method,
            beta,
            length,
            batch,
            packed,
            micro_batch_tokens,
            learning_rate,
            warmup,
            decay,
            optimiser,
            dropout,
            seed,
            max_bad_steps,
            eval,
            // When states are saved changes none.
            checkpoint_every: _,
        } = self;
        let AdamW {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            clip,
        } = optimiser;
        let EvalRecipe {
            every,
            patience,
            min_gain,
            keep_best,
        } = eval;
        let method = match method {
            Method::Sft => "sft",
            Method::Dpo => "dpo",
        };
        let (length, count) = match length {
            Length::Epochs(epochs) => ("epochs", u64::from(*epochs)),
            Length::Steps(steps) => ("steps", *steps),
        };
        let decay = match decay {
            Decay::Cosine => "cosine",
            Decay::Linear => "linear",
            Decay::Constant => "constant",
        };
        // Of a number the shortest text that names it, so that each has one spelling.
        let mut lines = vec![
            format!("method {method}"),
            format!("beta {beta}"),
            format!("{length} {count}"),
            format!("batch {batch}"),
            format!("micro_batch_tokens {micro_batch_tokens}"),
            format!("learning_rate {learning_rate}"),
            format!("warmup {warmup}"),
            format!("decay {decay}"),
            format!("adamw {beta1} {beta2} {epsilon} {weight_decay}"),
            format!("clip {clip}"),
            format!("dropout {dropout}"),
            format!("seed {seed}"),
            format!("max_bad_steps {max_bad_steps}"),
            format!("eval_min_gain {min_gain}"),
            format!("eval_keep_best {keep_best}"),
        ];
        lines.extend(packed.map(|tokens| format!("packed {tokens}")));
        lines.extend(every.map(|steps| format!("eval_every {steps}")));
        lines.extend(patience.map(|most| format!("eval_patience {most}")));
        lines.join("\n")
    }
}

/// Begins digests of a recipe's [`Recipe::text`].
const VERSION: &str = "1:";

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// After so many epochs.
    Epochs(u32),
    /// After so many steps.
    Steps(u64),
}

/// When a run is judged, and what follows from that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalRecipe {
    /// Steps between evaluations; `None` for one at the end of each epoch.
    pub every: Option<u64>,
    /// Evaluations without a better loss after which the run ends.
    pub patience: Option<u32>,
    /// What a better loss is better by.
    pub min_gain: f64,
    /// The best is the result, not the last.
    pub keep_best: bool,
}

/// Everything that a run needs.
pub struct Run<'a> {
    /// How it goes.
    pub recipe: &'a Recipe,
    /// What computes.
    pub learner: &'a mut dyn Learner,
    /// What identifies the model's weights.
    pub model: &'a str,
    /// What identifies the adapter that the run begins with; `None` for a new one.
    pub from: Option<&'a str>,
    /// What is learnt from. Not empty.
    pub train: &'a Subset,
    /// What it is judged by; may be `None`.
    pub eval: Option<&'a Subset>,
    /// Where it begins: [`State::fresh`], or that of a checkpoint.
    pub state: State,
    /// The values that answers are compared with by `dpo`; `None` for the model alone.
    pub reference: Option<&'a [f32]>,
    /// Where checkpoints go; `None` for none.
    pub checkpoints: Option<&'a Checkpoints>,
    /// Who is told.
    pub observer: &'a mut dyn Observer,
    /// Who may end it.
    pub control: &'a Control,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps are done, or no evaluation was better for long.
    Complete(Finished),
    /// It was suspended; the state is in the last checkpoint.
    Suspended(State),
    /// It was cancelled; the state is in the last checkpoint.
    Cancelled(State),
}

/// A run that came to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The adapter: that of the best evaluation if so wished, else the last.
    pub values: Vec<f32>,
    /// The step after which it was that.
    pub step: u64,
    /// Whether the run ended before its last step, because no evaluation was better.
    pub stopped_early: bool,
    /// Where the run ended.
    pub cursor: Cursor,
}

/// Trains until the end, or until `control` says otherwise.
///
/// The result depends on the recipe, the data, the learner and the state it began with alone:
/// resumed at any step it is the same bit for bit. A state that another learner computed is refused.
///
/// # Errors
/// [`TrainError`].
pub fn train(run: Run<'_>) -> Result<Outcome, TrainError> {
    Trainer::new(run)?.run()
}

struct Trainer<'a> {
    run: Run<'a>,
    schedule: Schedule,
    lengths: Vec<u32>,
    /// Of the epoch of the cursor.
    rows: Rows,
    writer: Option<CheckpointWriter>,
    pace: Pace,
    /// The last step that a checkpoint was asked of.
    saved: Option<u64>,
    /// The last step of which one is known to be on disk.
    on_disk: Option<u64>,
}

impl<'a> Trainer<'a> {
    fn new(mut run: Run<'a>) -> Result<Self, TrainError> {
        let recipe = run.recipe;
        if run.train.is_empty() {
            return Err(TrainError::NoSamples);
        }
        let expected = match recipe.method {
            Method::Sft => Unit::One,
            Method::Dpo => Unit::Pair,
        };
        if run.train.unit() != expected || run.eval.is_some_and(|eval| eval.unit() != expected) {
            return Err(TrainError::OtherUnits);
        }
        let parameters = run.learner.parameters().len;
        if run.state.values.len() != parameters {
            return Err(TrainError::OtherLayout {
                found: run.state.values.len(),
                expected: parameters,
            });
        }
        let learner = run.learner.name();
        let eval = run.eval.map(Subset::digest);
        let inputs = Inputs {
            model: run.model.to_owned(),
            from: run.from.map(str::to_owned),
            eval,
        };
        run.state.check(recipe, run.train, &inputs, &learner)?;
        let cursor = &mut run.state.cursor;
        cursor.recipe = recipe.digest();
        cursor.inputs = Some(inputs);
        cursor.learner = Some(learner);
        let lengths = run.train.lengths();
        let rows_of = |epoch| Rows::of_epoch(&lengths, recipe.packed, recipe.seed, epoch);
        let total = match recipe.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => (0..epochs)
                .map(|epoch| rows_of(epoch).len().div_ceil(recipe.batch) as u64)
                .sum(),
        };
        let schedule = Schedule {
            learning_rate: recipe.learning_rate,
            warmup: Schedule::warmup_steps(recipe.warmup, total),
            total,
            decay: recipe.decay,
        };
        let rows = rows_of(run.state.cursor.epoch);
        let writer = run
            .checkpoints
            .map(|checkpoints| checkpoints.writer(&run.state));
        let writer = writer.transpose();
        Ok(Self {
            writer: writer.map_err(TrainError::Checkpoint)?,
            pace: Pace::new(run.state.cursor.step),
            saved: None,
            on_disk: None,
            run,
            schedule,
            lengths,
            rows,
        })
    }

    fn run(mut self) -> Result<Outcome, TrainError> {
        // What a run before this one left.
        self.judge()?;
        while !self.is_over() {
            if !self.run.state.cursor.unjudged {
                self.next_epoch();
                self.step()?;
                self.run.state.cursor.unjudged = self.is_eval_due();
                self.judge()?;
            }
            let step = self.run.state.cursor.step;
            let wish = self.run.control.wish();
            if step.is_multiple_of(self.run.recipe.checkpoint_every) || wish.is_some() {
                self.save()?;
            }
            self.hear();
            if let Some(wish) = wish.filter(|_| !self.is_over()) {
                self.settle()?;
                let state = self.run.state;
                return Ok(match wish {
                    observe::Wish::Suspend => Outcome::Suspended(state),
                    observe::Wish::Cancel => Outcome::Cancelled(state),
                });
            }
        }
        self.save()?;
        self.settle()?;
        let (values, step) = self.result()?;
        Ok(Outcome::Complete(Finished {
            values,
            step,
            stopped_early: self.out_of_patience(),
            cursor: self.run.state.cursor,
        }))
    }

    /// Begins another epoch where one is over.
    fn next_epoch(&mut self) {
        let cursor = &mut self.run.state.cursor;
        if cursor.offset < self.rows.len() as u64 {
            return;
        }
        cursor.epoch += 1;
        cursor.offset = 0;
        let recipe = self.run.recipe;
        self.rows = Rows::of_epoch(&self.lengths, recipe.packed, recipe.seed, cursor.epoch);
    }

    fn is_last_of_epoch(&self) -> bool {
        self.run.state.cursor.offset == self.rows.len() as u64
    }

    fn step(&mut self) -> Result<(), TrainError> {
        let began = Instant::now();
        let recipe = self.run.recipe;
        let state = &mut self.run.state;
        let from = state.cursor.offset as usize;
        let to = (from + recipe.batch).min(self.rows.len());
        let units = self.rows.samples(from..to);
        let learning_rate = self.schedule.at(state.cursor.step);
        let mut computer = Computer {
            learner: &mut *self.run.learner,
            observer: &mut *self.run.observer,
            limit: &mut state.cursor.micro_batch_tokens,
        };
        let mut done = match recipe.method {
            Method::Sft => {
                let dropout = Dropout {
                    probability: recipe.dropout,
                    seed: recipe.seed,
                    step: state.cursor.step,
                };
                Step::sft(&mut computer, self.run.train, units, &state.values, dropout)?
            }
            Method::Dpo => {
                let reference = self.run.reference.map_or(Policy::Base, Policy::Adapter);
                Step::dpo(
                    &mut computer,
                    self.run.train,
                    units,
                    &state.values,
                    reference,
                    recipe.beta,
                )?
            }
        };
        let norm = optimiser::norm(&done.gradient);
        let cursor = &mut state.cursor;
        cursor.offset = to as u64;
        cursor.step += 1;
        cursor.tokens += done.tokens;
        if done.loss.is_finite() && norm.is_finite() {
            cursor.bad_in_a_row = 0;
            cursor.updates += 1;
            optimiser::clip(&mut done.gradient, norm, recipe.optimiser.clip);
            recipe.optimiser.update(
                &mut state.values,
                &mut state.moments,
                &done.gradient,
                learning_rate,
                cursor.updates,
            );
        } else {
            cursor.bad_in_a_row += 1;
            cursor.skipped += 1;
            let (step, in_a_row) = (cursor.step, cursor.bad_in_a_row);
            self.run.observer.hear(Event::Skipped {
                step,
                loss: done.loss,
                norm,
            });
            if in_a_row > recipe.max_bad_steps {
                return Err(TrainError::NotFinite { step, in_a_row });
            }
        }
        let cursor = &self.run.state.cursor;
        let progress = Progress {
            step: cursor.step,
            steps: self.schedule.total,
            epoch: f64::from(cursor.epoch) + to as f64 / self.rows.len() as f64,
            loss: done.loss,
            accuracy: done.accuracy,
            gradient_norm: norm,
            learning_rate,
            tokens: done.tokens,
            targets: done.targets,
            elapsed: began.elapsed(),
            remaining: self.pace.remaining(cursor.step, self.schedule.total),
        };
        self.run.observer.hear(Event::Step(&progress));
        Ok(())
    }

    fn is_eval_due(&self) -> bool {
        let cursor = &self.run.state.cursor;
        let last = cursor.step == self.schedule.total;
        self.run.eval.is_some()
            && match self.run.recipe.eval.every {
                Some(every) => cursor.step.is_multiple_of(every) || last,
                None => self.is_last_of_epoch() || last,
            }
    }

    /// Whether all steps are done and judged, or no evaluation was better for long.
    fn is_over(&self) -> bool {
        let cursor = &self.run.state.cursor;
        let is_last = cursor.step >= self.schedule.total;
        !cursor.unjudged && (is_last || self.out_of_patience())
    }

    /// Judges the last step if that is still to do, unless somebody wishes an end before all of it is
    /// done: nothing of it is kept then.
    fn judge(&mut self) -> Result<(), TrainError> {
        let Some(eval) = self.run.eval.filter(|_| self.run.state.cursor.unjudged) else {
            self.run.state.cursor.unjudged = false;
            return Ok(());
        };
        let recipe = self.run.recipe;
        let state = &mut self.run.state;
        let mut computer = Computer {
            learner: &mut *self.run.learner,
            observer: &mut *self.run.observer,
            limit: &mut state.cursor.micro_batch_tokens,
        };
        let policy = Policy::Adapter(&state.values);
        let control = self.run.control;
        let found = match recipe.method {
            Method::Sft => evaluate::sft(&mut computer, eval, policy, control)?,
            Method::Dpo => {
                let reference = self.run.reference.map_or(Policy::Base, Policy::Adapter);
                evaluate::dpo(
                    &mut computer,
                    eval,
                    [policy, reference],
                    recipe.beta,
                    control,
                )?
            }
        };
        let Some(found) = found else {
            return Ok(());
        };
        let cursor = &mut state.cursor;
        cursor.unjudged = false;
        // A loss that is no number is better than none.
        let better = found.loss.is_finite()
            && cursor
                .best
                .is_none_or(|best| found.loss < best.loss - recipe.eval.min_gain);
        if better {
            cursor.without_gain = 0;
            cursor.best = Some(Best {
                step: cursor.step,
                loss: found.loss,
            });
        } else {
            cursor.without_gain += 1;
        }
        let step = cursor.step;
        self.run.observer.hear(Event::Evaluated {
            step,
            loss: found.loss,
            accuracy: found.accuracy,
            better,
        });
        if better && recipe.eval.keep_best {
            state.best_values = Some(state.values.clone());
        }
        Ok(())
    }

    fn out_of_patience(&self) -> bool {
        let patience = self.run.recipe.eval.patience;
        patience.is_some_and(|most| self.run.state.cursor.without_gain >= most)
    }

    /// Has a checkpoint of this step written, unless there is one.
    fn save(&mut self) -> Result<(), TrainError> {
        let step = self.run.state.cursor.step;
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        if self.saved == Some(step) {
            return Ok(());
        }
        self.saved = Some(step);
        writer
            .write(&self.run.state)
            .map_err(TrainError::Checkpoint)
    }

    /// Tells what became of checkpoints.
    fn hear(&mut self) {
        if let Some(writer) = &self.writer {
            let written = writer.written();
            self.tell(written);
        }
    }

    /// Waits until the last checkpoint is on disk.
    fn settle(&mut self) -> Result<(), TrainError> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let failed = self.tell(writer.finish());
        if let Some((_, error)) = failed.filter(|(step, _)| self.saved == Some(*step)) {
            return Err(TrainError::Checkpoint(error));
        }
        if self.saved.is_some() && self.on_disk != self.saved {
            return Err(TrainError::Checkpoint(CheckpointError::Thread));
        }
        Ok(())
    }

    /// Tells of these, and gives the last that failed.
    fn tell(&mut self, written: Vec<Saved>) -> Option<(u64, CheckpointError)> {
        let mut failed = None;
        for written in written {
            match written {
                Ok((written, cost)) => {
                    self.on_disk = Some(written.step);
                    self.run.observer.hear(Event::Saved {
                        step: written.step,
                        path: &written.path,
                        cost,
                    });
                }
                Err((step, error)) => {
                    self.run.observer.hear(Event::NotSaved {
                        step,
                        error: &error,
                    });
                    failed = Some((step, error));
                }
            }
        }
        failed
    }

    /// The values that the run gives, and the step they are of.
    fn result(&mut self) -> Result<(Vec<f32>, u64), TrainError> {
        let state = &mut self.run.state;
        let best = state.cursor.best.filter(|_| self.run.recipe.eval.keep_best);
        let values = match (best, state.best_values.take()) {
            (Some(best), Some(values)) => (values, best.step),
            _ => (state.values.clone(), state.cursor.step),
        };
        if let Some(index) = values.0.iter().position(|value| !value.is_finite()) {
            return Err(TrainError::NotFiniteValue { index });
        }
        Ok(values)
    }
}
