//! A folder with the files of a branch or commit, to be changed.

use std::path::{Path, PathBuf};

use super::RepositoryHandle;
use crate::{RepoError, repo};

/// A worktree of a bare repository, as `git worktree add` makes one: its `.git` is a file that
/// names `BARE/worktrees/NAME`, where its `HEAD` and index lie. Stock git works in it.
#[derive(Clone, Debug)]
pub struct Worktree {
    repository: RepositoryHandle,
    path: PathBuf,
}

impl Worktree {
    /// The worktree at `path`, whose `.git` names a folder of `repository`.
    ///
    /// # Errors
    /// There is none, or it is of another repository.
    pub fn open(repository: &RepositoryHandle, path: &Path) -> Result<Self, RepoError> {
        let found = Self {
            repository: repository.clone(),
            path: path.to_owned(),
        };
        let common = found.repo()?.commondir().canonicalize();
        match (common, repository.path().canonicalize()) {
            (Ok(common), Ok(bare)) if common == bare => Ok(found),
            _ => Err(RepoError::OtherRepository {
                path: path.to_owned(),
                repository: repository.path().to_owned(),
            }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The repository that it is of.
    pub fn repository(&self) -> &RepositoryHandle {
        &self.repository
    }

    pub(crate) fn repo(&self) -> Result<git2::Repository, RepoError> {
        repo::open_worktree(&self.path)
    }
}
