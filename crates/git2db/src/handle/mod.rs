//! A repository as its users work with it: a bare repository, the store of its large files, and
//! the folders in which its files can be changed.
//!
//! Every operation does what the `git` command of that name does, and stock git works on the same
//! repository and the same folders before, between and after.

mod worktree;
mod worktrees;

use std::path::{Path, PathBuf};

pub use worktree::Worktree;
pub use worktrees::{Add, Head, Info, Mounted, Pruned, Start, State, WorktreeError, Worktrees};

use crate::{RepoError, repo, store::ObjectStore};

/// A bare repository and the store of its large files. Cheap to clone; every call opens what it
/// needs, so that threads may share it.
#[derive(Clone, Debug)]
pub struct RepositoryHandle {
    path: PathBuf,
    store: ObjectStore,
}

impl RepositoryHandle {
    /// The bare repository at `path`.
    ///
    /// # Errors
    /// There is none, it belongs to somebody else, or cannot be read.
    pub fn open(path: &Path, store: ObjectStore) -> Result<Self, RepoError> {
        repo::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            store,
        })
    }

    /// The bare repository at `path`, made as by [`repo::init_bare`] if there is none.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn init(path: &Path, store: ObjectStore) -> Result<Self, RepoError> {
        repo::init_bare(path)?;
        Self::open(path, store)
    }

    /// The bare repository's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store of large files. Several repositories may share it.
    pub fn store(&self) -> &ObjectStore {
        &self.store
    }

    pub(crate) fn repo(&self) -> Result<git2::Repository, RepoError> {
        repo::open(&self.path)
    }
}
