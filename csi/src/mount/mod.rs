//! Mounting, behind a trait so that what decides about mounts is tested without them.

#[cfg(test)]
pub(crate) mod fake;
mod kernel;
mod table;

use std::{io, path::Path};

pub use hyprstream_git2db::storage::{
    disk::DiskError,
    mount::{Overlay, Upper},
};
pub use kernel::Kernel;
pub(crate) use kernel::sync_folder;
pub use table::{Mounted, StatePlace, parse_mountinfo};

/// Source of every overlay that this program mounts, as mountinfo shows it.
pub const SOURCE: &str = "hyprstream";

/// What the kernel does for us.
pub trait Mounts: Send + Sync + 'static {
    /// All mounts that this process sees.
    fn list(&self) -> io::Result<Vec<Mounted>>;

    /// Mounts an overlay at `target`, an existing folder, with nosuid, nodev and noatime.
    fn overlay(&self, overlay: &Overlay, target: &Path) -> io::Result<()>;

    /// Shows the mount at `from`, or the folder if none is there, at `to`, an existing folder, as
    /// well.
    fn bind(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the one mount at `target` read-only or writable, with nosuid, nodev and noatime; others
    /// of the same filesystem keep what they have.
    fn set_read_only(&self, target: &Path, read_only: bool) -> io::Result<()>;

    /// Makes a disk of `bytes` in the file `image`, if it is not there, and allocates what it lacks.
    fn make_disk(&self, image: &Path, bytes: u64) -> Result<(), DiskError>;

    /// Mounts the disk in the file `image` at `target`, an existing folder, with nosuid, nodev and
    /// noatime.
    fn disk(&self, image: &Path, target: &Path) -> Result<(), DiskError>;

    /// Unmounts the topmost mount at `target`. With `detach`, also while it is in use.
    fn unmount(&self, target: &Path, detach: bool) -> io::Result<()>;
}

/// The topmost mount at `path`, if one is mounted right there.
pub fn mounted_at(mounts: &dyn Mounts, path: &Path) -> io::Result<Option<Mounted>> {
    // Mountinfo shows paths without symbolic links.
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(mounts
        .list()?
        .into_iter()
        .rfind(|mounted| mounted.path == path))
}
