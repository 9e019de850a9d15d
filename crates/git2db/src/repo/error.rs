//! What can go wrong with a repository on this machine.

use std::path::PathBuf;

use crate::{CommitId, Reference};

/// A repository on this machine cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// The repository belongs to another user.
    #[error("repository {path:?} belongs to another user than this process runs as")]
    NotOurs {
        /// The repository.
        path: PathBuf,
    },
    /// There is no repository, or it cannot be opened or made.
    #[error("repository {path:?} cannot be opened")]
    Open {
        /// The repository.
        path: PathBuf,
        /// Why.
        source: git2::Error,
    },
    /// The commit or a part of it is not in the repository.
    #[error("commit {commit} is not complete in repository {path:?}")]
    CommitMissing {
        /// The repository.
        path: PathBuf,
        /// The commit.
        commit: CommitId,
    },
    /// The reference names another kind of object.
    #[error("{reference} names {kind}, not a commit: serve a branch, or a tag of a commit")]
    NotACommit {
        /// What was looked for.
        reference: Reference,
        /// What it names instead.
        kind: String,
    },
    /// What was committed is not as git would write it, or too large.
    #[error("the content of repository {path:?} is refused: {detail}")]
    Content {
        /// The repository.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The name cannot be the name of a branch or tag.
    #[error("{name:?} is not a valid name of a branch or tag")]
    InvalidReference {
        /// The name.
        name: String,
    },
    /// Reading or writing the repository failed.
    #[error("repository {path:?} cannot be read or written")]
    Access {
        /// The repository.
        path: PathBuf,
        /// Why.
        source: git2::Error,
    },
    /// A worktree is of another repository than the one that was asked.
    #[error("{path:?} is no worktree of repository {repository:?}")]
    OtherRepository {
        /// The worktree.
        path: PathBuf,
        /// The repository.
        repository: PathBuf,
    },
    /// The folder in which a repository is to be made cannot be made or locked.
    #[error("no repository can be made in {path:?}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No space is left.
    #[error("no space is left for repository {path:?}")]
    DiskFull {
        /// The repository.
        path: PathBuf,
    },
}

impl RepoError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CommitMissing { .. }
            | Self::OtherRepository { .. }
            | Self::NotACommit { .. }
            | Self::InvalidReference { .. } => "ReferenceNotFound",
            Self::Content { .. } => "RefusedContent",
            Self::DiskFull { .. } => "DiskFull",
            Self::NotOurs { .. }
            | Self::Open { .. }
            | Self::Access { .. }
            | Self::Folder { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        !matches!(
            self,
            Self::InvalidReference { .. }
                | Self::NotACommit { .. }
                | Self::Content { .. }
                | Self::NotOurs { .. }
                | Self::OtherRepository { .. }
        )
    }
}
