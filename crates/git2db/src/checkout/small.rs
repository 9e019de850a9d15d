//! The small files of a checkout that has many.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    CheckoutError, Source,
    build::{needs_copy, repo_error},
    keep::{Places, io_error},
};
use crate::{
    Digest, repo,
    store::{ObjectStore, set_old},
    tree::{self, Entry, EntryKind},
};

/// More small files than this are written, synced and put into the store together. A commit of
/// fewer is not worth the writing of all that others have in memory for the same disk.
pub(super) const MANY: usize = 256;
/// The largest of them, in bytes.
const SMALL_BYTES: u64 = 1 << 20;

/// The blob and the executable bit of a file that is small.
pub(super) fn small_blob(entry: &Entry) -> Option<(&str, bool)> {
    match &entry.kind {
        EntryKind::Blob {
            oid,
            size,
            executable,
        } if *size <= SMALL_BYTES => Some((oid, *executable)),
        _ => None,
    }
}

/// Writes small files where the checkout is built, all synced at once, and gives them to the store
/// then. What the store has is linked from there.
pub(super) struct SmallFiles<'a> {
    store: &'a ObjectStore,
    /// By content and executable bit, the first file that was written.
    written: HashMap<(Digest, bool), PathBuf>,
    /// Contents of executable files, for the store.
    plain: HashMap<Digest, PathBuf>,
    /// Where these lie until then.
    aside: tempfile::TempDir,
    /// Contents that the store was found to hold.
    held: HashSet<Digest>,
}

impl<'a> SmallFiles<'a> {
    pub(super) fn new(source: &'a Source<'a>, places: &Places) -> Result<Self, CheckoutError> {
        let tmp = places.root.join("tmp");
        let aside = tempfile::Builder::new()
            .prefix(&format!("{}.", places.key))
            .tempdir_in(&tmp)
            .map_err(|e| io_error("create folder in", &tmp, e))?;
        Ok(Self {
            store: source.store,
            written: HashMap::new(),
            plain: HashMap::new(),
            aside,
            held: HashSet::new(),
        })
    }

    /// Makes the file at `target` and returns its digest.
    pub(super) fn put(
        &mut self,
        target: &Path,
        content: &[u8],
        executable: bool,
    ) -> Result<Digest, CheckoutError> {
        let oid = Digest::of(content);
        let key = (oid.clone(), executable);
        if let Some(first) = self.written.get(&key)
            && link(first, target)?
        {
            return Ok(oid);
        }
        if self.is_held(&oid, content)? {
            let object = if executable {
                self.store.executable(&oid).map_err(CheckoutError::Store)?
            } else {
                self.store.path(&oid)
            };
            if link(&object, target)? {
                return Ok(oid);
            }
        } else if executable && !self.plain.contains_key(&oid) {
            let path = self.aside.path().join(oid.as_str());
            write(&path, content, 0o444)?;
            self.plain.insert(oid.clone(), path);
        }
        write(target, content, if executable { 0o555 } else { 0o444 })?;
        self.written.insert(key, target.to_owned());
        Ok(oid)
    }

    /// Makes all files durable, and those that are new objects of the store.
    pub(super) fn finish(self, building: &Path) -> Result<(), CheckoutError> {
        // Also writes the folders, and says of a disk that lost something.
        File::open(building)
            .and_then(|folder| Ok(rustix::fs::syncfs(folder)?))
            .map_err(|e| io_error("sync", building, e))?;
        let mut batch = self.store.batch();
        let is_new = |oid: &Digest| !self.held.contains(oid);
        for (oid, path) in &self.plain {
            batch.link(path, oid, false).map_err(CheckoutError::Store)?;
        }
        for executable in [false, true] {
            let of_mode = self.written.iter().filter(|((_, x), _)| *x == executable);
            for ((oid, _), path) in of_mode.filter(|((oid, _), _)| is_new(oid)) {
                batch
                    .link(path, oid, executable)
                    .map_err(CheckoutError::Store)?;
            }
        }
        Ok(())
    }

    /// Whether the store holds exactly these bytes; what it holds under that name and is damaged
    /// is put aside.
    fn is_held(&mut self, oid: &Digest, content: &[u8]) -> Result<bool, CheckoutError> {
        if self.held.contains(oid) {
            return Ok(true);
        }
        let held = self
            .store
            .holds(oid, content)
            .map_err(CheckoutError::Store)?;
        match held {
            Some(true) => {
                self.store.mark_used(oid);
                self.held.insert(oid.clone());
            }
            Some(false) => {
                self.store.quarantine(oid).map_err(CheckoutError::Store)?;
            }
            None => {}
        }
        Ok(held == Some(true))
    }
}

/// The content of a blob, whose SHA-1 reading verifies; `None` for the empty one, which need not be
/// in the repository.
pub(super) fn read_blob<'r>(
    source: &Source<'_>,
    repo: &'r git2::Repository,
    oid: &str,
) -> Result<Option<git2::Blob<'r>>, CheckoutError> {
    if oid == tree::EMPTY_BLOB {
        return Ok(None);
    }
    let access = |e| repo_error(repo::access(source.bare)(e));
    let oid = git2::Oid::from_str(oid).map_err(access)?;
    repo.find_blob(oid).map(Some).map_err(access)
}

/// Whether the file has another name now: another file system, or no links left, are no errors.
fn link(from: &Path, to: &Path) -> Result<bool, CheckoutError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        // Collected since it was found.
        Err(error) if needs_copy(&error) || error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("link", to, error)),
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), CheckoutError> {
    let act = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        set_old(&file)
    };
    act().map_err(|e| io_error("write", path, e))
}
