//! Downloads that continue where they broke off.

use std::{
    fs::Permissions,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{
    CHUNK_BYTES, ObjectStore, StoreError, ahead::Ahead, check, io_error, mismatch, set_old,
};
use crate::{Digest, Observer, lfs::Pointer, lock::FileLock};

/// The answer to [`ObjectStore::claim`].
#[derive(Debug)]
pub enum Claim {
    /// The object is there.
    Present,
    /// It is not there, and nobody else is bringing it: the caller does.
    Mine(Box<Part>),
}

/// An object that this process is bringing, alone. Dropped unfinished, it is kept for next time.
#[derive(Debug)]
pub struct Part {
    store: ObjectStore,
    expected: Pointer,
    path: PathBuf,
    lock: FileLock,
    hasher: Sha256,
    len: u64,
    ahead: Ahead,
}

impl ObjectStore {
    /// Waits until nobody else is bringing the object, in any process, and says whether it is
    /// there then. What came earlier is hashed again and kept.
    pub fn claim(&self, expected: &Pointer, observer: &dyn Observer) -> Result<Claim, StoreError> {
        let cancelled = || StoreError::Cancelled {
            oid: expected.oid.clone(),
        };
        if self.is_present(expected)? {
            return Ok(Claim::Present);
        }
        let path = self.root.join("parts").join(expected.oid.as_str());
        let lock = FileLock::acquire(&path, &|| observer.is_cancelled())
            .map_err(|e| self.write_error(&path, expected.size, e))?
            .ok_or_else(cancelled)?;
        if self.is_present(expected)? {
            // Somebody brought it while we waited, or after a kill its part was left.
            std::fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
            return Ok(Claim::Present);
        }
        self.continued(path, lock, expected, observer)
            .map(Claim::Mine)
    }

    /// What came of an object that is being brought into the file at `path`, which is made if need
    /// be and must be on the file system of the store. What is in it is hashed again and kept;
    /// more than the object's size is thrown away. For those who must not continue what others
    /// began: unlike with [`ObjectStore::claim`], each path is a part of its own.
    ///
    /// # Errors
    /// `Cancelled` if `observer` ends the wait for another holder of the file, or the hashing;
    /// `DiskFull` if the rest of the object does not fit.
    pub fn part_at(
        &self,
        path: &Path,
        expected: &Pointer,
        observer: &dyn Observer,
    ) -> Result<Box<Part>, StoreError> {
        let lock = FileLock::acquire(path, &|| observer.is_cancelled())
            .map_err(|e| self.write_error(path, expected.size, e))?
            .ok_or_else(|| StoreError::Cancelled {
                oid: expected.oid.clone(),
            })?;
        self.continued(path.to_owned(), lock, expected, observer)
    }

    fn continued(
        &self,
        path: PathBuf,
        lock: FileLock,
        expected: &Pointer,
        observer: &dyn Observer,
    ) -> Result<Box<Part>, StoreError> {
        let mut part = Box::new(Part {
            store: self.clone(),
            expected: expected.clone(),
            path,
            lock,
            hasher: Sha256::new(),
            len: 0,
            ahead: Ahead::default(),
        });
        part.read_again(observer)?;
        part.ahead = Ahead::from(part.len);
        self.ensure_space(part.missing_bytes())?;
        Ok(part)
    }

    /// Bytes of the object that came earlier and are to be continued.
    pub fn part_len(&self, object: &Pointer) -> u64 {
        let path = self.root.join("parts").join(object.oid.as_str());
        std::fs::metadata(path).map_or(0, |found| found.len())
    }

    fn is_present(&self, expected: &Pointer) -> Result<bool, StoreError> {
        match self.size(&expected.oid)? {
            None => Ok(false),
            Some(size) if size == expected.size => {
                self.mark_used(&expected.oid);
                Ok(true)
            }
            // The disk lost something: the object is brought again.
            Some(_) if self.quarantine_if_damaged(&expected.oid)? => Ok(false),
            // Two pointers with one digest and two sizes: this one lies.
            Some(size) => Err(mismatch(expected, format!("it has {size} bytes"))),
        }
    }
}

impl Part {
    /// Bytes that are there, from the beginning.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that are still missing.
    pub fn missing_bytes(&self) -> u64 {
        self.expected.size - self.len
    }

    /// Adds the next bytes. More than the object's size is a `Mismatch`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() as u64 > self.missing_bytes() {
            return Err(mismatch(
                &self.expected,
                format!("more than {} bytes", self.expected.size),
            ));
        }
        if let Err(error) = self.lock.file_mut().write_all(bytes) {
            let missing = self.missing_bytes();
            // What was written of them is not in the hash: take it away again.
            let kept = self.rewind_to(self.len);
            return Err(kept
                .err()
                .unwrap_or(self.store.write_error(&self.path, missing, error)));
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.ahead.wrote(self.lock.file(), self.len);
        Ok(())
    }

    /// Throws away what came.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.hasher = Sha256::new();
        self.len = 0;
        self.ahead = Ahead::default();
        self.rewind_to(0)
    }

    /// Verifies size and digest. After a `Mismatch` the part is empty.
    pub fn verify(&mut self) -> Result<(), StoreError> {
        let oid = Digest::finish(self.hasher.clone());
        if let Err(error) = check(&self.expected, &oid, self.len) {
            self.restart()?;
            return Err(error);
        }
        Ok(())
    }

    /// Another handle of the file, by which it can be synced while more is added.
    pub fn handle(&self) -> io::Result<std::fs::File> {
        self.lock.file().try_clone()
    }

    /// Verifies size and digest and makes the object visible. After a `Mismatch` the part is
    /// empty.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.verify()?;
        let file = self.lock.file();
        file.set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| set_old(file))
            .and_then(|()| file.sync_all())
            .map_err(|e| self.store.write_error(&self.path, 0, e))?;
        self.store
            .move_in(&self.path, &self.store.path(&self.expected.oid))
            .map(|_| ())
    }

    fn rewind_to(&mut self, len: u64) -> Result<(), StoreError> {
        let file = self.lock.file_mut();
        file.set_len(len)
            .and_then(|()| file.seek(SeekFrom::Start(len)))
            .map(|_| ())
            .map_err(|e| io_error("shorten", &self.path, e))
    }

    fn read_again(&mut self, observer: &dyn Observer) -> Result<(), StoreError> {
        let failed = |path: &std::path::Path, e: io::Error| io_error("read", path, e);
        let there = self
            .lock
            .file()
            .metadata()
            .map_err(|e| failed(&self.path, e))?
            .len();
        if there > self.expected.size {
            return self.restart();
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            if observer.is_cancelled() {
                return Err(StoreError::Cancelled {
                    oid: self.expected.oid.clone(),
                });
            }
            match self.lock.file_mut().read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    self.hasher.update(&buffer[..read]);
                    self.len += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&self.path, error)),
            }
        }
    }
}
