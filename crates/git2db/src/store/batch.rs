//! Many small objects at once, and large ones without a copy.
//!
//! An object that comes alone is synced alone. Of a hundred thousand small files the syncs would
//! be all the time that a checkout takes: they are written where the checkout is built, synced
//! together, and only then linked into the store, in which nothing appears before it is durable.

use std::{
    collections::HashSet,
    fs::{self, File, FileTimes},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};

use super::{CHUNK_BYTES, EXECUTABLE, ObjectStore, StoreError, io_error};
use crate::{Digest, lfs::Pointer};

/// The folder of what came in batches: one for each first two digits. One for each four, as for
/// what comes alone, would be more folders than files.
pub(super) const BATCHED: &str = "-";

/// Objects that were written and synced elsewhere on the store's file system, to be linked in.
#[derive(Debug)]
pub(crate) struct Batch {
    store: ObjectStore,
    folders: HashSet<PathBuf>,
    /// Until it is known that links cannot reach the store from there.
    reachable: bool,
}

impl ObjectStore {
    /// Reads the file at `path` to its end into the store and returns what it was. Where the file
    /// system has reflinks nothing is copied.
    pub fn insert_file(&self, path: &Path) -> Result<Pointer, StoreError> {
        let input = |source| StoreError::Input {
            oid: Digest::of(b""),
            source,
        };
        let mut source = File::open(path).map_err(input)?;
        let mut file = self.temporary()?;
        if rustix::fs::ioctl_ficlone(file.as_file(), &source).is_err() {
            return self.insert(&mut source);
        }
        // What is hashed is the clone, which nobody else can write to.
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match file.as_file_mut().read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    size += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(input(source)),
            }
        }
        let oid = Digest::finish(hasher);
        self.publish(file, &self.path(&oid))?;
        Ok(Pointer { oid, size })
    }

    /// Begins to link objects in.
    pub(crate) fn batch(&self) -> Batch {
        Batch {
            store: self.clone(),
            folders: HashSet::new(),
            reachable: true,
        }
    }

    /// Where an object lies that came alone.
    pub(super) fn path_alone(&self, oid: &Digest) -> PathBuf {
        let hex = oid.as_str();
        let outer = self.root.join("objects").join(&hex[..2]);
        outer.join(&hex[2..4]).join(hex)
    }

    /// Where an object lies that came in a batch.
    pub(super) fn batched_path(&self, oid: &Digest) -> PathBuf {
        let hex = oid.as_str();
        let outer = self.root.join("objects").join(&hex[..2]);
        outer.join(BATCHED).join(hex)
    }
}

impl Batch {
    /// Makes the file at `path` the object `oid`, or its executable copy, which comes second. The
    /// caller has verified and synced it, and never writes to it again.
    ///
    /// Nothing is done if the object is there, or if the file is on another file system.
    pub(crate) fn link(
        &mut self,
        path: &Path,
        oid: &Digest,
        executable: bool,
    ) -> Result<(), StoreError> {
        if !self.reachable {
            return Ok(());
        }
        let plain = self.store.batched_path(oid);
        let folder = plain.parent().unwrap_or(&plain).to_owned();
        if !self.folders.contains(&folder) {
            fs::create_dir_all(&folder).map_err(|e| self.store.write_error(&folder, 0, e))?;
            self.folders.insert(folder);
        }
        let target = if executable {
            plain.with_extension(EXECUTABLE)
        } else {
            plain
        };
        match fs::hard_link(path, &target) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::CrossesDevices | io::ErrorKind::PermissionDenied
                ) =>
            {
                self.reachable = false;
                Ok(())
            }
            Err(error) => Err(io_error("link", &target, error)),
        }
    }
}

/// Gives a file a time that is older than whatever is made of it. git takes a file for unchanged
/// by its time only if that is older than the index, by a second.
pub(crate) fn set_old(file: &File) -> io::Result<()> {
    file.set_times(FileTimes::new().set_modified(past()))
}

/// The time that [`set_old`] gives.
pub(crate) fn past() -> SystemTime {
    SystemTime::now() - Duration::from_secs(2)
}
