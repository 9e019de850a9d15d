//! Why a view could not be made, shown or removed.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::Kind;
use crate::durable;

/// A storage driver could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is something where the files are to appear.
    #[error("{target:?} is not an empty folder: choose another path, or remove what is there")]
    Occupied {
        /// The folder.
        target: PathBuf,
    },
    /// The driver does not work in a folder.
    #[error("{kind} does not work in {folder:?}: {why}")]
    Unavailable {
        /// The driver.
        kind: Kind,
        /// The folder.
        folder: PathBuf,
        /// What the probe found.
        why: String,
    },
    /// The kernel refuses to mount.
    #[error("cannot mount {kind} at {target:?}")]
    Mount {
        /// The driver.
        kind: Kind,
        /// Where.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is mounted there.
    #[error("{target:?} shows a mount of {found}, which is not this view's")]
    ForeignMount {
        /// Where.
        target: PathBuf,
        /// Kind of the filesystem.
        found: String,
    },
    /// Files are open below the folder, or a process works in it.
    #[error("{target:?} is in use: end what works in it")]
    Busy {
        /// The folder.
        target: PathBuf,
    },
    /// A program that the driver runs failed or is not there.
    #[error("{program} failed: {detail}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it said.
        detail: String,
    },
    /// What the driver kept of a view is gone.
    #[error("what was written to {target:?} is gone: {missing:?} is not there")]
    Lost {
        /// The view.
        target: PathBuf,
        /// What is missing.
        missing: PathBuf,
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

impl StorageError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Occupied { .. } | Self::ForeignMount { .. } => "PathOccupied",
            Self::Unavailable { .. } | Self::Program { .. } | Self::Mount { .. } => {
                "StorageUnavailable"
            }
            Self::Busy { .. } => "InUse",
            Self::Lost { .. } => "DataLost",
            Self::DiskFull { .. } => "DiskFull",
            Self::Io { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. } | Self::DiskFull { .. } | Self::Io { .. }
        )
    }
}

pub(super) fn io_error(act: &'static str, path: &Path, source: io::Error) -> StorageError {
    let path = path.to_owned();
    if durable::is_full(&source) {
        StorageError::DiskFull { path }
    } else {
        StorageError::Io { act, path, source }
    }
}
