//! The worktrees of a repository: made by a storage driver in milliseconds, and stock git's own.
//!
//! Below the bare repository lie
//!
//! | Path | Content |
//! |---|---|
//! | `worktrees/NAME/` | what stock git keeps of a worktree, and `hyprstream.json` |
//! | `hyprstream/checkouts/<key>/` | the immutable files that worktrees show |
//! | `hyprstream/views/NAME/` | what was written to a worktree that is a mount |
//! | `hyprstream/indexes/` | the first index of a checkout, which its worktrees share by hard links |
//! | `hyprstream/shared/` | small files of git's that worktrees share by hard links |
//!
//! What was written is not below `worktrees/`, of which `git worktree prune` removes what seems to
//! be gone; a worktree that is a mount is locked besides, as git wants it of what comes and goes.
//! Whoever changes worktrees holds a lock on `worktrees/`, in any process.

mod add;
mod check;
mod error;
mod index;
mod list;
mod record;
mod remove;
mod shared;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use add::{Add, Start};
pub use error::WorktreesError;
use error::io_error;
pub use list::{Head, Info, State};
use record::Record;
pub use remove::Pruned;

use super::{RepositoryHandle, Worktree};
use crate::{durable, lock::FileLock, storage};

/// The worktrees of a repository.
#[derive(Clone, Debug)]
pub struct Worktrees<'a> {
    repository: &'a RepositoryHandle,
}

/// Why a worktree that is a mount is locked, for those who run `git worktree list`.
const MOUNTED: &str = "a mount of hyprstream, which removes it and shows it again";

/// How it went for one of [`Worktrees::mount_all`]: its name, and the worktree.
pub type Mounted = (String, Result<Worktree, WorktreesError>);

impl RepositoryHandle {
    /// Its worktrees.
    pub fn worktrees(&self) -> Worktrees<'_> {
        Worktrees { repository: self }
    }
}

impl Worktrees<'_> {
    /// The worktree of that name.
    ///
    /// # Errors
    /// There is none, or its files are not there: see [`Self::mount`].
    pub fn open(&self, name: &str) -> Result<Worktree, WorktreesError> {
        let info = self.info(name)?;
        match info.state {
            State::Present => {
                Worktree::open(self.repository, &info.path).map_err(WorktreesError::Repo)
            }
            State::Hidden | State::Missing => Err(WorktreesError::NotThere {
                name: name.to_owned(),
                path: info.path,
            }),
        }
    }

    /// Keeps [`Self::remove`], [`Self::prune`] and stock git from removing the worktree.
    ///
    /// # Errors
    /// There is none of that name, or it is locked.
    pub fn lock(&self, name: &str, reason: &str) -> Result<(), WorktreesError> {
        let _held = self.hold()?;
        if let Some(reason) = self.info(name)?.locked {
            let name = name.to_owned();
            return Err(WorktreesError::Locked { name, reason });
        }
        self.write_lock(name, reason)
    }

    /// Undoes [`Self::lock`]. Nothing is done for one that is not locked.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn unlock(&self, name: &str) -> Result<(), WorktreesError> {
        let _held = self.hold()?;
        let info = self.info(name)?;
        if info
            .driver
            .is_some_and(|kind| storage::driver(kind).is_mount())
        {
            return self.write_lock(name, MOUNTED);
        }
        let path = self.admin(name).join("locked");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Shows the files of a worktree again whose mount a reboot took, with all that was written.
    /// Nothing is done for one whose files are there.
    ///
    /// # Errors
    /// There is none of that name, or it cannot be mounted.
    pub fn mount(&self, name: &str) -> Result<Worktree, WorktreesError> {
        let _held = self.hold()?;
        self.info(name)?;
        if let Some(record) = self.record(name)? {
            self.with_view(name, &record, |driver, view| driver.show(view))?;
        }
        self.open(name)
    }

    /// Does [`Self::mount`] for all that are not there, and returns how it went for each.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn mount_all(&self) -> Result<Vec<Mounted>, WorktreesError> {
        let all = self.list()?.into_iter();
        Ok(all
            .filter(|info| info.state == State::Hidden)
            .map(|info| {
                let result = self.mount(&info.name);
                (info.name, result)
            })
            .collect())
    }

    fn write_lock(&self, name: &str, reason: &str) -> Result<(), WorktreesError> {
        record::replace(&self.admin(name).join("locked"), reason.as_bytes(), false)
    }

    /// Waits until nobody else changes worktrees.
    fn hold(&self) -> Result<FileLock, WorktreesError> {
        let folder = self.folder();
        durable::create_dir_all(&folder)
            .and_then(|()| FileLock::hold(&folder))
            .map_err(|e| io_error("lock", &folder, e))
    }

    /// Calls the driver of a worktree with its view.
    fn with_view<T>(
        &self,
        name: &str,
        record: &Record,
        act: impl FnOnce(&dyn storage::Driver, &storage::View<'_>) -> Result<T, storage::StorageError>,
    ) -> Result<T, WorktreesError> {
        let base = self.home().join("checkouts").join(&record.checkout);
        let view = storage::View {
            base: &base,
            private: &self.private(name),
            target: &record.path,
            writable: true,
        };
        act(&*storage::driver(record.driver), &view).map_err(WorktreesError::Storage)
    }

    fn record(&self, name: &str) -> Result<Option<Record>, WorktreesError> {
        Record::read(&self.admin(name))
    }

    fn folder(&self) -> PathBuf {
        self.repository.path().join("worktrees")
    }

    fn admin(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// What is ours and not stock git's. Without links, as mountinfo shows it.
    fn home(&self) -> PathBuf {
        let bare = self.repository.path();
        let bare = bare.canonicalize().unwrap_or_else(|_| bare.to_owned());
        bare.join("hyprstream")
    }

    fn private(&self, name: &str) -> PathBuf {
        self.home().join("views").join(name)
    }
}

fn names(folder: &Path) -> Result<Vec<String>, WorktreesError> {
    let failed = |e| io_error("list", folder, e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is not UTF-8 is none that git or we gave.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}
