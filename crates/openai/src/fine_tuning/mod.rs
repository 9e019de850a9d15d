//! Fine-tuning jobs: `/v1/fine_tuning/jobs`.

mod job;
mod method;
mod request;

pub use job::{
    Checkpoint, CheckpointMetrics, Event, JOB, Job, JobError, JobStatus, TopHyperparameters,
};
pub use method::{Hyperparameters, Method, Objective, Setting};
pub use request::{CreateJob, MAX_METADATA, MAX_SEED, MAX_SUFFIX_CHARS};
