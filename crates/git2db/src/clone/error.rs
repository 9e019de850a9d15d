//! Why a clone is not complete.

use crate::{
    FetchError, InvalidGlob, RemoteError, RepoError, lfs::LfsError, manager::ManagerError,
    tree::TreeError,
};

/// A clone is not complete and not listed. What came is kept, and continued by the next attempt
/// with the same name and URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloneError {
    /// The registry refuses it or failed.
    #[error(transparent)]
    Manager(ManagerError),
    /// A glob cannot be read.
    #[error(transparent)]
    Glob(InvalidGlob),
    /// The repository cannot be written.
    #[error(transparent)]
    Repo(RepoError),
    /// The remote does not have what is wanted, or could not be asked.
    #[error(transparent)]
    Remote(RemoteError),
    /// Fetching failed.
    #[error(transparent)]
    Fetch(FetchError),
    /// The commit's files are refused.
    #[error(transparent)]
    Tree(TreeError),
    /// The large files could not be brought.
    #[error(transparent)]
    Lfs(LfsError),
}

impl CloneError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Manager(error) => error.reason(),
            Self::Glob(_) => "InvalidGlob",
            Self::Repo(error) => error.reason(),
            Self::Remote(error) => error.reason(),
            Self::Fetch(error) => error.reason(),
            Self::Tree(error) => error.reason(),
            Self::Lfs(error) => error.reason(),
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Manager(error) => error.is_retriable(),
            Self::Glob(_) | Self::Tree(_) => false,
            Self::Repo(error) => error.is_retriable(),
            Self::Remote(error) => error.is_retriable(),
            Self::Fetch(error) => error.is_retriable(),
            Self::Lfs(error) => error.is_retriable(),
        }
    }
}
