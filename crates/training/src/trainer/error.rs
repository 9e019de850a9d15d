//! Why a run ends without a result.

use std::io;

use crate::{checkpoint::CheckpointError, learner::LearnError};

/// Why a run ended without a result. What was saved before stays.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// There is nothing to learn from.
    #[error("there are no samples to learn from")]
    NoSamples,
    /// Samples stand alone where pairs are needed, or the other way round.
    #[error(
        "the samples are not of the form that the method needs: pairs for dpo, no pairs for sft"
    )]
    OtherUnits,
    /// The state is of another adapter.
    #[error(
        "the checkpoint has {found} numbers, but this adapter {expected}: train into another folder, or with the adapter of before"
    )]
    OtherLayout {
        /// Numbers of the state.
        found: usize,
        /// Numbers of the learner.
        expected: usize,
    },
    /// The state is of a run of another recipe.
    #[error(
        "the checkpoint was trained with other numbers (learning rate, batch, steps, seed or the \
         like): train into another folder, or with those of before"
    )]
    OtherRecipe,
    /// The state is of a run on other data.
    #[error(
        "the checkpoint was trained on samples {found}, but these are {expected}: train into another folder, or on the data of before"
    )]
    OtherData {
        /// Digest of the state.
        found: String,
        /// Digest of the samples.
        expected: String,
    },
    /// The state is of a run on another model.
    #[error(
        "the checkpoint was trained on the model {found}, but this one is {expected}: train into another folder, or on the model of before"
    )]
    OtherModel {
        /// Digest of the state.
        found: String,
        /// Digest of the model.
        expected: String,
    },
    /// The state is of a run that began with another adapter.
    #[error(
        "the checkpoint went on from the adapter {found}, but adapter.from is {expected}: train into another folder, or from the adapter of before"
    )]
    OtherStart {
        /// Digest of the state, or none.
        found: String,
        /// Digest of the adapter, or none.
        expected: String,
    },
    /// The state is of a run that was judged by other data.
    #[error(
        "the checkpoint was judged by the samples {found}, but eval has {expected}: train into another folder, or with the eval of before"
    )]
    OtherEval {
        /// Digest of the state, or none.
        found: String,
        /// Digest of the samples, or none.
        expected: String,
    },
    /// The state was computed by something else.
    #[error(
        "the checkpoint was computed by {found}, but here {expected} computes: go on with the \
         device, kernels and type of weights of before, or train into another folder"
    )]
    OtherLearner {
        /// Name of the learner of the state.
        found: String,
        /// Name of the one that is here.
        expected: String,
    },
    /// A sample cannot be read from where samples are kept.
    #[error("sample {number} cannot be read back")]
    Sample {
        /// Its number.
        number: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One sample alone does not fit into memory.
    #[error(
        "a sample of {tokens} tokens alone does not fit into memory ({message}): lower data.maxLength"
    )]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// What failed.
        message: String,
    },
    /// The learner failed.
    #[error(transparent)]
    Learner(LearnError),
    /// Several steps in a row were no finite number.
    #[error(
        "loss or gradient was no finite number {in_a_row} times in a row, last at step {step}: \
         lower training.learningRate, or look at the data"
    )]
    NotFinite {
        /// The last of them.
        step: u64,
        /// How many.
        in_a_row: u32,
    },
    /// The adapter that came out holds a number that is not finite.
    #[error("number {index} of the trained adapter is not finite: lower training.learningRate")]
    NotFiniteValue {
        /// Which.
        index: usize,
    },
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(CheckpointError),
}

impl TrainError {
    /// A word for conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSamples | Self::OtherUnits => "InvalidData",
            Self::OtherLayout { .. }
            | Self::OtherRecipe
            | Self::OtherData { .. }
            | Self::OtherModel { .. }
            | Self::OtherStart { .. }
            | Self::OtherEval { .. }
            | Self::OtherLearner { .. } => "CheckpointMismatch",
            Self::Sample { .. } => "DiskFailed",
            Self::TooLong { .. } => "OutOfMemory",
            Self::Learner(_) => "LearnerFailed",
            Self::NotFinite { .. } | Self::NotFiniteValue { .. } => "NotFinite",
            Self::Checkpoint(_) => "CheckpointFailed",
        }
    }
}
