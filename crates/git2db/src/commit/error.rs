//! Why a commit could not be made or pushed.

use crate::{
    RemoteError, RemoteUrl, RepoError, lfs::LfsError, repo::SyncError, store::StoreError,
    tree::TreeError,
};

/// A commit could not be made or pushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repo(RepoError),
    /// The tree to change cannot be read or is refused.
    #[error(transparent)]
    Tree(TreeError),
    /// The object store failed.
    #[error(transparent)]
    Store(StoreError),
    /// A path that must not be in a repository.
    #[error("{path:?} cannot be committed: {why}")]
    InvalidPath {
        /// The path.
        path: String,
        /// Why.
        why: String,
    },
    /// A file to commit cannot be read.
    #[error("{path:?} cannot be read")]
    Read {
        /// The path in the repository.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel's notes in an overlay's upper cannot be seen.
    #[error(
        "what was changed in {upper:?} can only be told with CAP_SYS_ADMIN: run it as root, in the \
         machine's own user namespace"
    )]
    Rights {
        /// The folder.
        upper: std::path::PathBuf,
    },
    /// The author's name or address cannot be written.
    #[error("the author {0:?} is not valid")]
    InvalidAuthor(String),
    /// The message cannot be written so that git reads it back.
    #[error("the message cannot be committed: {why}")]
    InvalidMessage {
        /// What is wrong with it.
        why: String,
    },
    /// The commit could not be signed; none was made.
    #[error("the commit cannot be signed with {key:?}: {detail}")]
    Sign {
        /// The file of the private key.
        key: std::path::PathBuf,
        /// What ssh-keygen said.
        detail: String,
    },
    /// The branch moved since the change was staged.
    #[error("branch {branch:?} moved: stage the change again on its new commit")]
    BranchMoved {
        /// The branch.
        branch: String,
    },
    /// A branch lies where the folder of the other would be: `dev` and `dev/next` exclude each
    /// other.
    #[error("branch {branch:?} cannot be beside branch {other:?}: choose another name")]
    BranchInTheWay {
        /// The branch.
        branch: String,
        /// The one that is there.
        other: String,
    },
    /// What was committed could not be made durable.
    #[error(transparent)]
    Sync(SyncError),
    /// LFS objects could not be uploaded; the branch was not pushed.
    #[error(transparent)]
    Lfs(LfsError),
    /// The remote could not be reached or failed.
    #[error(transparent)]
    Remote(RemoteError),
    /// The remote refused the branch, such as because it has other commits.
    #[error("{url} refused branch {branch:?}: {detail}")]
    Rejected {
        /// The repository.
        url: RemoteUrl,
        /// The branch.
        branch: String,
        /// What it said.
        detail: String,
    },
}

impl CommitError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Tree(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Lfs(error) => error.reason(),
            Self::Remote(error) => error.reason(),
            Self::InvalidPath { .. } => "RefusedContent",
            Self::Sync(error) => error.reason(),
            Self::BranchMoved { .. } | Self::BranchInTheWay { .. } | Self::Rejected { .. } => {
                "Rejected"
            }
            Self::InvalidMessage { .. } => "InvalidMessage",
            Self::Sign { .. } => "SigningFailed",
            Self::Rights { .. } => "Forbidden",
            Self::Read { .. } | Self::InvalidAuthor(_) => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Tree(error) => error.is_retriable(),
            Self::Store(error) => error.is_retriable(),
            Self::Lfs(error) => error.is_retriable(),
            Self::Remote(error) => error.is_retriable(),
            Self::Sync(error) => error.is_retriable(),
            Self::Read { .. } => true,
            Self::InvalidPath { .. }
            | Self::InvalidAuthor(_)
            | Self::Rights { .. }
            | Self::InvalidMessage { .. }
            | Self::Sign { .. }
            | Self::BranchMoved { .. }
            | Self::BranchInTheWay { .. }
            | Self::Rejected { .. } => false,
        }
    }
}
