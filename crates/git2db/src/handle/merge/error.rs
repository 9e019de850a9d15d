//! Why branches could not be merged.

use std::path::PathBuf;

use crate::{
    CommitId, RepoError,
    commit::CommitError,
    handle::{HistoryError, RefError, WorktreeError},
};

/// Branches could not be merged, or a change not be repeated or taken back. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repo(RepoError),
    /// A branch cannot be read.
    #[error(transparent)]
    Ref(RefError),
    /// A commit cannot be found.
    #[error(transparent)]
    History(HistoryError),
    /// The commit of the result cannot be made.
    #[error(transparent)]
    Commit(CommitError),
    /// The worktree cannot follow.
    #[error(transparent)]
    Worktree(WorktreeError),
    /// A worktree works on the branch, whose files would be left behind.
    #[error("branch {branch:?} is checked out in {worktree:?}: merge there")]
    CheckedOut {
        /// The branch.
        branch: String,
        /// The folder.
        worktree: PathBuf,
    },
    /// Only a fast-forward was allowed.
    #[error("{into} and {from} have both gone on: merge them, or rebase one")]
    NotFastForward {
        /// What was merged into.
        into: CommitId,
        /// What was to be merged.
        from: CommitId,
    },
    /// The commits have nothing in common.
    #[error("{into} and {from} have no commit in common")]
    Unrelated {
        /// What was merged into.
        into: CommitId,
        /// What was to be merged.
        from: CommitId,
    },
    /// The branch is not where the caller expects it, or was moved meanwhile.
    #[error("{branch:?} was moved by somebody else: merge into where it is now")]
    Moved {
        /// The branch.
        branch: String,
    },
    /// A merge has several parents, and which one to compare with was not said.
    #[error("commit {commit} is a merge: say which parent its change is to be compared with")]
    WhichParent {
        /// The merge.
        commit: CommitId,
    },
    /// The commit has no such parent.
    #[error("commit {commit} has no parent {number}")]
    NoParent {
        /// The commit.
        commit: CommitId,
        /// Counted from 1.
        number: u32,
    },
}

impl MergeError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Ref(error) => error.reason(),
            Self::History(error) => error.reason(),
            Self::Commit(error) => error.reason(),
            Self::Worktree(error) => error.reason(),
            Self::CheckedOut { .. } => "BranchInUse",
            Self::NotFastForward { .. } => "NotFastForward",
            Self::Unrelated { .. } => "UnrelatedHistories",
            Self::Moved { .. } => "Rejected",
            Self::WhichParent { .. } | Self::NoParent { .. } => "ReferenceNotFound",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Ref(error) => error.is_retriable(),
            Self::History(error) => error.is_retriable(),
            Self::Commit(error) => error.is_retriable(),
            Self::Worktree(error) => error.is_retriable(),
            Self::Moved { .. } => true,
            _ => false,
        }
    }
}
