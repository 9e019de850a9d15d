//! Why an object store could not do its work.

use std::{io, path::PathBuf};

use crate::Digest;

/// An object store could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space is left, or less than is needed.
    #[error(
        "no space is left below {path:?}: {needed_bytes} bytes are needed, {available_bytes} are free"
    )]
    DiskFull {
        /// The store.
        path: PathBuf,
        /// Bytes still to be written.
        needed_bytes: u64,
        /// Bytes that may be written.
        available_bytes: u64,
    },
    /// Bytes have another digest or size than they should.
    #[error("object {oid} has wrong bytes: {detail}")]
    Mismatch {
        /// The object.
        oid: Digest,
        /// The difference.
        detail: String,
    },
    /// The object is not there.
    #[error("object {oid} is not in the store")]
    Missing {
        /// The object.
        oid: Digest,
    },
    /// Reading what should be inserted failed.
    #[error("reading object {oid} failed")]
    Input {
        /// The object.
        oid: Digest,
        /// Why.
        source: io::Error,
    },
    /// The observer ended the wait for another transfer of the same object, or its verification.
    #[error("work on object {oid} was cancelled")]
    Cancelled {
        /// The object.
        oid: Digest,
    },
    /// A file of the store cannot be read or written.
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

impl StoreError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DiskFull { .. } => "DiskFull",
            Self::Mismatch { .. } => "DigestMismatch",
            Self::Missing { .. } => "MissingLFSObject",
            Self::Cancelled { .. } => "Cancelled",
            Self::Input { .. } | Self::Io { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        !matches!(self, Self::Mismatch { .. })
    }
}
