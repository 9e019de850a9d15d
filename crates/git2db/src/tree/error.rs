//! Why the tree of a commit is not served.

use crate::{RepoError, lfs::TooCostly};

/// The tree of a commit cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The repository cannot be read or does not hold the commit.
    #[error(transparent)]
    Repo(RepoError),
    /// Something in the tree is refused.
    #[error("{path:?} is refused: {refusal}")]
    Refused {
        /// Path below the root.
        path: String,
        /// Why.
        refusal: Refusal,
    },
}

/// What is refused in a tree. The text says what to do where that is not plain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The name could leave its folder, confuse a file system or hide a git folder.
    #[error("the name {0}")]
    Name(&'static str),
    /// The path would lie over our own files.
    #[error("paths beginning with .hyprstream are ours")]
    Reserved,
    /// A path is there twice.
    #[error("the path is there twice")]
    Duplicate,
    /// A symbolic link that leaves the tree.
    #[error("the symbolic link to {0:?} leads out of the repository")]
    EscapingLink(String),
    /// A symbolic link that cannot be followed.
    #[error("the symbolic link to {0:?} is not valid")]
    InvalidLink(String),
    /// A submodule.
    #[error("submodules are not supported: put the files into the repository")]
    Submodule,
    /// An entry of a mode that git does not write.
    #[error("the mode {0:o} is not that of a file, a folder or a link")]
    Mode(i32),
    /// A large file outside LFS.
    #[error(
        "the file has {size} bytes and is not in LFS (limit {limit}): add it with `git lfs track`"
    )]
    HugeBlob {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An LFS pointer with extension lines.
    #[error("the LFS pointer uses extensions, which are not supported")]
    PointerExtension,
    /// An LFS pointer where weights or configuration are expected, that is not given to LFS.
    #[error(
        "the file is an LFS pointer, but .gitattributes do not give it to LFS: run `git lfs track` \
         for it, `git add --renormalize .`, and commit"
    )]
    StrayPointer,
    /// Rules of `.gitattributes` that nobody can follow in time.
    #[error("{0}")]
    Attributes(TooCostly),
    /// A path beyond the limit. Only its beginning is named.
    #[error("the path has more than {0} bytes")]
    LongPath(usize),
    /// Paths and targets of links that are together beyond the limit.
    #[error("the paths of the repository have together more than {0} bytes")]
    LongPaths(usize),
    /// `.gitattributes` that are together beyond the limit.
    #[error("all .gitattributes have together more than {0} bytes")]
    HugeAttributes(usize),
    /// A commit or the list of a folder that no commit of files needs.
    #[error("it has {size} bytes of git's own data (limit {limit})")]
    HugeObject {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// More files and folders than the limit.
    #[error("the repository has more than {0} files and folders")]
    TooManyEntries(usize),
    /// Folders in folders beyond the limit.
    #[error("folders lie deeper than {0} levels")]
    TooDeep(usize),
}

impl TreeError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::Refused { .. } => "RefusedContent",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::Refused { .. } => false,
        }
    }
}
