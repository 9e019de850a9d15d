//! Why a branch or tag could not be read or changed.

use std::path::PathBuf;

use crate::{RepoError, handle::HistoryError};

/// A branch or tag could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefError {
    /// The repository cannot be read or written, or the name is not valid.
    #[error(transparent)]
    Repo(RepoError),
    /// The commit to name cannot be found.
    #[error(transparent)]
    History(HistoryError),
    /// There is no such branch or tag.
    #[error("there is no {kind} {name:?}")]
    Missing {
        /// `branch` or `tag`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one of that name, or one that cannot lie beside it (`dev` and `dev/next`).
    #[error("there is a {kind} in the way of {name:?} already: delete or rename it first")]
    Exists {
        /// `branch` or `tag`.
        kind: &'static str,
        /// The new name.
        name: String,
    },
    /// The branch has commits that would be lost.
    #[error("branch {branch:?} is not merged into {into}: merge it, or delete it with force")]
    NotMerged {
        /// The branch.
        branch: String,
        /// Its upstream or the default branch.
        into: String,
    },
    /// The branch is what a worktree works on.
    #[error("branch {branch:?} is checked out in {worktree:?}: switch that to another one first")]
    CheckedOut {
        /// The branch.
        branch: String,
        /// The folder.
        worktree: PathBuf,
    },
    /// The branch is the one that a clone gets.
    #[error("branch {branch:?} is the default branch: let HEAD name another one first")]
    DefaultBranch {
        /// The branch.
        branch: String,
    },
    /// Somebody else changed it meanwhile.
    #[error("{name:?} was changed by somebody else meanwhile: look at it again")]
    Moved {
        /// The branch or tag.
        name: String,
    },
    /// What a tag says cannot be written.
    #[error("the tag {name:?} cannot be made: {why}")]
    InvalidTag {
        /// The tag.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl RefError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::History(error) => error.reason(),
            Self::Missing { .. } => "ReferenceNotFound",
            Self::Exists { .. } => "ReferenceExists",
            Self::NotMerged { .. } => "NotMerged",
            Self::CheckedOut { .. } | Self::DefaultBranch { .. } => "BranchInUse",
            Self::Moved { .. } => "Rejected",
            Self::InvalidTag { .. } => "InvalidMessage",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::History(error) => error.is_retriable(),
            Self::Moved { .. } => true,
            _ => false,
        }
    }
}
