//! Contents by their SHA-256, each once.

mod ahead;
mod batch;
mod error;
mod gc;
mod part;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use ahead::Ahead;
pub(crate) use batch::{Batch, past, set_old};
pub use error::StoreError;
pub use gc::{Collected, Usage};
pub use part::{Claim, Part};
pub use stream::Reader;
pub(crate) use stream::Writer;
pub(crate) use verify::Held;
pub use verify::{Quarantined, Verified};

use crate::{Digest, durable, lfs::Pointer};

/// A folder of contents by their SHA-256.
///
/// `objects/ab/cd/<sha256>` holds what is complete and verified, mode 0444, or
/// `objects/ab/-/<sha256>` if it came with many others; `parts/<sha256>` what
/// is being downloaded; `tmp/` what is being written; `quarantine/` what went bad. Any number of threads and processes may use
/// a store at once. After a kill at any point, and after a power failure, an object is whole or
/// not there. What a disk then does to it is found by [`ObjectStore::verify`]; one of another size
/// than it should have is found when it is asked for, and quarantined.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    root: PathBuf,
}

/// Ending of the copy of an object that may be executed: a hard link shares its mode.
const EXECUTABLE: &str = "x";
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 1 << 18;

impl ObjectStore {
    /// The store at `root`, made if it is not there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for name in ["objects", "parts", "tmp"] {
            let path = root.join(name);
            durable::create_dir_all(&path).map_err(|e| io_error("create folder", &path, e))?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Where the store lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the object is there, complete and verified.
    pub fn contains(&self, oid: &Digest) -> bool {
        self.path(oid).is_file()
    }

