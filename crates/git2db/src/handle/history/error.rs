//! Why the history of a repository could not be read.

use crate::{CommitId, RepoError, store::StoreError};

/// The history of a repository, or a file of it, could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repo(RepoError),
    /// The object store failed.
    #[error(transparent)]
    Store(StoreError),
    /// What was named as a commit is none.
    #[error("{revision:?} names no commit: {detail}")]
    Revision {
        /// What was asked for.
        revision: String,
        /// Why it is none.
        detail: String,
    },
    /// A commit is not in the repository, such as one of a shallow history.
    #[error("commit {commit} is not in the repository: fetch it")]
    NoCommit {
        /// The commit.
        commit: CommitId,
    },
    /// There is nothing at the path.
    #[error("there is no {path:?} in {place}")]
    NoPath {
        /// The path.
        path: String,
        /// The commit, or the worktree.
        place: String,
    },
    /// There is something else than a file at the path.
    #[error("{path:?} in {place} is {kind}, not a file")]
    NotAFile {
        /// The path.
        path: String,
        /// The commit, or the worktree.
        place: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file of a worktree cannot be read.
    #[error("{path:?} cannot be read")]
    Read {
        /// The path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl HistoryError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Revision { .. } | Self::NoCommit { .. } => "ReferenceNotFound",
            Self::NoPath { .. } | Self::NotAFile { .. } => "FileNotFound",
            Self::Read { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Store(error) => error.is_retriable(),
            Self::Read { .. } => true,
            Self::Revision { .. }
            | Self::NoCommit { .. }
            | Self::NoPath { .. }
            | Self::NotAFile { .. } => false,
        }
    }
}
