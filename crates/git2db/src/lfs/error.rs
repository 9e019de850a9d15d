//! Why LFS objects could not be transferred.

use std::{io, time::Duration};

use crate::{Digest, store::StoreError};

/// LFS objects could not be transferred.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LfsError {
    /// The remote is not reached over HTTP.
    #[error(
        "LFS objects of {url} cannot be transferred: over ssh (git-lfs-authenticate) it is not \
         supported, use the repository's https URL with a token"
    )]
    UnsupportedRemote {
        /// The repository.
        url: String,
    },
    /// Name resolution, connection or TLS failed.
    #[error("host {host:?} cannot be reached for LFS: {detail}")]
    HostUnreachable {
        /// The host.
        host: String,
        /// What failed.
        detail: String,
    },
    /// The server wants other credentials, or any.
    #[error("the LFS server of {url} refused the credentials (HTTP {status})")]
    AuthenticationFailed {
        /// The endpoint.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server has no LFS API for the repository.
    #[error("there is no LFS server at {url} (HTTP {status})")]
    NoEndpoint {
        /// The endpoint.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server does not have an object.
    #[error("LFS object {oid} is not on the server: {detail}")]
    MissingObject {
        /// The object.
        oid: Digest,
        /// What the server said.
        detail: String,
    },
    /// Bytes have another digest or size than the commit names, also on the second attempt.
    #[error("LFS object {oid} came with wrong bytes: {detail}")]
    Mismatch {
        /// The object.
        oid: Digest,
        /// The difference.
        detail: String,
    },
    /// The server asks to come back later, more often than we wait.
    #[error("the LFS server of {url} asks to come back later")]
    RateLimited {
        /// The endpoint.
        url: String,
        /// After this time, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server answered with an error of its own, against the protocol, or broke off.
    #[error("the LFS server at {url} failed: {detail}")]
    Upstream {
        /// Where.
        url: String,
        /// What it said.
        detail: String,
    },
    /// An object to upload is not in the store.
    #[error("LFS object {oid} is not in the store")]
    NotInStore {
        /// The object.
        oid: Digest,
    },
    /// The observer ended the work.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The store failed, or its disk is full.
    #[error(transparent)]
    Store(StoreError),
    /// The client could not be made.
    #[error("the HTTP client cannot be set up: {detail}")]
    Setup {
        /// Why.
        detail: String,
    },
    /// Reading an object to upload failed.
    #[error("LFS object {oid} cannot be read")]
    Read {
        /// The object.
        oid: Digest,
        /// Why.
        source: io::Error,
    },
}

impl LfsError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnsupportedRemote { .. } => "InvalidURL",
            Self::HostUnreachable { .. } => "HostUnreachable",
            Self::AuthenticationFailed { .. } => "AuthenticationFailed",
            Self::MissingObject { .. } | Self::NotInStore { .. } => "MissingLFSObject",
            Self::Mismatch { .. } => "DigestMismatch",
            Self::NoEndpoint { .. } | Self::RateLimited { .. } | Self::Upstream { .. } => {
                "UpstreamError"
            }
            Self::Cancelled => "Cancelled",
            Self::Store(error) => error.reason(),
            Self::Setup { .. } | Self::Read { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::UnsupportedRemote { .. }
            | Self::AuthenticationFailed { .. }
            | Self::NotInStore { .. } => false,
            Self::Store(error) => error.is_retriable(),
            _ => true,
        }
    }
}
