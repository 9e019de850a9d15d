//! Finding worktrees.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{MOUNTED, Worktrees, WorktreesError, io_error, names};
use crate::{CommitId, storage::Kind};

/// A worktree, of ours or of stock git's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its name below `worktrees/`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it has checked out; `None` if that cannot be read.
    pub head: Option<Head>,
    /// Why it is locked, if somebody locked it.
    pub locked: Option<String>,
    /// Whether its files are there.
    pub state: State,
    /// The driver that made it; `None` for one of stock git's.
    pub driver: Option<Kind>,
}

/// What a worktree has checked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// A branch, without `refs/heads/`.
    Branch(String),
    /// A commit.
    Detached(CommitId),
}

/// Whether the files of a worktree are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They are.
    Present,
    /// A reboot took the mount: [`Worktrees::mount`] brings them back.
    Hidden,
    /// Its folder is gone, or it was never completed: [`Worktrees::prune`] forgets it.
    Missing,
}

impl Worktrees<'_> {
    /// All worktrees, by name. One that cannot be read hides none of the others.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Info>, WorktreesError> {
        let mut found = Vec::new();
        for name in names(&self.folder())? {
            match self.info(&name) {
                Ok(info) => found.push(info),
                Err(error) => {
                    tracing::warn!(
                        name,
                        error = &error as &dyn std::error::Error,
                        "not a worktree"
                    );
                }
            }
        }
        Ok(found)
    }

    /// The worktree of that name.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn info(&self, name: &str) -> Result<Info, WorktreesError> {
        let not_found = || WorktreesError::NotFound {
            name: name.to_owned(),
        };
        let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
        let admin = self.admin(name);
        let record = if is_name { self.record(name)? } else { None };
        let path = if is_name { self.path(name)? } else { None };
        let path = path.or_else(|| record.as_ref().map(|record| record.path.clone()));
        let path = path.ok_or_else(not_found)?;
        let is_there = fs::symlink_metadata(path.join(".git")).is_ok();
        let state = match &record {
            Some(record) if !record.complete => State::Missing,
            Some(record) if !is_there => {
                if self.with_view(name, record, |driver, _| Ok(driver.is_mount()))? {
                    State::Hidden
                } else {
                    State::Missing
                }
            }
            _ if is_there => State::Present,
            _ => State::Missing,
        };
        let locked = text(&admin.join("locked"))?.filter(|reason| reason != MOUNTED);
        Ok(Info {
            name: name.to_owned(),
            path,
            head: self.head(name)?,
            locked,
            state,
            driver: record.map(|record| record.driver),
        })
    }

    /// Where a worktree is, as stock git has it; `None` if it has none of that name.
    pub(super) fn path(&self, name: &str) -> Result<Option<PathBuf>, WorktreesError> {
        let admin = self.admin(name);
        let dot_git = text(&admin.join("gitdir"))?;
        Ok(dot_git.map(|dot_git| {
            let mut path = PathBuf::from(dot_git);
            path.pop();
            // As git makes it where `worktree.useRelativePaths` is set.
            if path.is_relative() {
                path = admin.join(&path).canonicalize().unwrap_or(path);
            }
            path
        }))
    }

    /// What a worktree has checked out; `None` if that cannot be read.
    pub(super) fn head(&self, name: &str) -> Result<Option<Head>, WorktreesError> {
        let head = text(&self.admin(name).join("HEAD"))?;
        Ok(head.as_deref().and_then(parse_head))
    }
}

fn parse_head(text: &str) -> Option<Head> {
    match text.strip_prefix("ref: refs/heads/") {
        Some(branch) => Some(Head::Branch(branch.to_owned())),
        None => text.parse().ok().map(Head::Detached),
    }
}

/// The trimmed text of a file; `None` if it is not there.
fn text(path: &Path) -> Result<Option<String>, WorktreesError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(io_error("read", path, error)),
    }
}
