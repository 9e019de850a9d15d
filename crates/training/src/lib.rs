//! Training of LoRA adapters: everything but the arithmetic of the model, which a [`Learner`] does.

mod learner;

pub use learner::{
    Batch, Dropout, LearnError, Learner, Parameters, Part, PartValues, Policy, Score, Segment,
};
