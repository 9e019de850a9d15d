//! Contents that come and go piece by piece, so that none is ever held in memory.

use std::{
    fs::File,
    io::{self, Read, Write as _},
};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{ObjectStore, StoreError, ahead::Ahead, check, io_error, mismatch};
use crate::{Digest, lfs::Pointer};

/// A content that is being written into a store. Dropped unfinished, nothing of it is left.
pub(crate) struct Writer {
    store: ObjectStore,
    file: NamedTempFile,
    hasher: Sha256,
    size: u64,
    ahead: Ahead,
}

impl Writer {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|e| (self.store).write_error(self.file.path(), bytes.len() as u64, e))?;
        self.ahead.wrote(self.file.as_file(), self.size);
        Ok(())
    }

    /// Makes the object visible and returns its name.
    pub(crate) fn finish(self) -> Result<Pointer, StoreError> {
        let pointer = Pointer {
            oid: Digest::finish(self.hasher),
            size: self.size,
        };
        let path = self.store.path(&pointer.oid);
        self.store.publish(self.file, &path)?;
        self.store.mark_used(&pointer.oid);
        Ok(pointer)
    }
}

/// The bytes of an object, compared with its name while they are read.
///
/// Where the disk holds other bytes, the read that would end with them fails with
/// [`io::ErrorKind::InvalidData`], and the object is quarantined so that the next download brings
/// it again. Who acts on bytes before the end has come acts on bytes that nobody has checked.
#[derive(Debug)]
pub struct Reader {
    store: ObjectStore,
    expected: Pointer,
    file: File,
    hasher: Option<Sha256>,
    size: u64,
}

impl ObjectStore {
    pub(crate) fn writer(&self) -> Result<Writer, StoreError> {
        Ok(Writer {
            store: self.clone(),
            file: self.temporary()?,
            hasher: Sha256::new(),
            size: 0,
            ahead: Ahead::default(),
        })
    }

    /// Opens an object to read it to its end, verified on the way.
    ///
    /// # Errors
    /// `Missing` if it is not there, also if it has another size than its name says and is
    /// therefore put aside; `Mismatch` if the pointer itself says a wrong size.
    pub fn reader(&self, object: &Pointer) -> Result<Reader, StoreError> {
        let missing = || StoreError::Missing {
            oid: object.oid.clone(),
        };
        let path = self.path(&object.oid);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(io_error("open", &path, error)),
        };
        let found = file.metadata().map_err(|e| io_error("read", &path, e))?;
        if found.len() != object.size {
            if self.quarantine_if_damaged(&object.oid)? {
                return Err(missing());
            }
            let detail = format!("{} bytes instead of {}", found.len(), object.size);
            return Err(mismatch(object, detail));
        }
        Ok(Reader {
            store: self.clone(),
            expected: object.clone(),
            file,
            hasher: Some(Sha256::new()),
            size: 0,
        })
    }
}

impl Reader {
    /// The object.
    pub fn pointer(&self) -> &Pointer {
        &self.expected
    }

    /// Reads the next bytes; 0 at the end, when all of them are known to be right.
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> Result<usize, StoreError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        }
        .map_err(|e| io_error("read", &self.store.path(&self.expected.oid), e))?;
        self.size += read as u64;
        if read > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..read]);
            }
        } else if let Some(hasher) = self.hasher.take() {
            let found = Digest::finish(hasher);
            if let Err(error) = check(&self.expected, &found, self.size) {
                self.store.quarantine(&self.expected.oid)?;
                return Err(error);
            }
        }
        Ok(read)
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
