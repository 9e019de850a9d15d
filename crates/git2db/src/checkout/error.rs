//! Why a checkout could not be made.

use std::{io, path::PathBuf};

use crate::{Digest, store::StoreError, tree::TreeError};

/// A checkout could not be made, opened or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckoutError {
    /// The tree cannot be read or is refused.
    #[error(transparent)]
    Tree(TreeError),
    /// The object store failed.
    #[error(transparent)]
    Store(StoreError),
    /// An LFS object of the commit is not in the store: download it first.
    #[error("{path:?} is not in the store (LFS object {oid})")]
    MissingObject {
        /// Path below the root.
        path: String,
        /// The object.
        oid: Digest,
    },
    /// An LFS object in the store has another size than the commit says.
    #[error("{path:?} has {found} bytes in the store, the commit says {expected}")]
    SizeMismatch {
        /// Path below the root.
        path: String,
        /// Bytes in the store.
        found: u64,
        /// Bytes by the commit.
        expected: u64,
    },
    /// No space is left.
    #[error("no space is left for {path:?}")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {act} {path:?}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CheckoutError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Tree(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::MissingObject { .. } => "MissingLFSObject",
            Self::SizeMismatch { .. } => "DigestMismatch",
            Self::DiskFull { .. } => "DiskFull",
            Self::Io { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Tree(error) => error.is_retriable(),
            Self::Store(error) => error.is_retriable(),
            Self::SizeMismatch { .. } => false,
            _ => true,
        }
    }
}
