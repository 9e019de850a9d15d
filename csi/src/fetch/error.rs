//! Why the files of a commit are not on this node.

use std::{fmt, path::PathBuf};

use hyprstream_git2db::{
    RemoteError, RepoError, checkout::CheckoutError, lfs::LfsError, store::StoreError,
    tree::TreeError,
};

use super::MiB;

/// The files of a commit cannot be brought to this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The registry is not there, refuses this node or broke off; may pass.
    #[error("the registry did not serve the commit: {why}; retrying")]
    Unreachable {
        /// What failed.
        why: String,
    },
    /// The registry does not let the volume read it; may pass.
    #[error("the registry does not let the volume read the commit: {why}; retrying")]
    Denied {
        /// Why, and what to do.
        why: String,
    },
    /// The registry does not have the repository, the commit or an object of it.
    #[error("the registry does not have all of the commit: {why}")]
    NotFound {
        /// What is missing.
        why: String,
    },
    /// The commit's content is not served.
    #[error("the commit is refused: {why}")]
    Refused {
        /// What and why.
        why: String,
    },
    /// No space is left for it on the node.
    #[error(
        "the disk of the node is full: {path:?} needs {} and has {}; what nothing uses is deleted \
         and the rest is in use: free space there or give it a larger disk",
        Need(*needed_bytes), MiB(*available_bytes)
    )]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes still to be written; 0 if unknown.
        needed_bytes: u64,
        /// Bytes that may be written and are promised to no other fetch.
        available_bytes: u64,
    },
    /// A file of a complete checkout was removed or changed on the disk.
    #[error(
        "{path:?} of the checkout was removed or changed on the node's disk; it is fetched anew \
         once no pod uses it: delete the pods of this commit on this node"
    )]
    Damaged {
        /// The file, below the root.
        path: String,
    },
    /// Nobody waited for it any more.
    #[error("the fetch was given up because no pod waited for it; retrying")]
    Cancelled,
    /// Something on the node failed.
    #[error("the node could not store the commit: {why}")]
    Internal {
        /// What.
        why: String,
    },
}

/// The message of an error with those of its sources, for the wrappers of git2db leave them out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = error.source();
    }
    text
}

/// One map from the reasons that git2db gives to what this program does about them.
fn by_reason(reason: &str, error: &dyn std::error::Error) -> FetchError {
    let why = chain(error);
    match reason {
        "HostUnreachable" | "UpstreamError" => FetchError::Unreachable { why },
        // A right may be given, or put right, at any time.
        "AuthenticationFailed" => FetchError::Denied { why },
        "RepositoryNotFound" | "ReferenceNotFound" | "MissingLFSObject" => {
            FetchError::NotFound { why }
        }
        "DigestMismatch" | "RefusedContent" | "InvalidURL" => FetchError::Refused { why },
        "Cancelled" => FetchError::Cancelled,
        _ => FetchError::Internal { why },
    }
}

/// The disk turned out to be full in the middle of a write.
pub(super) fn disk_full(path: PathBuf) -> FetchError {
    let available_bytes = rustix::fs::statvfs(&path)
        .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        .unwrap_or_default();
    FetchError::DiskFull {
        path,
        needed_bytes: 0,
        available_bytes,
    }
}

struct Need(u64);

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("more"),
            bytes => MiB(bytes).fmt(f),
        }
    }
}

impl From<RemoteError> for FetchError {
    fn from(error: RemoteError) -> Self {
        by_reason(error.reason(), &error)
    }
}

impl From<RepoError> for FetchError {
    fn from(error: RepoError) -> Self {
        match error {
            RepoError::DiskFull { path } => disk_full(path),
            other => by_reason(other.reason(), &other),
        }
    }
}

impl From<TreeError> for FetchError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Repo(error) => error.into(),
            other => by_reason(other.reason(), &other),
        }
    }
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull {
                path,
                needed_bytes,
                available_bytes,
            } => Self::DiskFull {
                path,
                needed_bytes,
                available_bytes,
            },
            other => by_reason(other.reason(), &other),
        }
    }
}

impl From<LfsError> for FetchError {
    fn from(error: LfsError) -> Self {
        match error {
            LfsError::Store(error) => error.into(),
            other => by_reason(other.reason(), &other),
        }
    }
}

impl From<CheckoutError> for FetchError {
    fn from(error: CheckoutError) -> Self {
        match error {
            CheckoutError::Store(error) => error.into(),
            CheckoutError::Tree(error) => error.into(),
            CheckoutError::DiskFull { path } => disk_full(path),
            other => by_reason(other.reason(), &other),
        }
    }
}

#[cfg(test)]
mod tests {
    use hyprstream_git2db::Digest;

    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        let oid = Digest::of(b"x");
        let missing = LfsError::MissingObject {
            oid: oid.clone(),
            detail: "404".into(),
        };
        assert!(matches!(missing.into(), FetchError::NotFound { why } if why.contains("404")));
        let wrong = StoreError::Mismatch {
            oid,
            detail: "3 bytes".into(),
        };
        assert!(matches!(
            LfsError::Store(wrong).into(),
            FetchError::Refused { .. }
        ));
        let down = RemoteError::HostUnreachable {
            host: "r".into(),
            detail: "refused".into(),
        };
        assert!(matches!(down.into(), FetchError::Unreachable { .. }));
    }
}
