//! A repository as its users work with it: a bare repository, the store of its large files, and
//! the folders in which its files can be changed.
//!
//! Every operation does what the `git` command of that name does, and stock git works on the same
//! repository and the same folders before, between and after.

mod error;
mod fetch;
mod fetch_options;
mod push;
mod push_error;
mod push_local;
mod push_ref;
mod refspec;
mod remotes;
mod update;
mod worktree;

use std::path::{Path, PathBuf};

pub use error::FetchError;
pub use fetch_options::{Depth, FetchOptions, Fetched, Tags};
pub use push::Pushed;
pub use push_error::PushError;
pub use push_ref::{Expected, PushRef};
pub use refspec::{InvalidRefspec, Refspec};
pub use remotes::Remote;
pub use update::Updated;
pub use worktree::Worktree;

use crate::{RepoError, manager, repo, store::ObjectStore};

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

    /// Open for one operation, and kept for the next by [`GitManager`](manager::GitManager).
    pub(crate) fn repo(&self) -> Result<manager::Opened, RepoError> {
        manager::open(&self.path)
    }
}
