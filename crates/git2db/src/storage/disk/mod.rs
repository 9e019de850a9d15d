//! A disk of a fixed size in a file: an ext4 filesystem, mounted through a loop device. Who writes
//! to it finds it full, and nobody else does.
//!
//! All blocks of the file are allocated when it is made, so that a full disk below it is found
//! then, and never by whoever writes to the one in the file: to the kernel that would be a failing
//! device.

mod device;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    mount::MountFlags,
};

use crate::durable;

/// Makes the filesystem. Of e2fsprogs.
const MKFS: &str = "mkfs.ext4";
/// Where it is, as a rule.
const MKFS_PLACE: &str = "/usr/sbin/mkfs.ext4";
const BLOCK_BYTES: u64 = 4096;
/// How the filesystem is made: without blocks that only root may use, and with an inode for each
/// 16 KiB. What is written later or given back would be taken out of the file, whose blocks are to
/// stay.
const MKFS_ARGS: [&str; 10] = [
    "-q",
    "-F",
    "-m",
    "0",
    "-b",
    "4096",
    "-i",
    "16384",
    "-E",
    "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
];

/// A disk in a file could not be made or mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The file cannot be written.
    #[error("could not {act} {path:?}: {source}")]
    File {
        /// What was tried.
        act: &'static str,
        /// The file or a folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No filesystem could be made in the file.
    #[error("{MKFS} of e2fsprogs, which makes the filesystem in {path:?}, failed: {detail}")]
    Mkfs {
        /// The file.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
    /// There is no device for the file.
    #[error(
        "no loop device can be had for {path:?} ({source}): the kernel's module `loop` must be \
         there, and /dev/loop-control"
    )]
    Device {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not mount it.
    #[error("could not mount the ext4 filesystem in {path:?}: {source}")]
    Mount {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DiskError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { source, .. } if durable::is_full(source) => "DiskFull",
            Self::File { .. } => "InternalError",
            Self::Mkfs { .. } | Self::Device { .. } | Self::Mount { .. } => "StorageUnavailable",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Device { .. })
    }

    /// Whether the disk that the file lies on has no room for it.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if durable::is_full(source))
    }
}

