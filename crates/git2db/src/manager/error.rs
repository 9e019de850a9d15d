//! Why the registry of repositories could not do its work.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::Name;
use crate::{RepoError, durable, store::StoreError};

/// The registry of tracked repositories could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// No repository has that name.
    #[error("no repository is tracked as {:?}", name.as_str())]
    NotTracked {
        /// The name.
        name: Name,
    },
    /// Another repository has that name.
    #[error("another repository is tracked as {:?}", name.as_str())]
    NameTaken {
        /// The name.
        name: Name,
    },
    /// The folder is no repository that can be tracked in that way.
    #[error("{path:?} cannot be tracked: {why}")]
    Unsuitable {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Something works on the repository, or worktrees of it are checked out.
    #[error("repository {:?} is in use: {why}", name.as_str())]
    InUse {
        /// The name.
        name: Name,
        /// By what.
        why: String,
    },
    /// The list of repositories cannot be understood.
    #[error("the list {path:?} cannot be read: {why}")]
    List {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A repository cannot be opened or made.
    #[error(transparent)]
    Repo(RepoError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(StoreError),
    /// No space is left.
    #[error("no space is left for {path:?}")]
    DiskFull {
        /// What could not be written.
        path: PathBuf,
    },
    /// A file or folder of the registry cannot be used.
    #[error("cannot {act} {path:?}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ManagerError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotTracked { .. } => "RepositoryNotFound",
            Self::NameTaken { .. } => "NameTaken",
            Self::Unsuitable { .. } => "RefusedContent",
            Self::InUse { .. } => "InUse",
            Self::Repo(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::DiskFull { .. } => "DiskFull",
            Self::List { .. } | Self::Io { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NotTracked { .. }
            | Self::NameTaken { .. }
            | Self::Unsuitable { .. }
            | Self::List { .. } => false,
            Self::InUse { .. } | Self::DiskFull { .. } | Self::Io { .. } => true,
            Self::Repo(error) => error.is_retriable(),
            Self::Store(error) => error.is_retriable(),
        }
    }

    pub(crate) fn io(act: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if durable::is_full(&source) {
            return Self::DiskFull { path };
        }
        Self::Io { act, path, source }
    }
}
