//! Working in a worktree.

mod advance;
mod commit;
mod error;
mod files;
mod fill;
mod ignore;
mod large;
mod odd;
mod stage;
mod status;
mod switch;
mod untracked;

use std::path::{Component, Path, PathBuf};

use git2::{ErrorClass, ErrorCode, Index, Repository, RepositoryState};

pub use error::WorktreeError;
pub(in crate::handle) use large::pointer_of;
pub use status::{Change, Conflict, FileStatus, State, StatusOptions};
pub use switch::{Reset, Target};

use super::Worktree;
use crate::{filter, repo};

/// Paths that an error names at the most.
const NAMED_PATHS: usize = 20;

impl Worktree {
    /// The repository of this worktree with its index, to change both.
    fn opened(&self) -> Result<(Repository, Index), WorktreeError> {
        let repo = self.repo().map_err(WorktreeError::Repo)?;
        let index = repo.index().map_err(|e| self.fail(e))?;
        Ok((repo, index))
    }

    /// Refuses while files are in conflict, or stock git is in the middle of something.
    pub(super) fn refuse_unfinished(
        &self,
        repo: &Repository,
        index: &Index,
    ) -> Result<(), WorktreeError> {
        let open = self.conflicts(index)?;
        if !open.is_empty() {
            let paths = open.into_iter().map(|file| file.path).collect();
            return Err(stage::conflicted(paths));
        }
        if repo.state() != RepositoryState::Clean {
            return Err(WorktreeError::Unfinished {
                worktree: self.path().to_owned(),
            });
        }
        Ok(())
    }

    /// What an error of libgit2 means here. Called at once, on the thread that got it: why a
    /// filter failed is kept by the thread.
    pub(super) fn fail(&self, error: git2::Error) -> WorktreeError {
        if let Some(failure) = filter::take_failure() {
            return WorktreeError::Store(failure);
        }
        let is_index = error.class() == ErrorClass::Index || error.class() == ErrorClass::Os;
        if error.code() == ErrorCode::Locked && is_index {
            return WorktreeError::Locked {
                worktree: self.path().to_owned(),
            };
        }
        WorktreeError::Repo(repo::access(self.path())(error))
    }

    /// Where a file lies, given as it stands in git.
    fn place(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }
}

/// Whether `path` is `wanted` or lies below it.
fn is_within(path: &str, wanted: &str) -> bool {
    let wanted = wanted.trim_end_matches('/');
    wanted.is_empty()
        || wanted == "."
        || path
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A path that a caller gave, as git writes it; `None` if it leads out of the worktree.
fn normal(path: &str) -> Option<&str> {
    let path = path.trim_end_matches('/');
    if path == "." {
        return Some("");
    }
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    (inside && !path.contains("//") && !path.contains("/./")).then_some(path)
}

fn named(mut paths: Vec<String>) -> Vec<String> {
    paths.sort();
    paths.dedup();
    paths.truncate(NAMED_PATHS);
    paths
}

fn io_error(act: &'static str, path: &Path, source: std::io::Error) -> WorktreeError {
    WorktreeError::Io {
        act,
        path: path.to_owned(),
        source,
    }
}
