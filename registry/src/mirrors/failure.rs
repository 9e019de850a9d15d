//! Why a commit is not here, in the words of the API.

use axum::http::StatusCode;
use hyprstream_contract::registry::{ApiError, reason};
use hyprstream_git2db::{
    InvalidGlob, InvalidUrl, RemoteError, RepoError, lfs::LfsError, store::StoreError,
    tree::TreeError,
};

use crate::refusal::{Refusal, chain};

/// Why a commit is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) retriable: bool,
}

impl Failure {
    /// A failure that only an edit heals.
    pub(crate) fn lasting(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retriable: false,
        }
    }

    /// A failure that may pass.
    pub(crate) fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retriable: true,
        }
    }

    /// Something of ours failed; the log says what.
    pub(crate) fn internal(act: &'static str, error: &dyn std::error::Error) -> Self {
        tracing::error!(act, error = chain(error), "a mirror failed");
        Self::passing(
            reason::INTERNAL,
            format!("{act} failed on the registry; its log says why"),
        )
    }

    /// An IO error on our disk.
    pub(crate) fn disk(act: &'static str, error: &std::io::Error) -> Self {
        if crate::refusal::is_disk_full(error) {
            Self::disk_full()
        } else {
            Self::internal(act, error)
        }
    }

    /// A host that was not reached, or that is not allowed: which of them is not for strangers.
    pub(crate) fn unreachable(host: &str) -> Self {
        let message = format!(
            "host {host:?} cannot be reached by the registry: its name has no address, it does not \
             answer, it is not trusted, or it is not on the internet and whoever runs the cluster \
             has not allowed it as an upstream (registry.allowUpstreams)"
        );
        Self::passing(reason::HOST_UNREACHABLE, message)
    }

    /// The thread that worked is gone.
    pub(crate) fn died() -> Self {
        tracing::error!("a thread that worked with an upstream panicked");
        let message = "the work failed on the registry; its log says why";
        Self::passing(reason::INTERNAL, message)
    }

    pub(crate) fn disk_full() -> Self {
        Self::passing(
            reason::DISK_FULL,
            "no space is left on the registry: enlarge its volume or remove repositories",
        )
    }

    pub(crate) fn api_error(&self) -> ApiError {
        ApiError {
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            retriable: self.retriable,
        }
    }

    /// The failure as an answer of its own.
    pub(crate) fn into_refusal(self) -> Refusal {
        let status = match self.reason {
            reason::INVALID_URL => StatusCode::BAD_REQUEST,
            reason::ACCESS_DENIED => StatusCode::FORBIDDEN,
            reason::REPOSITORY_NOT_FOUND | reason::REFERENCE_NOT_FOUND => StatusCode::NOT_FOUND,
            reason::DISK_FULL => StatusCode::INSUFFICIENT_STORAGE,
            reason::INTERNAL => StatusCode::INTERNAL_SERVER_ERROR,
            reason::HOST_UNREACHABLE | reason::UPSTREAM_ERROR => StatusCode::BAD_GATEWAY,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Refusal::new(status, self.reason, self.message, self.retriable)
    }

    /// The causes belong to the user's own repository or remote, and hold no secrets; those of
    /// ours stay in the log.
    fn of(
        reason: &'static str,
        retriable: bool,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        match reason {
            reason::DISK_FULL => Self::disk_full(),
            reason::INTERNAL => Self::internal("the work", error),
            "Cancelled" => Self::passing(reason::INTERNAL, "the registry is restarting"),
            _ => Self {
                reason,
                message: chain(error),
                retriable,
            },
        }
    }
}

// What servers say of themselves stays in the log: who names the address must not read with the
// registry's eyes.
impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        tracing::info!(
            error = chain(&error),
            "an upstream did not give what was asked of it"
        );
        let told = |message: String| Self {
            reason: error.reason(),
            message,
            retriable: error.is_retriable(),
        };
        match &error {
            RemoteError::HostUnreachable { host, .. }
            | RemoteError::HostNotTrusted { host, .. } => Self::unreachable(host),
            RemoteError::AuthenticationFailed { url, .. } => told(format!(
                "{url} refuses the credentials, or wants some and has got none: see secretRef"
            )),
            RemoteError::RepositoryNotFound { url, .. } => told(format!(
                "there is no git repository at {url}, or it is not visible with these credentials"
            )),
            RemoteError::Timeout { url, .. } => told(format!("{url} did not answer in time")),
            RemoteError::Upstream { url, .. } => told(format!(
                "{url} answered with an error, broke off, or wants to redirect to another host: \
                 give the address to which it leads"
            )),
            other => Self::of(other.reason(), other.is_retriable(), other),
        }
    }
}

impl From<LfsError> for Failure {
    fn from(error: LfsError) -> Self {
        tracing::info!(
            error = chain(&error),
            "an upstream did not give LFS objects"
        );
        let told = |message: String| Self {
            reason: error.reason(),
            message,
            retriable: error.is_retriable(),
        };
        match &error {
            LfsError::HostUnreachable { host, .. } => Self::unreachable(host),
            LfsError::AuthenticationFailed { .. } => {
                told("the LFS server refuses the credentials: see secretRef".to_owned())
            }
            LfsError::NoEndpoint { .. } => {
                told("the upstream has no LFS server for this repository".to_owned())
            }
            LfsError::MissingObject { oid, .. } => {
                told(format!("LFS object {oid} is not on the upstream"))
            }
            LfsError::RateLimited { .. } => {
                told("the LFS server asks to come back later".to_owned())
            }
            LfsError::Upstream { .. } => {
                told("the LFS server answered with an error, or broke off".to_owned())
            }
            other => Self::of(other.reason(), other.is_retriable(), other),
        }
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::of(error.reason(), error.is_retriable(), &error)
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        Self::of(error.reason(), error.is_retriable(), &error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::of(error.reason(), error.is_retriable(), &error)
    }
}

impl From<InvalidUrl> for Failure {
    fn from(error: InvalidUrl) -> Self {
        Self::lasting(error.reason(), error.to_string())
    }
}

impl From<InvalidGlob> for Failure {
    fn from(error: InvalidGlob) -> Self {
        Self::lasting(reason::REFUSED_CONTENT, error.to_string())
    }
}
