//! Why a push did not change what it should.

use crate::{CommitError, RemoteError, RemoteUrl, RepoError};

/// A push did not change what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repo(RepoError),
    /// What is to be pushed does not exist here.
    #[error("there is no {name:?} to push")]
    SourceMissing {
        /// The name.
        name: String,
    },
    /// A ref cannot have that name, or it is named twice.
    #[error("{name:?} cannot be pushed to: it is named twice, or is no full name of a ref")]
    InvalidTarget {
        /// The name.
        name: String,
    },
    /// A ref may not be changed as it is now. No ref was changed.
    #[error("{name:?} of {url} is not changed: {why}")]
    Rejected {
        /// The remote.
        url: RemoteUrl,
        /// The ref.
        name: String,
        /// Why.
        why: String,
    },
    /// The server refused refs.
    #[error(
        "{url} refused {}{}",
        refused.iter().map(|(name, why)| format!("{name:?} ({why})")).collect::<Vec<_>>().join(", "),
        if taken.is_empty() { String::new() } else { format!(", but took {}", taken.join(", ")) }
    )]
    Refused {
        /// The remote.
        url: RemoteUrl,
        /// The refs with what it said.
        refused: Vec<(String, String)>,
        /// The refs that it changed nonetheless.
        taken: Vec<String>,
    },
    /// The LFS objects could not be found or uploaded. No ref was changed.
    #[error(transparent)]
    Objects(CommitError),
    /// The remote could not be reached or failed.
    #[error(transparent)]
    Remote(RemoteError),
}

impl PushError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::SourceMissing { .. } => "ReferenceNotFound",
            Self::InvalidTarget { .. } => "InvalidName",
            Self::Rejected { .. } | Self::Refused { .. } => "Rejected",
            Self::Objects(error) => error.reason(),
            Self::Remote(error) => error.reason(),
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Objects(error) => error.is_retriable(),
            Self::Remote(error) => error.is_retriable(),
            Self::SourceMissing { .. }
            | Self::InvalidTarget { .. }
            | Self::Rejected { .. }
            | Self::Refused { .. } => false,
        }
    }
}
