//! The files of a commit, and which of them are refused.

mod error;
mod links;
mod names;
mod walk;

pub use error::{Refusal, TreeError};
pub(crate) use links::check_link;
pub(crate) use names::{check_name, is_reserved};
pub use walk::walk;
pub(crate) use walk::{EMPTY_BLOB, attributes};

pub use crate::Limits;
use crate::lfs::Pointer;

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path below the root, with `/` between its parts. Checked: relative, no `..`, no `.git`.
    pub path: String,
    /// What lies there.
    pub kind: EntryKind,
}

/// What lies at an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file whose content lies in git.
    Blob {
        /// The git blob, 40 hexadecimal digits. The empty one need not be in the repository.
        oid: String,
        /// Size in bytes.
        size: u64,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A file whose content is an LFS object.
    Lfs {
        /// The object.
        pointer: Pointer,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link that stays inside the tree.
    Symlink {
        /// Its target, relative to the folder that holds the link.
        target: String,
    },
}

/// The LFS objects of `entries`, each once.
pub fn pointers(entries: &[Entry]) -> Vec<Pointer> {
    let mut pointers: Vec<Pointer> = entries
        .iter()
        .filter_map(|entry| match &entry.kind {
            EntryKind::Lfs { pointer, .. } => Some(pointer.clone()),
            EntryKind::Blob { .. } | EntryKind::Symlink { .. } => None,
        })
        .collect();
    pointers.sort_by(|a, b| a.oid.cmp(&b.oid));
    pointers.dedup();
    pointers
}
