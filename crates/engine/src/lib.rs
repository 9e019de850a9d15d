//! The engine: scheduling, cache blocks, sampling, stopping, tokenising and chat templates.
//!
//! It links no libtorch and speaks no HTTP. A [`backend::Backend`] computes; the engine decides
//! what.

pub mod backend;

pub use backend::{
    Backend, BackendError, BlockId, LogitsWanted, ModelSpec, SequenceStep, StepBatch, StepLogits,
};
