//! Reading objects again, and taking bad ones out of sight.
//!
//! A store that is looked through, slowly and for ever, by a loop over [`ObjectStore::oids`],
//! [`ObjectStore::verify`] and, where that finds damage, [`ObjectStore::quarantine`]:
//!
//! ```
//! use std::ops::ControlFlow;
//! use hyprstream_git2db::store::{ObjectStore, StoreError, Verified};
//!
//! # fn main() -> Result<(), StoreError> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let store = ObjectStore::open(dir.path())?;
//! for oid in store.oids()? {
//!     // Called after every piece: sleep here to read slowly, break to end.
//!     match store.verify(&oid, &mut |_bytes| ControlFlow::Continue(())) {
//!         Ok(Verified::Whole { .. }) | Err(StoreError::Missing { .. }) => {}
//!         Ok(Verified::Damaged { detail }) => {
//!             let put_aside = store.quarantine(&oid)?;
//!             eprintln!("{oid} is damaged ({detail}), now {put_aside:?}");
//!         }
//!         Err(error) => return Err(error),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::{
    fs::{self, File},
    io::{self, Read as _},
    ops::ControlFlow,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Advice, fadvise};
use sha2::{Digest as _, Sha256};

use super::{CHUNK_BYTES, EXECUTABLE, ObjectStore, StoreError, io_error};
use crate::{Digest, durable};

/// What [`ObjectStore::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a damaged object is still there: quarantine it"]
pub enum Verified {
    /// The bytes are those that the object is named after.
    Whole {
        /// Bytes that were read, those of the executable copy included.
        bytes: u64,
    },
    /// The bytes are others, or the disk does not give them any more.
    Damaged {
        /// What is wrong, for people.
        detail: String,
    },
}

/// A file that [`ObjectStore::quarantine`] put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it lies now, for somebody to look at; [`ObjectStore::gc`] removes it.
    pub path: PathBuf,
    /// Its inode: a checkout's or a repository's file with the same one holds the same bad bytes.
    pub inode: u64,
    /// How many other files (hard links) hold its bytes.
    pub other_links: u64,
}

/// What [`ObjectStore::holds`] found.
pub(crate) enum Held {
    /// No object of that name.
    Nothing,
    /// One with other bytes.
    Damaged,
    /// One with these bytes, at this path.
    Exactly(PathBuf),
}

impl ObjectStore {
    /// The objects that are there, ordered; reads the whole folder.
    pub fn oids(&self) -> Result<Vec<Digest>, StoreError> {
        let mut oids = Vec::new();
        self.each_object(&mut |_, oid, _| {
            oids.push(oid.clone());
            Ok(())
        })?;
        oids.sort();
        oids.dedup();
        Ok(oids)
    }

