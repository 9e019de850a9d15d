//! Files of a worktree that git does not know.

use std::{
    fs,
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use git2::{Index, Repository, RepositoryOpenFlags};

use super::{WorktreeError, ignore::Ignore, io_error, odd};
use crate::Worktree;

/// What the index has at the place of a repository within the worktree.
const GITLINK: u32 = 0o160_000;

/// Files that git does not know, one by one. A repository within the worktree is one of them, and
/// its path ends with a slash.
#[derive(Default)]
pub(super) struct Others {
    /// Those that no rule ignores.
    pub(super) untracked: Vec<Vec<u8>>,
    /// Those that are ignored, if they were asked for.
    pub(super) ignored: Vec<Vec<u8>>,
}

impl Worktree {
    /// The files that the index does not have.
    pub(super) fn others(
        &self,
        repo: &Repository,
        index: &Index,
        with_ignored: bool,
    ) -> Result<Others, WorktreeError> {
        let mut tracked: Vec<_> = index.iter().map(|entry| (entry.path, entry.mode)).collect();
        tracked.sort();
        let mut walk = Walk {
            worktree: self,
            ignore: Ignore::of(self.path(), repo, index).map_err(|e| self.fail(e))?,
            tracked,
            with_ignored,
            found: Others::default(),
        };
        walk.folder(b"", false)?;
        Ok(walk.found)
    }
}

struct Walk<'a> {
    worktree: &'a Worktree,
    ignore: Ignore<'a>,
    /// What the index has, with modes, ordered.
    tracked: Vec<(Vec<u8>, u32)>,
    with_ignored: bool,
    found: Others,
}

impl Walk<'_> {
    /// Looks at the entries of a folder, whose path is empty or ends with a slash.
    fn folder(&mut self, folder: &[u8], is_ignored: bool) -> Result<(), WorktreeError> {
        let place = self.place(folder);
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            // Gone meanwhile, or not ours to read, which git leaves out, too.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                tracing::warn!(?place, "a folder may not be read");
                return Ok(());
            }
            Err(error) => return Err(io_error("read", &place, error)),
        };
        if !is_ignored {
            let entered = self.ignore.enter(folder);
            entered.map_err(|e| self.worktree.fail(e))?;
        }
        for entry in entries {
            let entry = entry.map_err(|e| io_error("read", &place, e))?;
            if entry.file_name() == ".git" {
                continue;
            }
            let kind = entry.file_type();
            let kind = kind.map_err(|e| io_error("read", &entry.path(), e))?;
            let mut path = [folder, entry.file_name().as_bytes()].concat();
            let is_ignored = is_ignored || self.ignore.is_ignored(&path, kind.is_dir());
            if kind.is_file() || kind.is_symlink() {
                if self.mode(&path).is_none() {
                    self.note(path, is_ignored);
                }
            } else if kind.is_dir() && self.mode(&path) != Some(GITLINK) {
                path.push(b'/');
                if !self.has_below(&path) && is_repository(&entry.path()) {
                    self.note(path, is_ignored);
                } else if !is_ignored || self.with_ignored {
                    self.folder(&path, is_ignored)?;
                }
            }
        }
        if !is_ignored {
            self.ignore.leave();
        }
        Ok(())
    }

    fn note(&mut self, path: Vec<u8>, is_ignored: bool) {
        if !is_ignored {
            self.found.untracked.push(path);
        } else if self.with_ignored {
            self.found.ignored.push(path);
        }
    }

    fn mode(&self, path: &[u8]) -> Option<u32> {
        let at = self
            .tracked
            .partition_point(|(known, _)| known.as_slice() < path);
        let (known, mode) = self.tracked.get(at)?;
        (known == path).then_some(*mode)
    }

    /// Whether the index has something below a folder.
    fn has_below(&self, folder: &[u8]) -> bool {
        let at = self
            .tracked
            .partition_point(|(known, _)| known.as_slice() < folder);
        let next = self.tracked.get(at);
        next.is_some_and(|(known, _)| known.starts_with(folder))
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.worktree.path().join(odd::path(path))
    }
}

fn is_repository(folder: &Path) -> bool {
    let none: [&Path; 0] = [];
    fs::symlink_metadata(folder.join(".git")).is_ok()
        && Repository::open_ext(folder, RepositoryOpenFlags::NO_SEARCH, none).is_ok()
}
