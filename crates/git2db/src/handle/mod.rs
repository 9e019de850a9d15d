//! A repository as its users work with it: a bare repository, the store of its large files, and
//! the folders in which its files can be changed.
//!
//! Every operation does what the `git` command of that name does, and stock git works on the same
//! repository and the same folders before, between and after.
//!
//! # Example
//!
//! A model is changed on a branch and merged, in a repository without a worktree:
//!
//! ```
//! use hyprstream_git2db::{
//!     RepositoryHandle, commit,
//!     handle::{LogRange, Merge, Merged},
//!     store::ObjectStore,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let store = ObjectStore::open(&dir.path().join("store"))?;
//! let model = RepositoryHandle::init(&dir.path().join("model.git"), store)?;
//! let author = commit::Author { name: "A".to_owned(), email: "a@example.org".to_owned() };
//!
//! let put = |path: &str, text: &str| commit::Change::Put {
//!     path: path.to_owned(),
//!     content: commit::Content::Bytes(text.as_bytes().to_vec()),
//!     executable: false,
//! };
//! let files = [put(".gitattributes", "*.safetensors filter=lfs\n"), put("config.json", "{}")];
//! let staged = commit::stage(model.path(), None, &files, model.store())?;
//! let first = commit::commit(model.path(), "main", &staged, &author, "Add a model")?;
//!
//! model.create_branch("tuned", &first, false)?;
//! let files = [put("model.safetensors", "weights")];
//! let staged = commit::stage(model.path(), Some(&first), &files, model.store())?;
//! let said = commit::Metadata::new(author, "Tune").with_trailer("Reviewed-by", "B <b@example.org>");
//! let tuned = commit::commit_with(model.path(), "tuned", &staged, &said)?;
//!
//! assert_eq!(model.merge("main", &tuned, &Merge::new(said))?, Merged::FastForward(tuned.clone()));
//! let range = LogRange { from: vec![tuned.clone()], ..LogRange::default() };
//! let subjects = model.log(&range)?.map(|c| Ok(c?.subject().to_owned()));
//! let subjects: Vec<String> = subjects.collect::<Result<_, hyprstream_git2db::handle::HistoryError>>()?;
//! assert_eq!(subjects, ["Tune", "Add a model"]);
//! // Sizes are those of contents, not of pointers.
//! let changed = model.diff(Some(&first), Some(&tuned), None)?;
//! assert_eq!(changed[0].after.as_ref().map(|file| file.bytes), Some(7));
//! # Ok(())
//! # }
//! ```

mod error;
mod fetch;
mod fetch_options;
mod history;
mod merge;
mod push;
mod push_error;
mod push_local;
mod push_ref;
mod refs;
mod refspec;
mod remotes;
mod update;
mod work;
mod worktree;
pub mod worktrees;

use std::path::{Path, PathBuf};

pub use error::FetchError;
pub use fetch_options::{Depth, FetchOptions, Fetched, Tags};
pub use history::{
    CommitInfo, Difference, DifferenceKind, FileContent, FileReader, FileVersion, HistoryError,
    Log, LogRange, Signer,
};
pub use merge::{ConflictedFile, FastForward, Merge, MergeError, Merged, Version};
pub use push::Pushed;
pub use push_error::PushError;
pub use push_ref::{Expected, PushRef};
pub use refs::{Annotation, Branch, RefError, Tag, Upstream};
pub use refspec::{InvalidRefspec, Refspec};
pub use remotes::Remote;
pub use update::Updated;
pub use work::{Change, Conflict, FileStatus, Reset, State, StatusOptions, Target, WorktreeError};
pub use worktree::Worktree;

use crate::{RepoError, filter, manager, repo, store::ObjectStore};

/// A bare repository and the store of its large files. Cheap to clone; every call opens what it
/// needs, so that threads may share it.
#[derive(Clone, Debug)]
pub struct RepositoryHandle {
    path: PathBuf,
    store: ObjectStore,
}

impl RepositoryHandle {
    /// The bare repository at `path`, whose large files lie in `store`. That holds for the whole
    /// process, and for worktrees of it that libgit2 opens in other ways too; of several stores,
    /// the last one given.
    ///
    /// # Errors
    /// There is none, it belongs to somebody else, or cannot be read.
    pub fn open(path: &Path, store: ObjectStore) -> Result<Self, RepoError> {
        let found = repo::open(path)?;
        filter::serve(found.commondir(), &store);
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
