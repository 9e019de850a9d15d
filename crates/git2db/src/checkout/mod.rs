//! The files of a commit on disk, made of hard links into an object store.

mod build;
mod error;
mod give;
mod keep;
mod small;

use std::path::PathBuf;

pub use build::{Source, materialise};
pub use error::CheckoutError;
pub use keep::{clean, list, open, remove};
use serde::{Deserialize, Serialize};

use crate::{CommitId, Digest, Include};

/// A complete checkout. It never changes; it is removed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// The folder.
    pub path: PathBuf,
    /// Its name below `checkouts/`, made of commit and include list.
    pub key: String,
    /// Its files and links, ordered by path.
    pub files: Vec<CheckoutFile>,
}

/// A file of a [`Checkout`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckoutFile {
    /// Path below the root, with `/` between its parts.
    pub path: String,
    /// Size in bytes; for a link, of its target's name.
    pub size_bytes: u64,
    /// SHA-256 of the content; for a link, of its target's name.
    pub sha256: Digest,
    /// What it is.
    pub mode: FileMode,
}

/// What a [`CheckoutFile`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileMode {
    /// A file, mode 0444.
    File,
    /// An executable file, mode 0555.
    Executable,
    /// A symbolic link.
    Symlink,
}

/// The name of the checkout of `commit` with `include` below `checkouts/`.
pub fn key(commit: &CommitId, include: &Include) -> String {
    format!("{commit}-{}", &include.digest().as_str()[..16])
}