    /// The size of the object in bytes; `None` if it is not there.
    pub fn size(&self, oid: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.path(oid);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path, error)),
        }
    }

    /// Where the object lies, whether or not it is there. Open it to read; never write to it.
    pub fn path(&self, oid: &Digest) -> PathBuf {
        let path = self.path_alone(oid);
        if !path.exists() {
            let batched = self.batched_path(oid);
            if batched.exists() {
                return batched;
            }
        }
        path
    }

    /// Reads `reader` to its end into the store and checks digest and size before the object is
    /// visible. Returns whether it was new. On error nothing is left.
    ///
    /// Two callers with the same object do not wait for each other; one copy stays.
    pub fn insert_verified(
        &self,
        reader: &mut dyn Read,
        expected: &Pointer,
    ) -> Result<bool, StoreError> {
        let (file, found) = self.read_in(reader, Some(expected))?;
        check(expected, &found.oid, found.size)?;
        self.publish(file, &self.path(&found.oid))
    }

    /// Reads `reader` to its end into the store and returns what came.
    pub fn insert(&self, reader: &mut dyn Read) -> Result<Pointer, StoreError> {
        let (file, found) = self.read_in(reader, None)?;
        self.publish(file, &self.path(&found.oid))?;
        Ok(found)
    }

    /// Puts `bytes` into the store and returns their digest. An object of that name with other
    /// bytes is quarantined.
    pub fn insert_bytes(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let oid = Digest::of(bytes);
        match self.holds(&oid, bytes)? {
            Held::Exactly(_) => {
                self.mark_used(&oid);
                return Ok(oid);
            }
            Held::Damaged => {
                self.quarantine(&oid)?;
            }
            Held::Nothing => {}
        }
        let mut file = self.temporary()?;
        file.write_all(bytes)
            .map_err(|e| self.write_error(file.path(), bytes.len() as u64, e))?;
        self.publish(file, &self.path(&oid))?;
        Ok(oid)
    }

    /// Where a copy of the object lies that may be executed (mode 0555); makes it if need be.
    pub fn executable(&self, oid: &Digest) -> Result<PathBuf, StoreError> {
        let target = self.path(oid).with_extension(EXECUTABLE);
        match fs::metadata(&target) {
            Ok(found) if Some(found.len()) == self.size(oid)? => return Ok(target),
            Ok(_) => fs::remove_file(&target).map_err(|e| io_error("remove", &target, e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", &target, error)),
        }
        let mut source = match File::open(self.path(oid)) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { oid: oid.clone() });
            }
            Err(error) => return Err(io_error("read", &self.path(oid), error)),
        };
        let mut file = self.temporary()?;
        if rustix::fs::ioctl_ficlone(file.as_file(), &source).is_err() {
            let size = source.metadata().map_or(0, |m| m.len());
            io::copy(&mut source, file.as_file_mut())
                .map_err(|e| self.write_error(file.path(), size, e))?;
        }
        self.publish(file, &target)?;
        Ok(target)
    }

    /// Bytes that may still be written to the file system of the store.
    pub fn available_bytes(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|e| io_error("ask for the free space of", &self.root, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Says `DiskFull` unless `needed_bytes` may be written.
    pub fn ensure_space(&self, needed_bytes: u64) -> Result<(), StoreError> {
        let available_bytes = self.available_bytes()?;
        if needed_bytes > available_bytes {
            let path = self.root.clone();
            return Err(StoreError::DiskFull {
                path,
                needed_bytes,
                available_bytes,
            });
        }
        Ok(())
    }

    /// Keeps the object from collection for a while; for what is found present.
    pub(crate) fn mark_used(&self, oid: &Digest) {
        // Sets the time of the last change without changing anything that a reader sees.
        let _ = fs::set_permissions(self.path(oid), Permissions::from_mode(0o444));
    }

    fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        let folder = self.root.join("tmp");
        NamedTempFile::new_in(&folder).map_err(|e| self.write_error(&folder, 0, e))
    }

    fn read_in(
        &self,
        reader: &mut dyn Read,
        expected: Option<&Pointer>,
    ) -> Result<(NamedTempFile, Pointer), StoreError> {
        if let Some(expected) = expected {
            self.ensure_space(expected.size)?;
        }
        let mut file = self.temporary()?;
        let mut hasher = Sha256::new();
        let (mut size, mut ahead) = (0, Ahead::default());
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let oid = expected.map_or_else(|| Digest::of(b""), |e| e.oid.clone());
                    return Err(StoreError::Input { oid, source });
                }
            };
            size += read as u64;
            if let Some(expected) = expected.filter(|e| size > e.size) {
                return Err(mismatch(
                    expected,
                    format!("more than {} bytes", expected.size),
                ));
            }
            hasher.update(&buffer[..read]);
            let left = expected.map_or(read as u64, |e| e.size - size);
            file.write_all(&buffer[..read])
                .map_err(|e| self.write_error(file.path(), left, e))?;
            ahead.wrote(file.as_file(), size);
        }
        Ok((
            file,
            Pointer {
                oid: Digest::finish(hasher),
                size,
            },
        ))
    }

    /// Makes a temporary file durable and visible at `target`; whether nothing was there.
    fn publish(&self, file: NamedTempFile, target: &Path) -> Result<bool, StoreError> {
        let executable = target.extension().is_some();
        let mode = if executable { 0o555 } else { 0o444 };
        let path = file.path().to_owned();
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))
            .and_then(|()| set_old(file.as_file()))
            .and_then(|()| file.as_file().sync_all())
            .map_err(|e| self.write_error(&path, 0, e))?;
        let new = self.move_in(&path, target)?;
        // Its old name is free, and may be another's soon.
        let _ = file.keep();
        Ok(new)
    }

    /// Renames what is verified and synced to `target`; whether nothing was there. What is there
    /// with another size is damaged, and put aside.
    fn move_in(&self, from: &Path, target: &Path) -> Result<bool, StoreError> {
        let folder = target.parent().unwrap_or(&self.root);
        durable::create_dir_all(folder).map_err(|e| self.write_error(folder, 0, e))?;
        let len = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
        let new = loop {
            match rename_new(from, target) {
                Ok(()) => break true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let (ours, theirs) = (len(from), len(target));
                    let oid = target.file_stem().and_then(|name| name.to_str());
                    match oid.and_then(|name| name.parse().ok()) {
                        Some(oid) if theirs.is_some() && ours != theirs => {
                            self.quarantine(&oid)?;
                        }
                        _ => {
                            fs::remove_file(from).map_err(|e| io_error("remove", from, e))?;
                            break false;
                        }
                    }
                }
                Err(error) => return Err(self.write_error(target, 0, error)),
            }
        };
        durable::sync_dir(folder).map_err(|e| self.write_error(folder, 0, e))?;
        Ok(new)
    }

    fn write_error(&self, path: &Path, needed_bytes: u64, source: io::Error) -> StoreError {
        if durable::is_full(&source) {
            let available_bytes = self.available_bytes().unwrap_or(0);
            let path = self.root.clone();
            return StoreError::DiskFull {
                path,
                needed_bytes,
                available_bytes,
            };
        }
        io_error("write", path, source)
    }
}

/// Renames unless something is at `to`, whose links must stay links to one file.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            // A file system without it, such as NFS.
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => other.map_err(io::Error::from),
    }
}

fn check(expected: &Pointer, oid: &Digest, size: u64) -> Result<(), StoreError> {
    if size != expected.size {
        return Err(mismatch(
            expected,
            format!("{size} bytes instead of {}", expected.size),
        ));
    }
    if *oid != expected.oid {
        return Err(mismatch(expected, format!("their SHA-256 is {oid}")));
    }
    Ok(())
}

fn mismatch(expected: &Pointer, detail: String) -> StoreError {
    StoreError::Mismatch {
        oid: expected.oid.clone(),
        detail,
    }
}

fn io_error(act: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        act,
        path: path.to_owned(),
        source,
    }
}
