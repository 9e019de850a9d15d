//! Bare repositories on this machine and how commits come into them.

mod error;

use std::path::Path;

pub use error::RepoError;

use crate::{CommitId, Credentials, Observer, Reference, RemoteError, RemoteUrl};

/// Makes a bare repository at `path`, or does nothing if there is one.
///
/// It allows clients to fetch any commit by name (`uploadpack.allowAnySHA1InWant`), and runs no
/// hooks of templates.
pub fn init_bare(path: &Path) -> Result<(), RepoError> {
    let _ = path;
    unimplemented!("not done yet")
}

/// Whether the commit lies in the repository with its whole tree. LFS objects are not looked at.
pub fn has_commit(path: &Path, commit: &CommitId) -> Result<bool, RepoError> {
    let _ = (path, commit);
    unimplemented!("not done yet")
}

/// Brings `commit` with its tree into the bare repository at `path`; nothing to do if it is there.
///
/// Fetches with depth 1 by name where the server allows it, else the tip of `reference`, else the
/// history of `reference`, else everything. One fetch at a time per repository, across processes.
/// Keeps the commit by the ref `refs/hyprstream/commits/<commit>`.
pub fn fetch_commit(
    path: &Path,
    url: &RemoteUrl,
    reference: &Reference,
    commit: &CommitId,
    credentials: &Credentials,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    let _ = (path, url, reference, commit, credentials, observer);
    unimplemented!("not done yet")
}

/// Lets a branch or tag of the repository at `path` name `commit`, whatever it named before, and
/// with [`Reference::Branch`] lets `HEAD` name that branch, so that `git clone` works.
pub fn set_reference(
    path: &Path,
    reference: &Reference,
    commit: &CommitId,
) -> Result<(), RepoError> {
    let _ = (path, reference, commit);
    unimplemented!("not done yet")
}

/// The commit that `reference` names in the repository at `path`; `None` if it does not exist.
pub fn resolve_local(path: &Path, reference: &Reference) -> Result<Option<CommitId>, RepoError> {
    let _ = (path, reference);
    unimplemented!("not done yet")
}
