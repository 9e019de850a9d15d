//! Mounts of the Linux kernel, as the storage drivers and the node plugin use them.

mod kernel;
mod table;

use std::path::PathBuf;

pub use kernel::{How, bind, overlay, set_read_only, unmount};
pub use table::{Mounted, list, mounted_at, parse_mountinfo};

/// One overlay mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Immutable folders, the topmost first; at least two without an upper.
    pub lowers: Vec<PathBuf>,
    /// Folders that take the writes; without them the mount is read-only.
    pub upper: Option<Upper>,
    /// SELinux label of everything in it.
    pub context: Option<String>,
}

/// The writable part of an [`Overlay`]. Both folders lie on one filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// What was written.
    pub upper: PathBuf,
    /// Scratch folder of the kernel.
    pub work: PathBuf,
}
