//! Small files of git's that many worktrees have in common: one file on the disk, and links to it.
//!
//! Each would take a block of its own otherwise. git puts another file in the place of these, or
//! removes them, and never writes into them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{WorktreesError, io_error, names, record::replace};
use crate::Digest;

/// Makes `admin/NAME` a file with this text, which lies once below `home` for all.
pub(super) fn put(
    home: &Path,
    admin: &Path,
    name: &str,
    text: &[u8],
) -> Result<(), WorktreesError> {
    let target = admin.join(name);
    let folder = folder(home);
    let shared = folder.join(format!("{name}.{}", &Digest::of(text).as_str()[..16]));
    // One that a power failure emptied is made again, in another place of the disk.
    if fs::read(&shared).ok().as_deref() != Some(text) {
        fs::create_dir_all(&folder).map_err(|e| io_error("create folder", &folder, e))?;
        replace(&shared, text, true)?;
    }
    match fs::hard_link(&shared, &target) {
        Ok(()) => Ok(()),
        // No links left, or a file system without any.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            fs::write(&target, text).map_err(|e| io_error("write", &target, e))
        }
        Err(error) => Err(io_error("link", &target, error)),
    }
}

/// Removes those that no worktree has.
pub(super) fn prune(home: &Path) -> Result<(), WorktreesError> {
    let folder = folder(home);
    for name in names(&folder)? {
        let path = folder.join(name);
        let found = fs::metadata(&path).map_err(|e| io_error("read", &path, e))?;
        if found.nlink() == 1 {
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
        }
    }
    Ok(())
}

fn folder(home: &Path) -> PathBuf {
    home.join("shared")
}
