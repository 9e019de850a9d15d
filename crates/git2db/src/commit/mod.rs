//! Making commits and pushing them.

mod error;

use std::path::{Path, PathBuf};

pub use error::CommitError;

use crate::{
    CommitId, Credentials, Observer, RemoteUrl,
    lfs::{Pointer, Transfer},
    store::ObjectStore,
};

/// One change to the files of a commit.
#[derive(Clone, Debug)]
pub enum Change {
    /// Puts a file at a path, over what lies there.
    Put {
        /// Path below the root.
        path: String,
        /// Its content.
        content: Content,
        /// Whether it may be executed.
        executable: bool,
    },
    /// Takes the file at a path away.
    Remove {
        /// Path below the root.
        path: String,
    },
}

/// Content of a file to commit.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The content of a file on this machine; read while staging.
    File(PathBuf),
}

/// Who makes a commit.
#[derive(Clone, Debug)]
pub struct Author {
    /// Name.
    pub name: String,
    /// Mail address.
    pub email: String,
}

/// A tree that is ready to be committed.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The commit that was changed.
    pub base: Option<CommitId>,
    /// The git tree, 40 hexadecimal digits.
    pub tree: String,
    /// The LFS objects among the changes. They lie in the store.
    pub objects: Vec<Pointer>,
}

/// Writes `changes` to the files of `base` (of none, if it is `None`) as a tree into the bare
/// repository.
///
/// A file goes to LFS, that is into `store` with a pointer in git, if `.gitattributes` of the new
/// tree say so. A `*.safetensors` file of more than 10 MiB, and any file above the limit of
/// [`Limits`](crate::tree::Limits), goes there too; the root's `.gitattributes` gets a line for it.
pub fn stage(
    bare: &Path,
    base: Option<&CommitId>,
    changes: &[Change],
    store: &ObjectStore,
) -> Result<Staged, CommitError> {
    let _ = (bare, base, changes, store);
    unimplemented!("not done yet")
}

/// Commits what is staged to `branch`, which must still name [`Staged::base`] (not exist, if that
/// is `None`).
pub fn commit(
    bare: &Path,
    branch: &str,
    staged: &Staged,
    author: &Author,
    message: &str,
) -> Result<CommitId, CommitError> {
    let _ = (bare, branch, staged, author, message);
    unimplemented!("not done yet")
}

/// Pushes `branch` to the remote: first the LFS objects of its commits that the remote does not
/// have and that lie in `store`, then the branch. Never forces.
pub fn push(
    bare: &Path,
    branch: &str,
    url: &RemoteUrl,
    credentials: &Credentials,
    store: &ObjectStore,
    observer: &dyn Observer,
) -> Result<Transfer, CommitError> {
    let _ = (bare, branch, url, credentials, store, observer);
    unimplemented!("not done yet")
}
