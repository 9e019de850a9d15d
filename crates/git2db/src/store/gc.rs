//! Removing what nothing uses.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{ObjectStore, StoreError, io_error};
use crate::{Digest, lock::FileLock};

/// What [`ObjectStore::gc`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects, parts, temporary files and quarantined ones.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects.
    pub objects: u64,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// Bytes of those that are linked nowhere else.
    pub unlinked_bytes: u64,
}

impl ObjectStore {
    /// Removes objects that are linked nowhere else, not in `keep`, and not used for `min_age`;
    /// parts, not of objects in `keep`, and temporary files that nobody wrote to for `min_age`; and
    /// what has been in quarantine for that long.
    ///
    /// An object counts as used when it is inserted, linked or unlinked, or found present by a
    /// download. `min_age` should be longer than it takes from the end of a download to the
    /// checkout; if an object goes too early, it is downloaded again and nothing else happens.
    pub fn gc(&self, keep: &HashSet<Digest>, min_age: Duration) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        self.each_object(&mut |path, oid, found| {
            let idle = found.nlink() == 1 && is_older(changed(found), min_age);
            if idle && !keep.contains(oid) {
                remove(path, found.len(), &mut collected)?;
            }
            Ok(())
        })?;
        for (path, found) in files(&self.root.join("parts"))? {
            let name = path.file_name().and_then(|name| name.to_str());
            let oid = name.and_then(|name| name.parse().ok());
            if oid.is_some_and(|oid| keep.contains(&oid)) {
                continue;
            }
            if !is_older(found.modified().unwrap_or(UNIX_EPOCH), min_age) {
                continue;
            }
            let lock = FileLock::try_acquire(&path).map_err(|e| io_error("lock", &path, e))?;
            if lock.is_some() {
                remove(&path, found.len(), &mut collected)?;
            }
        }
        for (path, found) in files(&self.root.join("tmp"))? {
            if is_older(found.modified().unwrap_or(UNIX_EPOCH), min_age) {
                remove(&path, found.len(), &mut collected)?;
            }
        }
        for (path, found) in files(&self.root.join("quarantine"))? {
            if is_older(changed(&found), min_age) {
                remove(&path, found.len(), &mut collected)?;
            }
        }
        Ok(collected)
    }

    /// What the store holds; reads the whole folder.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        self.each_object(&mut |_, _, found| {
            usage.objects += 1;
            usage.bytes += found.len();
            usage.unlinked_bytes += if found.nlink() == 1 { found.len() } else { 0 };
            Ok(())
        })?;
        Ok(usage)
    }

    pub(super) fn each_object(
        &self,
        visit: &mut dyn FnMut(&Path, &Digest, &fs::Metadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let objects = self.root.join("objects");
        for outer in entries(&objects)? {
            for inner in entries(&outer)? {
                for (path, found) in files(&inner)? {
                    let oid = path
                        .file_stem()
                        .and_then(|n| n.to_str())
                        .and_then(|n| n.parse().ok());
                    if let Some(oid) = oid {
                        visit(&path, &oid, &found)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |e| io_error("list", folder, e);
    let list = match fs::read_dir(folder) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    list.map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)
}

fn files(folder: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, StoreError> {
    let mut files = Vec::new();
    for path in entries(folder)? {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => files.push((path, found)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", &path, error)),
        }
    }
    Ok(files)
}

fn remove(path: &Path, bytes: u64, collected: &mut Collected) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => {
            collected.files += 1;
            collected.bytes += bytes;
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path, error)),
    }
}

fn changed(found: &fs::Metadata) -> SystemTime {
    let seconds = u64::try_from(found.ctime()).unwrap_or(0);
    let nanos = u32::try_from(found.ctime_nsec()).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// A time in the future is young: the clock was set back.
fn is_older(time: SystemTime, age: Duration) -> bool {
    SystemTime::now()
        .duration_since(time)
        .is_ok_and(|elapsed| elapsed >= age)
}
