//! Removing worktrees, and what is left of them.

use std::{collections::HashSet, fs, path::Path};

use git2::StatusOptions;

use super::{
    State, Worktrees, WorktreesError, index::SKIP_WORKTREE, io_error, names, record::Record, shared,
};
use crate::{
    checkout, durable,
    storage::{StorageError, mount},
};

/// What [`Worktrees::prune`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Worktrees whose files are gone, or that were never completed.
    pub worktrees: Vec<String>,
    /// Checkouts that no worktree shows.
    pub checkouts: Vec<String>,
}

impl Worktrees<'_> {
    /// Removes a worktree and all that is in it. Its branch stays.
    ///
    /// Without `force` it must have no changes and no files that git does not know, ignored ones
    /// apart; its files are shown for that if a reboot took their mount. A locked one stays even so.
    ///
    /// # Errors
    /// See above; or a process works in it.
    pub fn remove(&self, name: &str, force: bool) -> Result<(), WorktreesError> {
        let _held = self.hold()?;
        let info = self.info(name)?;
        if let Some(reason) = info.locked {
            let name = name.to_owned();
            return Err(WorktreesError::Locked { name, reason });
        }
        let record = self.record(name)?;
        if !force && info.state != State::Missing {
            if let Some(record) = &record {
                self.with_view(name, record, |driver, view| driver.show(view))?;
            }
            self.check_committed(name)?;
        }
        if let Some(record) = record {
            return self.discard(name, &record);
        }
        // Stock git's.
        if info.state == State::Present {
            self.check_its_own(name, &info.path)?;
        }
        durable::remove_dir_all(&info.path).map_err(|e| io_error("remove", &info.path, e))?;
        self.forget(name)
    }

    /// Forgets worktrees whose files are gone and that nobody locked; removes those that a killed
    /// process left half made or half removed, and checkouts that no worktree shows any more.
    ///
    /// A worktree whose mount a reboot took is not gone. What stock git forgot by force of a
    /// worktree of ours is removed too, unless `fuse-overlayfs` may show it.
    ///
    /// # Errors
    /// Something cannot be read or removed.
    pub fn prune(&self) -> Result<Pruned, WorktreesError> {
        let _held = self.hold()?;
        let mut pruned = Pruned::default();
        for info in self.list()? {
            if info.state != State::Missing {
                continue;
            }
            match self.record(&info.name)? {
                Some(record) if !record.complete => self.discard(&info.name, &record)?,
                _ if info.locked.is_some() => continue,
                Some(record) => self.discard(&info.name, &record)?,
                None => self.forget(&info.name)?,
            }
            pruned.worktrees.push(info.name);
        }
        self.remove_orphans()?;
        pruned.checkouts = self.remove_checkouts()?;
        shared::prune(&self.home())?;
        Ok(pruned)
    }

    /// Removes the files of a worktree of ours, and then what is known of it. What is half done is
    /// found by `prune`.
    pub(super) fn discard(&self, name: &str, record: &Record) -> Result<(), WorktreesError> {
        if self.admin(name).is_dir() {
            let complete = false;
            let record = Record {
                complete,
                ..record.clone()
            };
            // Not before it is known to be free: one that is in use stays whole.
            self.with_view(name, &record, |driver, view| driver.hide(view))?;
            record.write(&self.admin(name))?;
        }
        match self.with_view(name, record, |driver, view| driver.remove(view)) {
            Err(WorktreesError::Storage(StorageError::Occupied { target })) => {
                tracing::warn!(
                    name,
                    ?target,
                    "what is at the worktree's path is not ours and stays"
                );
            }
            other => other?,
        }
        self.forget(name)
    }

    fn forget(&self, name: &str) -> Result<(), WorktreesError> {
        let admin = self.admin(name);
        durable::remove_dir_all(&admin).map_err(|e| io_error("remove", &admin, e))
    }

    /// Whether a folder says that it is the worktree: what a wrong `gitdir` names is not removed.
    fn check_its_own(&self, name: &str, path: &Path) -> Result<(), WorktreesError> {
        let text = fs::read_to_string(path.join(".git")).unwrap_or_default();
        let named = text.trim().strip_prefix("gitdir: ");
        let named = named.and_then(|named| path.join(named).canonicalize().ok());
        if named.is_some() && named == self.admin(name).canonicalize().ok() {
            return Ok(());
        }
        let path = path.to_owned();
        let why = "its .git does not name this worktree, so that it may be another's";
        Err(WorktreesError::BadPath { path, why })
    }

    fn check_committed(&self, name: &str) -> Result<(), WorktreesError> {
        let worktree = self.open(name)?;
        let repo = worktree.repo().map_err(WorktreesError::Repo)?;
        let mut options = StatusOptions::new();
        options.include_untracked(true).include_ignored(false);
        let index = repo.index().map_err(|e| self.access(e))?;
        let statuses = repo
            .statuses(Some(&mut options))
            .map_err(|e| self.access(e))?;
        let left_out = |path: &[u8]| {
            let found = std::str::from_utf8(path).ok();
            found
                .and_then(|path| index.get_path(path.as_ref(), 0))
                .is_some_and(|entry| entry.flags_extended & SKIP_WORKTREE != 0)
        };
        let changed = statuses.iter().find(|entry| {
            let only_missing = entry.status() == git2::Status::WT_DELETED;
            !(only_missing && left_out(entry.path_bytes()))
        });
        match changed {
            None => Ok(()),
            Some(entry) => Err(WorktreesError::Uncommitted {
                name: name.to_owned(),
                example: String::from_utf8_lossy(entry.path_bytes()).into_owned(),
            }),
        }
    }

    /// What was written to worktrees that git does not know any more.
    fn remove_orphans(&self) -> Result<(), WorktreesError> {
        let mounts = mount::list().map_err(|e| io_error("list mounts for", &self.home(), e))?;
        let unknown = mounts.iter().any(|m| m.kind == "fuse.fuse-overlayfs");
        for name in names(&self.home().join("views"))? {
            if self.admin(&name).exists() || unknown {
                continue;
            }
            let private = self.private(&name);
            let canonical = private
                .canonicalize()
                .map_err(|e| io_error("find", &private, e))?;
            let upper = canonical.join("upper");
            let shows = |m: &&mount::Mounted| m.kind == "overlay" && m.folders.contains(&upper);
            for mounted in mounts.iter().filter(shows) {
                mount::unmount(&mounted.path, false)
                    .map_err(|e| io_error("unmount", &mounted.path, e))?;
            }
            durable::remove_dir_all(&private).map_err(|e| io_error("remove", &private, e))?;
        }
        Ok(())
    }

    fn remove_checkouts(&self) -> Result<Vec<String>, WorktreesError> {
        let home = self.home();
        let mut used = HashSet::new();
        for name in names(&self.folder())? {
            used.extend(self.record(&name)?.map(|record| record.checkout));
        }
        let keys = checkout::list(&home).map_err(WorktreesError::Checkout)?;
        let unused: Vec<String> = keys.into_iter().filter(|key| !used.contains(key)).collect();
        for key in &unused {
            checkout::remove(&home, key).map_err(WorktreesError::Checkout)?;
        }
        let indexes = home.join("indexes");
        for name in names(&indexes)? {
            if !used.contains(name.split('.').next().unwrap_or_default()) {
                let path = indexes.join(name);
                fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
            }
        }
        Ok(unused)
    }
}
