//! Training of LoRA adapters: everything but the arithmetic of the model, which a [`Learner`] does.
//!
//! [`Job`] is what a user writes, and [`prepare`] reads what it names. A program makes a learner for
//! the [`Prepared`] model and parameters, and calls [`Prepared::train`] and [`Prepared::publish`].
//! The loop itself is [`train`]; what it needs is small enough to be put together by hand in a test:
//! a [`Recipe`], [`Samples`], a [`State`].
//!
//! # Invariants
//! - A run is a pure function of its recipe, data and learner: order, dropout and first values follow
//!   from the seed by counters, so that a state without a generator's resumes to the same bits.
//! - A loss is divided by the tokens that count of the whole step, and masks are by position.
//!
//! Deliberately absent: git, HTTP, asynchronous code, and libtorch.

#[cfg(test)]
mod bigram;
mod checkpoint;
mod data;
mod job;
mod layout;
mod learner;
mod optimiser;
mod prepare;
mod random;
mod render;
mod rows;
mod samples;
mod schedule;
mod trainer;

pub use checkpoint::{
    CheckpointError, CheckpointWriter, Checkpoints, Cost, Latest, Written,
    adopt as adopt_checkpoint, newest as newest_checkpoint,
};
pub use data::{BadRecord, DataError, Report, Source, is_pattern, read};
pub use job::{
    AdapterSpec, CheckpointSpec, DataSpec, EvalSpec, GateBaseline, GateMetric, GateSpec, Job,
    JobError, Loss, Method, TrainingSpec,
};
pub use layout::{LayoutError, Lora, Targets, adapter, first_values, of_adapter, parameters};
pub use learner::{
    Batch, Dropout, LearnError, Learner, Parameters, Part, PartValues, Policy, Score, Segment,
};
pub use optimiser::{AdamW, Moments, clip, norm};
pub use prepare::{Around, PrepareError, Prepared, PublishError, prepare, samples_at};
pub use random::philox;
pub use render::{Renderer, RendererError};
pub use rows::Rows;
pub use samples::{Sample, Samples, SamplesWriter, Subset, Unit};
pub use schedule::{Decay, Schedule};
pub use trainer::{
    Best, Control, Cursor, EvalRecipe, Event, Finished, Inputs, Length, NoObserver, Observer,
    Outcome, Progress, Recipe, Run, State, TrainError, train,
};
