//! Why a pod ends without being done, and what that means for the job.

use std::{io, net::SocketAddr, path::PathBuf};

use hyprstream_contract::training::{exit, reason};
use hyprstream_training::{
    CheckpointError, DataError, JobError, LearnError, PrepareError, PublishError, TrainError,
};

use super::branch::{BranchError, Kind};
use crate::train::learner::LearnerError;

/// Why a pod ends without being done.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodError {
    /// A file that the operator wrote.
    #[error("{} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Likewise.
    #[error("{} is not what a pod is told: {why}", path.display())]
    Form { path: PathBuf, why: String },
    /// The pod cannot be asked how far it is.
    #[error("nothing can be told on {address}")]
    Server {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// A thread, a signal handler, or the metrics.
    #[error("{what} cannot be set up")]
    Setup {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The job.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The model, the data, or the checkpoint.
    #[error(transparent)]
    Prepare(Box<PrepareError>),
    /// The data are other data.
    #[error(
        "the dataset has the digest {found}, but the job began with {expected}: give it the \
         dataset of before, or make another job"
    )]
    DatasetChanged { found: String, expected: String },
    /// The learner.
    #[error(transparent)]
    Load(#[from] LearnerError),
    /// The run.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The adapter.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The branch.
    #[error(transparent)]
    Branch(#[from] BranchError),
}

impl From<PrepareError> for PodError {
    fn from(error: PrepareError) -> Self {
        Self::Prepare(Box::new(error))
    }
}

impl PodError {
    /// For a condition, and how the process ends.
    pub(super) fn verdict(&self) -> (&'static str, u8) {
        if self.is_full() {
            return (reason::DISK_FULL, exit::UNAVAILABLE);
        }
        match self {
            Self::File { .. } | Self::Form { .. } => (reason::INTERNAL_ERROR, exit::REFUSED),
            Self::Job(_) => (reason::INVALID_JOB, exit::REFUSED),
            Self::DatasetChanged { .. } => (reason::DATASET_CHANGED, exit::REFUSED),
            Self::Server { .. } | Self::Setup { .. } | Self::Publish(_) => {
                (reason::INTERNAL_ERROR, exit::FAILED)
            }
            Self::Prepare(error) => of_prepare(error),
            Self::Load(error) => match error {
                LearnerError::Model(error) if error.reason() == reason::OUT_OF_MEMORY => {
                    (reason::OUT_OF_MEMORY, exit::REFUSED)
                }
                LearnerError::Model(error) if error.is_final() => {
                    (reason::INVALID_MODEL, exit::REFUSED)
                }
                LearnerError::Model(_) => (reason::INTERNAL_ERROR, exit::FAILED),
                LearnerError::Option(_) | LearnerError::Job(_) => {
                    (reason::INVALID_JOB, exit::REFUSED)
                }
            },
            Self::Train(error) => of_train(error),
            Self::Branch(error) => match error.kind() {
                Kind::Taken => (reason::BRANCH_TAKEN, exit::REFUSED),
                Kind::Refused => (reason::PUSH_REFUSED, exit::REFUSED),
                Kind::Conflict => (reason::MERGE_CONFLICT, exit::REFUSED),
                Kind::Unreachable => (reason::REGISTRY_UNREACHABLE, exit::UNAVAILABLE),
                Kind::DiskFull => (reason::DISK_FULL, exit::UNAVAILABLE),
                Kind::Stopped => (reason::SUSPENDED, exit::SUSPENDED),
                Kind::Local => (reason::INTERNAL_ERROR, exit::FAILED),
            },
        }
    }

    /// Whether a disk of ours was full, wherever that was noticed.
    fn is_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let full = error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull);
            if full {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

fn of_prepare(error: &PrepareError) -> (&'static str, u8) {
    match error {
        PrepareError::Job(_)
        | PrepareError::Layout(_)
        | PrepareError::From(_)
        | PrepareError::Renderer(_) => (reason::INVALID_JOB, exit::REFUSED),
        PrepareError::Model(error) if error.is_final() => (reason::INVALID_MODEL, exit::REFUSED),
        PrepareError::Files(_) => (reason::INVALID_MODEL, exit::REFUSED),
        PrepareError::Data(error) | PrepareError::Eval(error) => match error {
            DataError::Scratch { .. } | DataError::Ended => (reason::INTERNAL_ERROR, exit::FAILED),
            _ => (reason::INVALID_DATASET, exit::REFUSED),
        },
        PrepareError::Checkpoint(error) => of_checkpoint(error),
        // The pod ends by itself then.
        PrepareError::Ended => (reason::SUSPENDED, exit::SUSPENDED),
        PrepareError::Model(_) | PrepareError::Output { .. } => {
            (reason::INTERNAL_ERROR, exit::FAILED)
        }
    }
}

fn of_train(error: &TrainError) -> (&'static str, u8) {
    match error {
        TrainError::NoSamples | TrainError::OtherUnits => (reason::INVALID_DATASET, exit::REFUSED),
        TrainError::OtherLayout { .. }
        | TrainError::OtherRecipe
        | TrainError::OtherLearner { .. } => (reason::INVALID_JOB, exit::REFUSED),
        TrainError::OtherData { .. } | TrainError::OtherEval { .. } => {
            (reason::DATASET_CHANGED, exit::REFUSED)
        }
        TrainError::OtherModel { .. } | TrainError::OtherStart { .. } => {
            (reason::MODEL_CHANGED, exit::REFUSED)
        }
        TrainError::TooLong { .. } | TrainError::Learner(LearnError::OutOfMemory { .. }) => {
            (reason::OUT_OF_MEMORY, exit::REFUSED)
        }
        TrainError::NotFinite { .. } | TrainError::NotFiniteValue { .. } => {
            (reason::DIVERGED, exit::REFUSED)
        }
        TrainError::Checkpoint(error) => of_checkpoint(error),
        TrainError::Sample { .. } | TrainError::Learner(_) => {
            (reason::INTERNAL_ERROR, exit::FAILED)
        }
    }
}

fn of_checkpoint(error: &CheckpointError) -> (&'static str, u8) {
    match error {
        CheckpointError::OtherLayout { .. } => (reason::INVALID_JOB, exit::REFUSED),
        CheckpointError::NotFinite { .. } => (reason::DIVERGED, exit::REFUSED),
        _ => (reason::INTERNAL_ERROR, exit::FAILED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: impl Into<PodError>, expected: (&'static str, u8)) {
        assert_eq!(error.into().verdict(), expected);
    }

    #[test]
    fn what_the_user_did_fails_at_once_and_what_the_cluster_owes_does_not_count() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let (path, doing) = (PathBuf::from("/out"), "written");
        check(
            TrainError::Checkpoint(CheckpointError::Io {
                doing,
                path: path.clone(),
                source: full(),
            }),
            ("DiskFull", 74),
        );
        check(
            PrepareError::Data(DataError::Scratch {
                path: path.clone(),
                source: full(),
            }),
            ("DiskFull", 74),
        );
        check(
            PrepareError::Output {
                path,
                source: io::Error::from(io::ErrorKind::PermissionDenied),
            },
            ("InternalError", 1),
        );
        check(
            TrainError::NotFinite {
                step: 3,
                in_a_row: 3,
            },
            ("Diverged", 2),
        );
        check(TrainError::NoSamples, ("InvalidDataset", 2));
        let (found, expected) = ("a".to_owned(), "b".to_owned());
        check(
            TrainError::OtherModel { found, expected },
            ("ModelChanged", 2),
        );
        check(
            TrainError::TooLong {
                tokens: 1,
                message: String::new(),
            },
            ("OutOfMemory", 2),
        );
        let taken = BranchError::Taken {
            branch: "train/a".to_owned(),
            owner: "b".to_owned(),
        };
        check(taken, ("BranchTaken", 2));
        check(BranchError::Stopped, ("Suspended", 75));
    }
}
