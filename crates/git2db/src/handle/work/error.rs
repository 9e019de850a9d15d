//! Why a worktree could not be read or changed.

use std::path::PathBuf;

use crate::{
    RepoError,
    commit::CommitError,
    handle::{HistoryError, RefError},
    store::StoreError,
};

/// A worktree could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorktreeError {
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repo(RepoError),
    /// The object store failed.
    #[error(transparent)]
    Store(StoreError),
    /// A commit could not be made, or a path is not one to commit.
    #[error(transparent)]
    Commit(CommitError),
    /// A commit or file could not be found.
    #[error(transparent)]
    History(HistoryError),
    /// A branch could not be read or changed.
    #[error(transparent)]
    Ref(RefError),
    /// There is no such file, neither in the worktree nor staged.
    #[error("there is no {path:?} in the worktree")]
    NoPath {
        /// The path.
        path: String,
    },
    /// A rule of `.gitignore` names the path.
    #[error("{path:?} is ignored by a .gitignore: change that first")]
    Ignored {
        /// The path.
        path: String,
    },
    /// Something lies where a file is to be.
    #[error("there is something at {path:?} already")]
    Exists {
        /// The path.
        path: String,
    },
    /// A file that would have to be written, removed or staged has a name that cannot be said here.
    #[error("the name \"{path}\" is not UTF-8: rename the file with git, or let git do this")]
    NotUtf8 {
        /// The path, with its odd bytes escaped or replaced.
        path: String,
    },
    /// Changes that nobody committed would be lost.
    #[error("changes of {paths:?} would be lost: commit them, put them aside, or use force")]
    LocalChanges {
        /// The files, at most some of them.
        paths: Vec<String>,
    },
    /// Files are in conflict.
    #[error("{paths:?} are in conflict: write what they are to be and stage them")]
    Conflicted {
        /// The files, at most some of them.
        paths: Vec<String>,
    },
    /// Stock git is in the middle of a merge, a rebase or the like.
    #[error("git has not finished what it does in {worktree:?}: finish it there, or give it up")]
    Unfinished {
        /// The folder.
        worktree: PathBuf,
    },
    /// What is staged is what is committed.
    #[error("nothing is staged that is not committed")]
    NothingToCommit,
    /// There is no commit yet.
    #[error("the branch has no commit yet")]
    NoCommits,
    /// Somebody else moved the branch meanwhile.
    #[error("{branch:?} was moved by somebody else meanwhile: look at it again")]
    Moved {
        /// The branch, or `HEAD`.
        branch: String,
    },
    /// Another program writes the index.
    #[error("another program is changing {worktree:?}: wait, or remove a stale index.lock")]
    Locked {
        /// The folder.
        worktree: PathBuf,
    },
    /// A file of the worktree cannot be read or written.
    #[error("cannot {act} {path:?}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl WorktreeError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Commit(error) => error.reason(),
            Self::History(error) => error.reason(),
            Self::Ref(error) => error.reason(),
            Self::NoPath { .. } => "FileNotFound",
            Self::Ignored { .. } | Self::NotUtf8 { .. } => "RefusedContent",
            Self::Exists { .. } => "FileExists",
            Self::LocalChanges { .. } => "LocalChanges",
            Self::Conflicted { .. } | Self::Unfinished { .. } => "Conflict",
            Self::NothingToCommit => "NothingToCommit",
            Self::NoCommits => "ReferenceNotFound",
            Self::Moved { .. } => "Rejected",
            Self::Locked { .. } => "Locked",
            Self::Io { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Store(error) => error.is_retriable(),
            Self::Commit(error) => error.is_retriable(),
            Self::History(error) => error.is_retriable(),
            Self::Ref(error) => error.is_retriable(),
            Self::Locked { .. } | Self::Moved { .. } | Self::Io { .. } => true,
            _ => false,
        }
    }
}