    /// Reads the object, and its executable copy if there is one, from the disk and compares the
    /// bytes with its name. It stays where it is, whatever is found.
    ///
    /// `pace` is called with the number of bytes of every piece (256 KiB at most) after it was
    /// read: it sleeps to keep a rate, and breaks to end the work with `Cancelled`. What only this
    /// read brought into the page cache leaves it again, so that a scrub drives out no weights
    /// that are being served; pages that are mapped stay, and are what is verified then.
    ///
    /// An object that is not there, also one that is removed meanwhile, is a `Missing`. A medium
    /// that does not give the bytes is [`Verified::Damaged`]; other failures to read are errors.
    pub fn verify(
        &self,
        oid: &Digest,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Verified, StoreError> {
        let mut total = 0;
        for (path, needed) in self.files_of(oid) {
            match read_all(oid, &path, pace)? {
                Some(Verified::Whole { bytes }) => total += bytes,
                Some(damaged) => return Ok(damaged),
                None if needed => return Err(StoreError::Missing { oid: oid.clone() }),
                None => {}
            }
        }
        Ok(Verified::Whole { bytes: total })
    }

    /// Takes the object and its executable copy out of sight, into `quarantine/`, durably. From
    /// then on it is missing, and the next download brings it again.
    ///
    /// Hard links to it elsewhere, such as in checkouts, keep the bytes that they have; see
    /// [`Quarantined::inode`]. Nothing is done, and nothing returned, for what is not there.
    pub fn quarantine(&self, oid: &Digest) -> Result<Vec<Quarantined>, StoreError> {
        let folder = self.root.join("quarantine");
        durable::create_dir_all(&folder).map_err(|e| io_error("create folder", &folder, e))?;
        let mut put_aside = Vec::new();
        for (path, _) in self.files_of(oid) {
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("read", &path, error)),
            };
            // Named by its inode, since the next one of the same object may go bad as well.
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let target = folder.join(format!("{name}.{}", found.ino()));
            match fs::rename(&path, &target) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("put aside", &path, error)),
            }
            tracing::warn!(%oid, path = ?target, "an object of the store is put aside");
            put_aside.push(Quarantined {
                path: target,
                inode: found.ino(),
                other_links: found.nlink().saturating_sub(1),
            });
            for changed in [path.parent().unwrap_or(&self.root), &folder] {
                durable::sync_dir(changed).map_err(|e| io_error("sync", changed, e))?;
            }
        }
        Ok(put_aside)
    }

    /// Quarantines the object if it is damaged; whether it was. For one whose size is wrong.
    pub(crate) fn quarantine_if_damaged(&self, oid: &Digest) -> Result<bool, StoreError> {
        match self.verify(oid, &mut |_| ControlFlow::Continue(())) {
            Ok(Verified::Whole { .. }) => Ok(false),
            Ok(Verified::Damaged { detail }) => {
                tracing::error!(%oid, detail, "an object of the store is damaged");
                self.quarantine(oid).map(|_| true)
            }
            // Gone meanwhile, which is as good.
            Err(StoreError::Missing { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether the object's file holds exactly `bytes`, and where it is.
    pub(crate) fn holds(&self, oid: &Digest, bytes: &[u8]) -> Result<Held, StoreError> {
        // Opened, not asked for first: of a hundred thousand new files each look counts.
        let [alone, batched] = [self.path_alone(oid), self.batched_path(oid)];
        let mut opened = File::open(&alone).map(|file| (file, &alone));
        if opened
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            opened = File::open(&batched).map(|file| (file, &batched));
        }
        let (mut file, path) = match opened {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::Nothing),
            Err(error) if is_damage(&error) => return Ok(Held::Damaged),
            Err(error) => return Err(io_error("read", &alone, error)),
        };
        let size = file
            .metadata()
            .map_err(|e| io_error("read", path, e))?
            .len();
        if size != bytes.len() as u64 {
            return Ok(Held::Damaged);
        }
        let mut found = Vec::with_capacity(bytes.len());
        match file.read_to_end(&mut found) {
            Ok(_) if found == bytes => Ok(Held::Exactly(path.clone())),
            Ok(_) => Ok(Held::Damaged),
            Err(error) if is_damage(&error) => Ok(Held::Damaged),
            Err(error) => Err(io_error("read", path, error)),
        }
    }

    /// Where an object may lie, and whether it must.
    fn files_of(&self, oid: &Digest) -> [(PathBuf, bool); 2] {
        let path = self.path(oid);
        let executable = path.with_extension(EXECUTABLE);
        [(path, true), (executable, false)]
    }
}

/// Reads a file to its end; `None` if it is not there.
fn read_all(
    oid: &Digest,
    path: &Path,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Option<Verified>, StoreError> {
    let damaged = |detail: String| Ok(Some(Verified::Damaged { detail }));
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if is_damage(&error) => return damaged(error.to_string()),
        Err(error) => return Err(io_error("read", path, error)),
    };
    // What is to be read is the disk, not what memory still has of it. A file system that
    // does not know the advice gives what it gives.
    let forget = |file: &File| {
        let _ = fadvise(file, 0, None, Advice::DontNeed);
    };
    forget(&file);
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_damage(&error) => {
                return damaged(format!("byte {size} cannot be read: {error}"));
            }
            Err(error) => return Err(io_error("read", path, error)),
        };
        hasher.update(&buffer[..read as usize]);
        size += read;
        if size % (64 * CHUNK_BYTES as u64) == 0 {
            forget(&file);
        }
        if pace(read).is_break() {
            return Err(StoreError::Cancelled { oid: oid.clone() });
        }
    }
    forget(&file);
    let found = Digest::finish(hasher);
    if found != *oid {
        return damaged(format!("its {size} bytes have the SHA-256 {found}"));
    }
    Ok(Some(Verified::Whole { bytes: size }))
}

/// Whether the medium or the file system lost bytes: EIO, EUCLEAN, EBADMSG.
fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::UCLEAN, Errno::BADMSG]
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}
