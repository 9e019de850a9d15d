//! Contents by their SHA-256, each once.

mod error;

use std::{
    collections::HashSet,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

pub use error::StoreError;

use crate::{Digest, lfs::Pointer};

/// A folder of contents by their SHA-256.
///
/// `objects/ab/cd/<sha256>` holds what is complete and verified, mode 0444; `parts/<sha256>` what
/// is being downloaded; `tmp/` what is being written. Any number of threads and processes may use
/// a store at once. After a kill at any point the store is whole.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    root: PathBuf,
}

/// What [`ObjectStore::gc`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects and parts.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
}

impl ObjectStore {
    /// The store at `root`, made if it is not there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { root: root.to_owned() })
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
        let _ = oid;
        unimplemented!("not done yet")
    }

    /// Where the object lies, whether or not it is there. Open it to read; never write to it.
    pub fn path(&self, oid: &Digest) -> PathBuf {
        let hex = oid.as_str();
        self.root.join("objects").join(&hex[..2]).join(&hex[2..4]).join(hex)
    }

    /// Reads `reader` to its end into the store and checks digest and size before the object is
    /// visible. Returns whether it was new. On error nothing is left.
    pub fn insert_verified(
        &self,
        reader: &mut dyn Read,
        expected: &Pointer,
    ) -> Result<bool, StoreError> {
        let _ = (reader, expected);
        unimplemented!("not done yet")
    }

    /// Puts `bytes` into the store and returns their digest.
    pub fn insert_bytes(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let _ = bytes;
        unimplemented!("not done yet")
    }

    /// Reads `reader` to its end into the store and returns what came.
    pub fn insert(&self, reader: &mut dyn Read) -> Result<Pointer, StoreError> {
        let _ = reader;
        unimplemented!("not done yet")
    }

    /// Bytes that may still be written to the file system of the store.
    pub fn available_bytes(&self) -> Result<u64, StoreError> {
        unimplemented!("not done yet")
    }

    /// Removes objects that are linked nowhere else, not in `keep`, and not used for `min_age`;
    /// and parts and temporary files that nobody writes and that are older than `min_age`.
    ///
    /// An object counts as used when it is inserted, linked, or found present by a download.
    pub fn gc(&self, keep: &HashSet<Digest>, min_age: Duration) -> Result<Collected, StoreError> {
        let _ = (keep, min_age);
        unimplemented!("not done yet")
    }
}
