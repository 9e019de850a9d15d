//! The files of a commit on disk, made of hard links into an object store.

mod error;

use std::path::{Path, PathBuf};

pub use error::CheckoutError;
use serde::{Deserialize, Serialize};

use crate::{CommitId, Digest, Include, store::ObjectStore, tree::Limits};

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

/// Makes the checkout of `commit` at `root/checkouts/<key>`, or opens it if it is complete.
///
/// The LFS objects must be in `store`. It is built in `root/tmp`, synced, renamed and marked
/// complete, so that no half of it is ever visible; callers for the same key at the same time, in
/// any process, get one. Files are hard links into the store where the file system is the same
/// and has links left, else reflinks or copies.
pub fn materialise(
    bare: &Path,
    commit: &CommitId,
    include: &Include,
    limits: &Limits,
    store: &ObjectStore,
    root: &Path,
) -> Result<Checkout, CheckoutError> {
    let _ = (bare, commit, include, limits, store, root);
    unimplemented!("not done yet")
}

/// The complete checkout `key` below `root`; `None` if there is none.
pub fn open(root: &Path, key: &str) -> Result<Option<Checkout>, CheckoutError> {
    let _ = (root, key);
    unimplemented!("not done yet")
}

/// The keys of the complete checkouts below `root`.
pub fn list(root: &Path) -> Result<Vec<String>, CheckoutError> {
    let _ = root;
    unimplemented!("not done yet")
}

/// Removes the checkout `key` below `root`: out of sight at once, then from the disk. Nothing to do if
/// there is none. The caller makes sure that nothing uses it.
pub fn remove(root: &Path, key: &str) -> Result<(), CheckoutError> {
    let _ = (root, key);
    unimplemented!("not done yet")
}

/// Removes what killed processes left below `root`: half checkouts and trash. Call it at start.
pub fn clean(root: &Path) -> Result<(), CheckoutError> {
    let _ = root;
    unimplemented!("not done yet")
}
