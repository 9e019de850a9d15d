//! The small files of a checkout that has many.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    CheckoutError, Source,
    build::{needs_copy, repo_error},
    give::{Giver, NewObject},
    keep::{Places, io_error},
};
use crate::{
    Digest, repo,
    store::{Held, ObjectStore},
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

/// Writes small files where the checkout is built, syncs thousands at once and then gives them to
/// the store. What the store has is linked from there.
pub(super) struct SmallFiles<'a> {
    store: &'a ObjectStore,
    /// By content and executable bit, the first file that was written.
    written: HashMap<(Digest, bool), PathBuf>,
    /// Contents that the store was found to hold, and where.
    held: HashMap<Digest, PathBuf>,
    /// Before the folder that it links from, which goes after it.
    giver: Giver,
    /// What executable files hold, for the store, whose objects are not.
    aside: tempfile::TempDir,
    /// Whether this process makes files with other modes than it asks for; the first one shows.
    masked: Option<bool>,
    /// Files that are to be objects once they are synced.
    new: Vec<NewObject>,
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
            held: HashMap::new(),
            giver: Giver::new(source.store, aside.path())?,
            aside,
            masked: None,
            new: Vec::new(),
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
        let held = self.held(&oid, content)?;
        let is_new = held.is_none();
        if let Some(object) = held {
            let object = if executable {
                self.store.executable(&oid).map_err(CheckoutError::Store)?
            } else {
                object
            };
            if link(&object, target)? {
                return Ok(oid);
            }
        }
        if is_new && executable && !self.written.contains_key(&(oid.clone(), true)) {
            let path = self.aside.path().join(oid.as_str());
            self.write(&path, content, 0o444)?;
            self.add(&path, &oid, false);
        }
        self.write(target, content, if executable { 0o555 } else { 0o444 })?;
        self.written.insert(key, target.to_owned());
        if is_new {
            self.add(target, &oid, executable);
            self.giver.begin(&mut self.new)?;
        }
        Ok(oid)
    }

    /// Makes all files durable, and those that are new objects of the store.
    pub(super) fn finish(mut self) -> Result<(), CheckoutError> {
        self.giver.finish(&mut self.new)
    }

    fn add(&mut self, path: &Path, oid: &Digest, executable: bool) {
        self.new.push(NewObject {
            executable,
            oid: oid.clone(),
            path: path.to_owned(),
        });
    }

    /// Where the store holds exactly these bytes; what it holds under that name and is damaged is
    /// put aside. The link that is made to it keeps it from collection.
    fn held(&mut self, oid: &Digest, content: &[u8]) -> Result<Option<PathBuf>, CheckoutError> {
        if let Some(path) = self.held.get(oid) {
            return Ok(Some(path.clone()));
        }
        let held = self.store.holds(oid, content);
        match held.map_err(CheckoutError::Store)? {
            Held::Exactly(path) => {
                self.held.insert(oid.clone(), path.clone());
                Ok(Some(path))
            }
            Held::Damaged => {
                self.store.quarantine(oid).map_err(CheckoutError::Store)?;
                Ok(None)
            }
            Held::Nothing => Ok(None),
        }
    }

    fn write(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<(), CheckoutError> {
        let mut act = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(path)?;
            file.write_all(content)?;
            let masked = match self.masked {
                Some(masked) => masked,
                None => file.metadata()?.permissions().mode() & 0o7777 != mode,
            };
            self.masked = Some(masked);
            if masked {
                file.set_permissions(Permissions::from_mode(mode))?;
            }
            Ok(())
        };
        act().map_err(|e| io_error("write", path, e))
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
