//! Building a checkout.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use super::{
    Checkout, CheckoutError, CheckoutFile, FileMode,
    keep::{Places, io_error, open, publish},
    key,
    small::{MANY, SmallFiles, read_blob, small_blob},
};
use crate::{
    CommitId, Digest, Include, RepoError, durable,
    lfs::Pointer,
    repo,
    store::{ObjectStore, StoreError},
    tree::{self, Entry, EntryKind, Limits, TreeError},
};

/// What a checkout is made of.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The bare repository that holds the commit.
    pub bare: &'a Path,
    /// The commit.
    pub commit: &'a CommitId,
    /// Its files that are wanted.
    pub include: &'a Include,
    /// What is accepted of it.
    pub limits: Limits,
    /// Where its LFS objects lie.
    pub store: &'a ObjectStore,
}

/// Makes the checkout of a commit at `root/checkouts/<key>`, or opens it if it is complete.
///
/// The LFS objects must be in the store. It is built in `root/tmp`, synced, renamed and marked
/// complete, so that no half of it is ever taken for whole; callers for the same key at the same
/// time, in any process, get one. Files are hard links into the store where the file system is
/// the same and has links left, else reflinks or copies. Content in git goes through the store,
/// too, so that two commits share what they have in common. After an error nothing is left.
pub fn materialise(source: &Source<'_>, root: &Path) -> Result<Checkout, CheckoutError> {
    let places = Places::new(root, &key(source.commit, source.include));
    if let Some(checkout) = open(root, &places.key)? {
        return Ok(checkout);
    }
    let _lock = places.lock()?;
    if let Some(checkout) = open(root, &places.key)? {
        return Ok(checkout);
    }
    let entries = tree::walk(source.bare, source.commit, source.include, &source.limits)
        .map_err(CheckoutError::Tree)?;
    let tmp = root.join("tmp");
    let building = tempfile::Builder::new()
        .prefix(&format!("{}.", places.key))
        .tempdir_in(&tmp)
        .map_err(|e| io_error("create folder in", &tmp, e))?;
    let is_small = |entry: &&Entry| small_blob(entry).is_some();
    let many = entries.iter().filter(is_small).nth(MANY).is_some();
    let mut builder = Builder::new(source, building.path())?;
    builder.small = many.then(|| SmallFiles::new(source, &places)).transpose()?;
    // Links last: nothing is written through one.
    let is_link = |entry: &&Entry| matches!(entry.kind, EntryKind::Symlink { .. });
    let mut files = Vec::with_capacity(entries.len());
    for entry in entries
        .iter()
        .filter(|e| !is_link(e))
        .chain(entries.iter().filter(is_link))
    {
        files.push(builder.put(entry)?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    match builder.small.take() {
        Some(small) => small.finish()?,
        None => builder.sync()?,
    }
    publish(&places, building, &files)?;
    Ok(Checkout {
        path: places.folder,
        key: places.key,
        files,
    })
}

struct Builder<'a> {
    source: &'a Source<'a>,
    repo: git2::Repository,
    target: &'a Path,
    folders: Vec<PathBuf>,
    /// The folder of the file before, which is there.
    last: PathBuf,
    /// Where there are many small files.
    small: Option<SmallFiles<'a>>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Source<'a>, target: &'a Path) -> Result<Self, CheckoutError> {
        let repo = repo::open(source.bare).map_err(repo_error)?;
        set_mode(target, 0o755)?;
        Ok(Self {
            source,
            repo,
            target,
            folders: vec![target.to_owned()],
            last: target.to_owned(),
            small: None,
        })
    }

    fn put(&mut self, entry: &Entry) -> Result<CheckoutFile, CheckoutError> {
        let target = self.target.join(&entry.path);
        self.make_folders(&target)?;
        if let (Some(small), Some((oid, executable))) = (&mut self.small, small_blob(entry)) {
            let content = read_blob(self.source, &self.repo, oid)?;
            let bytes = content
                .as_ref()
                .map_or(b"".as_slice(), |blob| blob.content());
            return Ok(CheckoutFile {
                path: entry.path.clone(),
                size_bytes: bytes.len() as u64,
                sha256: small.put(&target, bytes, executable)?,
                mode: file_mode(executable),
            });
        }
        let (oid, size, mode) = match &entry.kind {
            EntryKind::Symlink { target: text } => {
                symlink(text, &target).map_err(|e| io_error("link", &target, e))?;
                (
                    Digest::of(text.as_bytes()),
                    text.len() as u64,
                    FileMode::Symlink,
                )
            }
            EntryKind::Lfs {
                pointer,
                executable,
            } => {
                self.check(&entry.path, pointer)?;
                (pointer.oid.clone(), pointer.size, file_mode(*executable))
            }
            EntryKind::Blob {
                oid,
                size,
                executable,
            } => (self.store_blob(oid)?, *size, file_mode(*executable)),
        };
        if mode != FileMode::Symlink {
            self.link(&entry.path, &oid, mode, &target)?;
        }
        Ok(CheckoutFile {
            path: entry.path.clone(),
            size_bytes: size,
            sha256: oid,
            mode,
        })
    }

    /// Whether the LFS object is there; its digest was verified when it came into the store.
    fn check(&self, path: &str, pointer: &Pointer) -> Result<(), CheckoutError> {
        let found = self
            .source
            .store
            .size(&pointer.oid)
            .map_err(CheckoutError::Store)?;
        match found {
            Some(found) if found == pointer.size => Ok(()),
            // The disk lost something; the next download brings it again.
            Some(_)
                if self
                    .source
                    .store
                    .quarantine_if_damaged(&pointer.oid)
                    .map_err(CheckoutError::Store)? =>
            {
                Err(missing(path, &pointer.oid))
            }
            Some(found) => Err(CheckoutError::SizeMismatch {
                path: path.to_owned(),
                found,
                expected: pointer.size,
            }),
            None => Err(missing(path, &pointer.oid)),
        }
    }

    fn store_blob(&self, oid: &str) -> Result<Digest, CheckoutError> {
        let blob = read_blob(self.source, &self.repo, oid)?;
        let content = blob.as_ref().map_or(b"".as_slice(), |blob| blob.content());
        let store = self.source.store;
        store.insert_bytes(content).map_err(CheckoutError::Store)
    }

    fn link(
        &self,
        path: &str,
        oid: &Digest,
        mode: FileMode,
        target: &Path,
    ) -> Result<(), CheckoutError> {
        let store = self.source.store;
        let (object, bits) = match mode {
            FileMode::Executable => {
                let copy = store.executable(oid).map_err(|error| match error {
                    StoreError::Missing { oid } => missing(path, &oid),
                    other => CheckoutError::Store(other),
                })?;
                (copy, 0o555)
            }
            FileMode::File | FileMode::Symlink => (store.path(oid), 0o444),
        };
        match fs::hard_link(&object, target) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(path, oid)),
            // Another file system, or no links left: ext4 has 65,000 per file.
            Err(error) if needs_copy(&error) => copy(&object, target, bits),
            Err(error) => Err(io_error("link", target, error)),
        }
    }

    fn make_folders(&mut self, file: &Path) -> Result<(), CheckoutError> {
        if file.parent() == Some(&self.last) {
            return Ok(());
        }
        self.last = file.parent().unwrap_or(self.target).to_owned();
        let mut missing = Vec::new();
        let mut folder = file.parent();
        while let Some(path) = folder.filter(|path| !path.is_dir()) {
            missing.push(path.to_owned());
            folder = path.parent();
        }
        for path in missing.into_iter().rev() {
            fs::create_dir(&path).map_err(|e| io_error("create folder", &path, e))?;
            set_mode(&path, 0o755)?;
            self.folders.push(path);
        }
        Ok(())
    }

    /// Makes names durable; contents are.
    fn sync(&self) -> Result<(), CheckoutError> {
        let mut deepest_first = self.folders.iter().rev();
        deepest_first.try_for_each(|f| durable::sync_dir(f).map_err(|e| io_error("sync", f, e)))
    }
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), CheckoutError> {
    let act = || -> io::Result<()> {
        let mut source = File::open(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
        if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
            io::copy(&mut source, &mut target)?;
        }
        target.set_permissions(Permissions::from_mode(mode))?;
        target.sync_all()
    };
    act().map_err(|e| io_error("copy to", to, e))
}

pub(super) fn needs_copy(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::XDEV, Errno::MLINK, Errno::PERM, Errno::OPNOTSUPP];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), CheckoutError> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|e| io_error("set the mode of", path, e))
}

fn file_mode(executable: bool) -> FileMode {
    if executable {
        FileMode::Executable
    } else {
        FileMode::File
    }
}

fn missing(path: &str, oid: &Digest) -> CheckoutError {
    CheckoutError::MissingObject {
        path: path.to_owned(),
        oid: oid.clone(),
    }
}

pub(super) fn repo_error(error: RepoError) -> CheckoutError {
    CheckoutError::Tree(TreeError::Repo(error))
}
