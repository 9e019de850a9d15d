//! Why a remote did not give what was asked of it.

use crate::{Reference, RemoteUrl};

/// A remote did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Name resolution, connection or TLS failed.
    #[error("host {host:?} cannot be reached: {detail}")]
    HostUnreachable {
        /// The host.
        host: String,
        /// What failed, as the transport tells it.
        detail: String,
    },
    /// The server's certificate or host key is not trusted.
    #[error("host {host:?} is not trusted: {detail}")]
    HostNotTrusted {
        /// The host.
        host: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The server wants other credentials, or any.
    #[error("{url} refused the credentials: {detail}")]
    AuthenticationFailed {
        /// The repository.
        url: RemoteUrl,
        /// What was sent and how it was refused; without secrets.
        detail: String,
    },
    /// There is no such repository, or the credentials do not show it.
    #[error("there is no git repository at {url}, or it is not visible: {detail}")]
    RepositoryNotFound {
        /// The repository.
        url: RemoteUrl,
        /// What the server said.
        detail: String,
    },
    /// The branch, tag or commit does not exist.
    #[error("{reference} does not exist in {url}")]
    ReferenceNotFound {
        /// The repository.
        url: RemoteUrl,
        /// What was looked for.
        reference: Reference,
    },
    /// The reference names another kind of object than a commit.
    #[error("{reference} of {url} names {kind}, not a commit: use a branch, or a tag of a commit")]
    NotACommit {
        /// The repository.
        url: RemoteUrl,
        /// What was looked for.
        reference: Reference,
        /// What it names instead.
        kind: &'static str,
    },
    /// The server stopped answering, or is too slow.
    #[error("{url} did not answer in time: {detail}")]
    Timeout {
        /// The repository.
        url: RemoteUrl,
        /// What was waited for.
        detail: String,
    },
    /// The server answered with an error of its own, or broke off.
    #[error("{url} answered with an error: {detail}")]
    Upstream {
        /// The repository.
        url: RemoteUrl,
        /// What the server said.
        detail: String,
    },
    /// What the repository holds is not accepted.
    #[error("{url} is refused: {detail}")]
    Refused {
        /// The repository.
        url: RemoteUrl,
        /// What is not accepted, and what the limit is.
        detail: String,
    },
    /// The observer ended the work.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// No space is left on this machine.
    #[error("no space is left: {detail}")]
    DiskFull {
        /// What could not be written.
        detail: String,
    },
    /// Something on this machine failed.
    #[error("git failed on this machine: {detail}")]
    Local {
        /// What failed.
        detail: String,
    },
}

impl RemoteError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::HostUnreachable { .. } | Self::HostNotTrusted { .. } => "HostUnreachable",
            Self::AuthenticationFailed { .. } => "AuthenticationFailed",
            Self::RepositoryNotFound { .. } => "RepositoryNotFound",
            Self::ReferenceNotFound { .. } | Self::NotACommit { .. } => "ReferenceNotFound",
            Self::Timeout { .. } | Self::Upstream { .. } => "UpstreamError",
            Self::Refused { .. } => "RefusedContent",
            Self::Cancelled => "Cancelled",
            Self::DiskFull { .. } => "DiskFull",
            Self::Local { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        !matches!(
            self,
            Self::HostNotTrusted { .. }
                | Self::AuthenticationFailed { .. }
                | Self::NotACommit { .. }
                | Self::Refused { .. }
        )
    }
}
