//! Finding, listing and removing checkouts.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{Checkout, CheckoutError, CheckoutFile};
use crate::{durable, lock::FileLock};

/// Ending of the file that says that a checkout is complete, and what it holds.
const MARKER: &str = "complete";

/// The complete checkout `key` below `root`; `None` if there is none.
pub fn open(root: &Path, key: &str) -> Result<Option<Checkout>, CheckoutError> {
    let places = Places::new(root, key);
    let text = match fs::read(&places.marker) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &places.marker, error)),
    };
    if !places.folder.is_dir() {
        return Ok(None);
    }
    // A marker that cannot be read is one of another version: the checkout is made again.
    match serde_json::from_slice::<Vec<CheckoutFile>>(&text) {
        Ok(files) => Ok(Some(Checkout {
            path: places.folder,
            key: key.to_owned(),
            files,
        })),
        Err(error) => {
            tracing::warn!(marker = ?places.marker, %error, "not a marker of ours");
            Ok(None)
        }
    }
}

/// The keys of the complete checkouts below `root`, ordered.
pub fn list(root: &Path) -> Result<Vec<String>, CheckoutError> {
    let mut keys: Vec<String> = entries(&root.join("checkouts"))?
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == MARKER))
        .filter(|path| path.with_extension("").is_dir())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    keys.sort();
    Ok(keys)
}

/// Removes the checkout `key` below `root`: out of sight at once, then from the disk. Nothing to
/// do if there is none. The caller makes sure that nothing uses it.
pub fn remove(root: &Path, key: &str) -> Result<(), CheckoutError> {
    let places = Places::new(root, key);
    let lock = places.lock()?;
    let trash = places.discard()?;
    // With the lock held, so that a waiting caller makes another.
    fs::remove_file(&places.lock).map_err(|e| io_error("remove", &places.lock, e))?;
    drop(lock);
    match trash {
        Some(trash) => durable::remove_dir_all(&trash).map_err(|e| io_error("remove", &trash, e)),
        None => Ok(()),
    }
}

/// Removes what killed processes left below `root`: half checkouts, trash, and checkouts that
/// were not yet marked complete. Call it at start.
pub fn clean(root: &Path) -> Result<(), CheckoutError> {
    for path in entries(&root.join("trash"))? {
        durable::remove_dir_all(&path).map_err(|e| io_error("remove", &path, e))?;
    }
    for path in entries(&root.join("tmp"))? {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let places = Places::new(root, name.split('.').next().unwrap_or_default());
        // Held by another process that is building it.
        let Some(_lock) = places.try_lock()? else {
            continue;
        };
        let removed = if path.is_dir() {
            durable::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|e| io_error("remove", &path, e))?;
    }
    for path in entries(&root.join("checkouts"))? {
        let key = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let places = Places::new(root, &key);
        let Some(_lock) = places.try_lock()? else {
            continue;
        };
        if open(root, &key)?.is_none()
            && let Some(trash) = places.discard()?
        {
            durable::remove_dir_all(&trash).map_err(|e| io_error("remove", &trash, e))?;
        }
    }
    Ok(())
}

/// Where the parts of one checkout lie.
pub(super) struct Places {
    pub(super) root: PathBuf,
    pub(super) key: String,
    pub(super) folder: PathBuf,
    pub(super) marker: PathBuf,
    lock: PathBuf,
}

impl Places {
    pub(super) fn new(root: &Path, key: &str) -> Self {
        let checkouts = root.join("checkouts");
        Self {
            root: root.to_owned(),
            key: key.to_owned(),
            folder: checkouts.join(key),
            marker: checkouts.join(format!("{key}.{MARKER}")),
            lock: root.join("locks").join(key),
        }
    }

    /// Makes the folders and waits until nobody else builds or removes this checkout.
    pub(super) fn lock(&self) -> Result<FileLock, CheckoutError> {
        self.make_folders()?;
        FileLock::acquire(&self.lock, &|| false)
            .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::Interrupted.into()))
            .map_err(|e| io_error("lock", &self.lock, e))
    }

    fn try_lock(&self) -> Result<Option<FileLock>, CheckoutError> {
        self.make_folders()?;
        FileLock::try_acquire(&self.lock).map_err(|e| io_error("lock", &self.lock, e))
    }

    fn make_folders(&self) -> Result<(), CheckoutError> {
        for name in ["checkouts", "locks", "tmp", "trash"] {
            let path = self.root.join(name);
            durable::create_dir_all(&path).map_err(|e| io_error("create folder", &path, e))?;
        }
        Ok(())
    }

    /// Takes the checkout out of sight and says where it is now. The lock is held.
    pub(super) fn discard(&self) -> Result<Option<PathBuf>, CheckoutError> {
        match fs::remove_file(&self.marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &self.marker, error));
            }
            _ => {}
        }
        // The marker must be gone for good before the files go.
        let checkouts = self.root.join("checkouts");
        durable::sync_dir(&checkouts).map_err(|e| io_error("sync", &checkouts, e))?;
        let folder = self.root.join("trash");
        let trash = tempfile::Builder::new()
            .prefix(&format!("{}.", self.key))
            .tempdir_in(&folder)
            .map_err(|e| io_error("create folder in", &folder, e))?
            .keep();
        match fs::rename(&self.folder, trash.join("checkout")) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::remove_dir(&trash).map_err(|e| io_error("remove", &trash, e))?;
                Ok(None)
            }
            Err(error) => Err(io_error("rename", &self.folder, error)),
        }
    }
}

/// Renames what was built into its place and marks it complete.
pub(super) fn publish(
    places: &Places,
    building: tempfile::TempDir,
    files: &[CheckoutFile],
) -> Result<(), CheckoutError> {
    // One that was renamed by a process that was killed before it marked it.
    if let Some(trash) = places.discard()? {
        durable::remove_dir_all(&trash).map_err(|e| io_error("remove", &trash, e))?;
    }
    let checkouts = places.root.join("checkouts");
    let sync = || durable::sync_dir(&checkouts).map_err(|e| io_error("sync", &checkouts, e));
    fs::rename(building.path(), &places.folder)
        .map_err(|e| io_error("rename to", &places.folder, e))?;
    // It has moved: there is nothing left to remove.
    let _ = building.keep();
    sync()?;
    let tmp = places.root.join("tmp");
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(&format!("{}.", places.key))
            .tempfile_in(&tmp)?;
        file.write_all(&serde_json::to_vec(files)?)?;
        file.as_file().sync_all()?;
        file.persist(&places.marker).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|e| io_error("write", &places.marker, e))?;
    sync()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, CheckoutError> {
    let failed = |e| io_error("list", folder, e);
    match fs::read_dir(folder) {
        Ok(list) => list
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn io_error(act: &'static str, path: &Path, source: io::Error) -> CheckoutError {
    let path = path.to_owned();
    if durable::is_full(&source) {
        CheckoutError::DiskFull { path }
    } else {
        CheckoutError::Io { act, path, source }
    }
}
