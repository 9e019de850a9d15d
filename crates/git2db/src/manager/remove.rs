//! Repositories that go, and what killed processes left.

use std::{
    collections::HashSet,
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{Git2DB, Locked, ManagerError, Name, add::worktrees, pool};
use crate::{durable, lock::FileLock};

/// How long a clone that was broken off is kept to be continued.
const KEEP_CLONES: Duration = Duration::from_hours(7 * 24);

impl Git2DB {
    /// Takes a repository off the list and deletes it, unless it is only referenced. Objects in
    /// the store stay until [`ObjectStore::gc`](crate::store::ObjectStore::gc).
    ///
    /// # Errors
    /// There is none of that name; `InUse` while something is fetched into it, or while worktrees
    /// of it are checked out. If its bytes cannot be deleted it is off the list, and they go with
    /// the next [`Git2DB::open`].
    pub fn remove(&self, name: &Name) -> Result<(), ManagerError> {
        let mut locked = self.locked()?;
        let in_use = |why: String| ManagerError::InUse {
            name: name.clone(),
            why,
        };
        let entry = locked.entry(name)?.clone();
        if entry.at.is_some() {
            locked.all_mut().retain(|other| other.id != entry.id);
            return locked.write(&self.root);
        }
        let path = self.own_path(&entry.id);
        let lock_path = path.join("hyprstream.lock");
        // Without the folder there is nothing that could be in use.
        let _fetching = match FileLock::try_acquire(&lock_path) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Err(in_use("something is being fetched into it".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(ManagerError::io("lock", &lock_path, error)),
        };
        if let Some(folder) = worktrees(&path)?.first() {
            return Err(in_use(format!("{} is a worktree of it", folder.display())));
        }
        // Invariant: what the list does not name is swept, so that a kill from here on removes it.
        locked.all_mut().retain(|other| other.id != entry.id);
        locked.write(&self.root)?;
        self.sweep(&locked)?;
        drop(locked);
        self.empty_trash()
    }

    /// Finishes what a killed process began: moves, and removals. The caller holds the lock.
    pub(super) fn recover(&self, locked: &mut Locked) -> Result<(), ManagerError> {
        if locked.all().iter().any(|entry| entry.moving) {
            let root = self.root.clone();
            let there = |id: &str| root.join("repositories").join(format!("{id}.git")).exists();
            locked
                .all_mut()
                .retain(|entry| !entry.moving || there(&entry.id));
            for entry in locked.all_mut() {
                entry.moving = false;
            }
            locked.write(&self.root)?;
        }
        self.sweep(locked)?;
        self.sweep_clones()
    }

    /// Moves what no entry names out of the folder of repositories.
    fn sweep(&self, locked: &Locked) -> Result<(), ManagerError> {
        let kept: HashSet<_> = locked
            .all()
            .iter()
            .map(|e| format!("{}.git", e.id))
            .collect();
        let folder = self.root.join("repositories");
        for entry in read_dir(&folder)? {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| kept.contains(name)) {
                continue;
            }
            self.throw_away(&entry.path())?;
        }
        Ok(())
    }

    /// Clones and new repositories that nobody continued for a week.
    fn sweep_clones(&self) -> Result<(), ManagerError> {
        for entry in read_dir(&self.root.join("clones"))? {
            let path = entry.path();
            let age = entry
                .metadata()
                .and_then(|found| found.modified())
                .ok()
                .and_then(|when| SystemTime::now().duration_since(when).ok());
            if !path.is_dir() || age.is_none_or(|age| age < KEEP_CLONES) {
                continue;
            }
            let lock = path.with_extension("lock");
            let held =
                FileLock::try_acquire(&lock).map_err(|e| ManagerError::io("lock", &lock, e))?;
            if held.is_some() {
                self.throw_away(&path)?;
                fs::remove_file(&lock).map_err(|e| ManagerError::io("remove", &lock, e))?;
            }
        }
        Ok(())
    }

    pub(crate) fn throw_away(&self, path: &Path) -> Result<(), ManagerError> {
        pool::forget(path);
        let trash = self.root.join("trash");
        let name = path.file_name().unwrap_or_default();
        let moved = fs::rename(path, trash.join(name)).and_then(|()| {
            durable::sync_dir(&trash)?;
            path.parent().map_or(Ok(()), durable::sync_dir)
        });
        moved.map_err(|e| ManagerError::io("move", path, e))
    }

    /// Deletes what lies in the trash. Others may do the same.
    pub(super) fn empty_trash(&self) -> Result<(), ManagerError> {
        for entry in read_dir(&self.root.join("trash"))? {
            let path = entry.path();
            // Another that deletes the same makes files vanish under us.
            while path.exists() {
                match durable::remove_dir_all(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                    Err(error) => return Err(ManagerError::io("remove", &path, error)),
                }
            }
        }
        Ok(())
    }
}

fn read_dir(folder: &Path) -> Result<Vec<fs::DirEntry>, ManagerError> {
    fs::read_dir(folder)
        .and_then(Iterator::collect)
        .map_err(|e| ManagerError::io("read", folder, e))
}
