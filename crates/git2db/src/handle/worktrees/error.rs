//! What can go wrong with worktrees.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{CommitId, RepoError, checkout::CheckoutError, durable, storage::StorageError};

/// A worktree could not be made, found, shown or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorktreesError {
    /// The repository cannot be used.
    #[error(transparent)]
    Repo(RepoError),
    /// The files of the commit cannot be made.
    #[error(transparent)]
    Checkout(CheckoutError),
    /// The storage driver failed.
    #[error(transparent)]
    Storage(StorageError),
    /// No worktree has that name.
    #[error("there is no worktree {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The branch does not exist.
    #[error("there is no branch {branch:?}")]
    NoBranch {
        /// The branch.
        branch: String,
    },
    /// A branch to be made exists.
    #[error("branch {branch:?} exists already")]
    BranchExists {
        /// The branch.
        branch: String,
    },
    /// A worktree has the branch checked out: commits of two would undo each other.
    #[error("branch {branch:?} is checked out at {path:?} already")]
    BranchInUse {
        /// The branch.
        branch: String,
        /// The worktree.
        path: PathBuf,
    },
    /// A worktree cannot be there, or cannot have that name.
    #[error("no worktree can be at {path:?}: {why}")]
    BadPath {
        /// The path.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The worktree is locked.
    #[error("worktree {name:?} is locked: {reason}")]
    Locked {
        /// The worktree.
        name: String,
        /// As whoever locked it said.
        reason: String,
    },
    /// There are changes that would be lost.
    #[error(
        "worktree {name:?} has uncommitted changes, such as in {example:?}: commit them, or \
             remove it by force"
    )]
    Uncommitted {
        /// The worktree.
        name: String,
        /// One of the files.
        example: String,
    },
    /// The files are not there, since a reboot or because somebody removed them.
    #[error("the files of worktree {name:?} are not at {path:?}: mount or prune it")]
    NotThere {
        /// The worktree.
        name: String,
        /// Where they should be.
        path: PathBuf,
    },
    /// The checkout of a commit went away again and again while a worktree was made of it.
    #[error("the checkout of {commit} is removed while it is needed")]
    Contended {
        /// The commit.
        commit: CommitId,
    },
    /// What was recorded of a worktree cannot be read.
    #[error("{path:?} is not a record of this version: {detail}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The index of a worktree cannot be read or written.
    #[error("cannot write the index {path:?}")]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        source: git2::Error,
    },
    /// No space is left.
    #[error("no space is left for {path:?}")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {act} {path:?}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl WorktreesError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Checkout(error) => error.reason(),
            Self::Storage(error) => error.reason(),
            Self::NotFound { .. } => "WorktreeNotFound",
            Self::NoBranch { .. } => "ReferenceNotFound",
            Self::BranchExists { .. } => "BranchExists",
            Self::BranchInUse { .. } => "BranchInUse",
            Self::BadPath { .. } => "BadPath",
            Self::Locked { .. } => "Locked",
            Self::Uncommitted { .. } => "UncommittedChanges",
            Self::NotThere { .. } => "NotMounted",
            Self::DiskFull { .. } => "DiskFull",
            Self::Contended { .. } | Self::Record { .. } | Self::Index { .. } | Self::Io { .. } => {
                "InternalError"
            }
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Checkout(error) => error.is_retriable(),
            Self::Storage(error) => error.is_retriable(),
            Self::Contended { .. }
            | Self::DiskFull { .. }
            | Self::Index { .. }
            | Self::Io { .. } => true,
            _ => false,
        }
    }
}

pub(super) fn io_error(act: &'static str, path: &Path, source: io::Error) -> WorktreesError {
    let path = path.to_owned();
    if durable::is_full(&source) {
        WorktreesError::DiskFull { path }
    } else {
        WorktreesError::Io { act, path, source }
    }
}