/// The size of a disk of at least `bytes`, in whole blocks.
pub fn whole_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// Bytes that are still to be allocated for a disk of `bytes` in the file `path`, but for a few
/// blocks: what the filesystem below needs to know where they are counts as theirs.
///
/// # Errors
/// The file is there and cannot be looked at.
pub fn missing_bytes(path: &Path, bytes: u64) -> Result<u64, DiskError> {
    match fs::metadata(path) {
        // st_blocks counts 512 bytes whatever the filesystem's blocks are.
        Ok(found) => Ok(bytes.saturating_sub(found.blocks() * 512)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(bytes),
        Err(error) => Err(file("look at", path, error)),
    }
}

/// Makes a disk of `bytes`, as [`whole_blocks`] gives them, in the file `path`, if it is not there, and
/// allocates all of its blocks. A kill leaves all of it, or a file beside it that the next call
/// replaces.
///
/// # Errors
/// [`DiskError::is_full`] if there is no room for it; then it is as before.
pub fn make(path: &Path, bytes: u64) -> Result<(), DiskError> {
    if path.exists() {
        return allocate(path, bytes);
    }
    let new = path.with_extension("new");
    let made = make_aside(&new, bytes).and_then(|()| {
        fs::rename(&new, path).map_err(|e| file("rename", &new, e))?;
        path.parent().map_or(Ok(()), |folder| {
            durable::sync_dir(folder).map_err(|e| file("sync", folder, e))
        })
    });
    if made.is_err() {
        // The first error says what went wrong, and the next call begins anew.
        let _ = fs::remove_file(&new);
    }
    made
}

fn make_aside(new: &Path, bytes: u64) -> Result<(), DiskError> {
    File::create(new)
        .and_then(|file| file.set_len(bytes))
        .map_err(|e| file("create", new, e))?;
    // Room first: a filesystem would be written in vain.
    allocate(new, bytes)?;
    let failed = |detail: String| DiskError::Mkfs {
        path: new.to_owned(),
        detail,
    };
    let run = |program: &str| {
        let mut command = Command::new(program);
        command.args(MKFS_ARGS).arg(new).stdin(Stdio::null());
        command.output()
    };
    let output = match run(MKFS) {
        // What administrators run is not on everybody's path.
        Err(error) if error.kind() == io::ErrorKind::NotFound => run(MKFS_PLACE),
        other => other,
    }
    .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    // It makes holes where zeros are.
    allocate(new, bytes)?;
    File::open(new)
        .and_then(|file| file.sync_all())
        .map_err(|e| file("sync", new, e))
}

/// Allocates what the file lacks.
fn allocate(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let opened = File::options()
        .write(true)
        .open(path)
        .map_err(|e| file("open", path, e))?;
    let below = rustix::fs::fstatvfs(&opened).map_err(|e| file("measure", path, e.into()))?;
    // The kernel would take all that is free before it says that it is not enough.
    if missing_bytes(path, bytes)? > below.f_bavail.saturating_mul(below.f_frsize) {
        let full = io::ErrorKind::StorageFull.into();
        return Err(file("allocate the blocks of", path, full));
    }
    fallocate(&opened, FallocateFlags::empty(), 0, bytes)
        .map_err(|e| file("allocate the blocks of", path, e.into()))
}

/// Mounts the disk in the file `path` at `target`, an existing folder, with nosuid, nodev and
/// noatime. While another mount of it is alive somewhere, that one's device is used, so that the
/// kernel knows both to be one. Needs CAP_SYS_ADMIN in the machine's own user namespace. The device
/// goes with the last mount.
///
/// # Errors
/// See [`DiskError`].
pub fn mount(path: &Path, target: &Path) -> Result<(), DiskError> {
    let device = device::of(path).map_err(|source| DiskError::Device {
        path: path.to_owned(),
        source,
    })?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    // What is damaged is to be told, not to be written on. With `dioread_lock` the filesystem does
    // not set zeros ahead of what is written, for which the device would make holes in the file.
    let options = c"errors=remount-ro,dioread_lock";
    rustix::mount::mount(&device.path, target, "ext4", flags, options).map_err(|error| {
        DiskError::Mount {
            path: path.to_owned(),
            source: error.into(),
        }
    })
}

fn file(act: &'static str, path: &Path, source: io::Error) -> DiskError {
    DiskError::File {
        act,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 16 << 20;

    fn made() -> Option<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        match make(&path, BYTES) {
            Err(error @ DiskError::Mkfs { .. }) => {
                eprintln!("SKIPPED: {error}");
                None
            }
            made => {
                made.unwrap();
                Some((folder, path))
            }
        }
    }

    #[test]
    fn all_of_a_new_disk_is_allocated() {
        let Some((_folder, path)) = made() else {
            return;
        };
        assert_eq!(missing_bytes(&path, BYTES).unwrap(), 0);
        assert!(!path.with_extension("new").exists());
        // Somebody took blocks out, such as `fstrim`.
        let opened = File::options().write(true).open(&path).unwrap();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&opened, flags, 8 << 20, 4 << 20).unwrap();
        let missing = missing_bytes(&path, BYTES).unwrap();
        assert!((4 << 20) - missing < 64 << 10, "{missing}");
        make(&path, BYTES).unwrap();
        assert_eq!(missing_bytes(&path, BYTES).unwrap(), 0);
    }

    #[test]
    fn what_does_not_fit_is_told_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let error = make(&path, 1 << 43).unwrap_err();
        assert!(error.is_full() && error.reason() == "DiskFull", "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(missing_bytes(&path, BYTES).unwrap(), BYTES);
    }
}
