//! Why something could not be done with a branch.

use std::{io, path::PathBuf};

use hyprstream_git2db::{
    CommitError, PushError, RemoteError, RepoError, checkout::CheckoutError, handle::HistoryError,
    lfs::LfsError, store::StoreError, tree::TreeError,
};
use hyprstream_tls::TlsError;
use hyprstream_training::{CheckpointError, PublishError};

/// Something could not be done with a branch.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum BranchError {
    /// It has commits of another job.
    #[error("the branch {branch} has commits of {owner}: delete it, or give the job another name")]
    Taken { branch: String, owner: String },
    /// What the operator says of the repository cannot be.
    #[error("{what} {text:?} cannot be: {why}")]
    Place {
        what: &'static str,
        text: String,
        why: String,
    },
    /// By what the registry is to be trusted.
    #[error("the registry cannot be trusted")]
    Trust(#[source] TlsError),
    /// The token for the registry.
    #[error("the token {} cannot be read", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Asking and fetching.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Large files.
    #[error(transparent)]
    Objects(#[from] LfsError),
    /// Pushing.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Committing.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The repository here.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Likewise.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The files of a commit.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Likewise.
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
    /// The store of large files here.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checkpoint that came from the branch.
    #[error("the checkpoint of commit {commit} cannot be used")]
    Checkpoint {
        commit: String,
        #[source]
        source: Box<CheckpointError>,
    },
    /// The adapter as it is committed.
    #[error("the adapter that was committed cannot be read back")]
    Adapter(#[source] Box<PublishError>),
    /// It is another one.
    #[error("the adapter that was committed is {found}, not {expected}: the disk changed it")]
    Changed { found: String, expected: String },
    /// A file of ours.
    #[error("{} cannot be {doing}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The registry's API did not answer, or with an error of its own.
    #[error("the registry does not {what}: {why}")]
    Api { what: &'static str, why: String },
    /// The registry's API said no.
    #[error("the registry refuses to {what}: {why}")]
    Forbidden { what: &'static str, why: String },
    /// A merge that is not to be had.
    #[error("{into} does not take the adapter up: {why}; it stays on {branch}")]
    Conflict {
        into: String,
        branch: String,
        why: String,
    },
    /// A signal ended the wait.
    #[error("the pod was told to end")]
    Stopped,
}

/// What is to be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// Nothing helps.
    Taken,
    /// The registry says no; rights may yet come.
    Refused,
    /// Somebody must merge by hand.
    Conflict,
    /// The registry may answer later.
    Unreachable,
    /// A disk of ours, or of the registry.
    DiskFull,
    /// There is no time any more.
    Stopped,
    /// Something here failed.
    Local,
}

impl BranchError {
    /// What is to be done about it.
    pub(in super::super) fn kind(&self) -> Kind {
        let reason = match self {
            Self::Taken { .. } => return Kind::Taken,
            Self::Forbidden { .. } => return Kind::Refused,
            Self::Conflict { .. } => return Kind::Conflict,
            Self::Stopped => return Kind::Stopped,
            // The kubelet brings it.
            Self::Api { .. } | Self::Token { .. } | Self::Trust(_) => return Kind::Unreachable,
            Self::Place { .. }
            | Self::Checkpoint { .. }
            | Self::Adapter(_)
            | Self::Changed { .. }
            | Self::Io { .. } => return Kind::Local,
            Self::Remote(error) => error.reason(),
            Self::Objects(error) => error.reason(),
            Self::Push(error) => error.reason(),
            Self::Commit(error) => error.reason(),
            // What is missing here does not come by waiting.
            Self::Repo(error) => here(error.reason()),
            Self::History(error) => here(error.reason()),
            Self::Tree(error) => here(error.reason()),
            Self::Checkout(error) => here(error.reason()),
            Self::Store(error) => here(error.reason()),
        };
        match reason {
            "HostUnreachable" | "UpstreamError" => Kind::Unreachable,
            "AuthenticationFailed" | "RepositoryNotFound" | "ReferenceNotFound" | "Rejected" => {
                Kind::Refused
            }
            "DiskFull" => Kind::DiskFull,
            "Cancelled" => Kind::Stopped,
            _ => Kind::Local,
        }
    }
}

/// The reason of an error of this machine, which never is the registry's.
fn here(reason: &'static str) -> &'static str {
    match reason {
        "DiskFull" | "Cancelled" => reason,
        _ => "InternalError",
    }
}

/// An error of this act on this path.
pub(super) fn io(
    doing: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(io::Error) -> BranchError {
    move |source| BranchError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
