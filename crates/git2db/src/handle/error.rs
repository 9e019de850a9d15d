//! Why remotes could not be changed or fetched from.

use super::refspec::InvalidRefspec;
use crate::{InvalidUrl, RemoteError, RepoError};

/// A remote could not be changed or fetched from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repo(RepoError),
    /// The remote could not be reached, failed, or sent what is refused. No ref was changed.
    #[error(transparent)]
    Remote(RemoteError),
    /// A refspec cannot be read.
    #[error(transparent)]
    Refspec(InvalidRefspec),
    /// The configuration has no remote of that name.
    #[error("there is no remote {name:?}")]
    NoRemote {
        /// The name.
        name: String,
    },
    /// The configuration has a remote of that name.
    #[error("there is a remote {name:?} already")]
    RemoteExists {
        /// The name.
        name: String,
    },
    /// It cannot be the name of a remote.
    #[error("{name:?} cannot be the name of a remote")]
    InvalidRemote {
        /// The name.
        name: String,
    },
    /// The URL that the configuration has cannot be used.
    #[error("the URL of remote {name:?} cannot be used")]
    Url {
        /// The remote.
        name: String,
        /// Why.
        source: InvalidUrl,
    },
    /// A renamed remote keeps refspecs that do not follow its name.
    #[error("refspecs of the renamed remote still name the old one: {}", left.join(", "))]
    Refspecs {
        /// The refspecs.
        left: Vec<String>,
    },
}

impl FetchError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Remote(error) => error.reason(),
            Self::Refspec(_) | Self::InvalidRemote { .. } => "InvalidName",
            Self::NoRemote { .. } => "RemoteNotFound",
            Self::RemoteExists { .. } => "NameTaken",
            Self::Url { source, .. } => source.reason(),
            Self::Refspecs { .. } => "RefspecsLeft",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Remote(error) => error.is_retriable(),
            _ => false,
        }
    }
}
