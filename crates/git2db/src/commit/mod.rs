//! Making commits and pushing them.

mod error;
mod metadata;
mod push;
mod sign;
mod stage;
mod upper;

use std::path::{Path, PathBuf};

use git2::{Commit, ErrorCode, Oid, Repository, Tree};

pub use error::CommitError;
pub(crate) use metadata::write as write_commit;
pub use metadata::{Message, Metadata, Timestamp, Trailer};
pub use push::push;
pub(crate) use push::{new_objects, upload_new_objects};
pub use stage::stage;
pub(crate) use stage::{ATTRIBUTES, check_path, is_large};
use stage::{invalid, read_error};
pub use upper::{Upper, stage_upper};

use crate::{CommitId, RepoError, lfs::Pointer, repo};

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
    /// An LFS object that need not be here. It goes to LFS whatever the attributes say.
    Lfs(Pointer),
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
    /// The LFS objects among the changes. They lie in the store, but for those that were given as
    /// [`Content::Lfs`].
    pub objects: Vec<Pointer>,
}

/// Commits what is staged to `branch`, which must still name [`Staged::base`] (not exist, if that
/// is `None`). Nothing is pushed. The message is taken as it is.
pub fn commit(
    bare: &Path,
    branch: &str,
    staged: &Staged,
    author: &Author,
    message: &str,
) -> Result<CommitId, CommitError> {
    let signature = metadata::signature(author, None)?;
    commit_by(bare, branch, staged, &|repo, tree, parents| {
        repo.commit(None, &signature, &signature, message, tree, parents)
            .map_err(|e| CommitError::Repo(repo::access(bare)(e)))
    })
}

/// Commits as [`commit()`], and returns when all of it is on the disk, whatever the repository's own
/// configuration says.
///
/// # Errors
/// See [`CommitError`]. After one of [`CommitError::Sync`] the branch may have moved; after all
/// others it is as it was.
pub fn commit_durably(
    bare: &Path,
    branch: &str,
    staged: &Staged,
    author: &Author,
    message: &str,
) -> Result<CommitId, CommitError> {
    let signature = metadata::signature(author, None)?;
    let made = commit_by(bare, branch, staged, &|repo, tree, parents| {
        let made = repo
            .commit(None, &signature, &signature, message, tree, parents)
            .map_err(|e| CommitError::Repo(repo::access(bare)(e)))?;
        // Before the branch names it.
        repo::sync_commit(repo, bare, made).map_err(CommitError::Sync)?;
        Ok(made)
    })?;
    repo::sync_ref(bare, &format!("refs/heads/{branch}")).map_err(CommitError::Sync)?;
    Ok(made)
}

/// Commits as [`commit()`], with all that a commit can say: a committer, times, trailers, a
/// signature.
pub fn commit_with(
    bare: &Path,
    branch: &str,
    staged: &Staged,
    metadata: &Metadata,
) -> Result<CommitId, CommitError> {
    commit_by(bare, branch, staged, &|repo, tree, parents| {
        write_commit(repo, tree, parents, metadata)
    })
}

type Write<'a> = dyn Fn(&Repository, &Tree<'_>, &[&Commit<'_>]) -> Result<Oid, CommitError> + 'a;

fn commit_by(
    bare: &Path,
    branch: &str,
    staged: &Staged,
    write: &Write<'_>,
) -> Result<CommitId, CommitError> {
    let name = branch_ref(branch)?;
    let repo = repo::open(bare).map_err(CommitError::Repo)?;
    let access = |e| CommitError::Repo(repo::access(bare)(e));
    let moved = || CommitError::BranchMoved {
        branch: branch.to_owned(),
    };
    if let (None, Some(other)) = (&staged.base, in_the_way(&repo, branch).map_err(access)?) {
        let branch = branch.to_owned();
        return Err(CommitError::BranchInTheWay { branch, other });
    }
    let tree = Oid::from_str(&staged.tree)
        .and_then(|id| repo.find_tree(id))
        .map_err(access)?;
    let parent = match &staged.base {
        Some(base) => Some(repo.find_commit(base.oid()).map_err(access)?),
        None => None,
    };
    let parents: Vec<_> = parent.iter().collect();
    let id = write(&repo, &tree, &parents)?;
    // The ref is changed only if it still names what was changed.
    let updated = match &staged.base {
        Some(base) => repo.reference_matching(&name, id, true, base.oid(), "commit"),
        None => repo.reference(&name, id, false, "commit"),
    };
    match updated {
        Ok(_) => Ok(CommitId::from_oid(id)),
        Err(error) if is_moved(&error) => Err(moved()),
        Err(error) => Err(access(error)),
    }
}

/// The git tree of a commit, as [`Staged::tree`] names one: equal trees have equal files.
///
/// # Errors
/// The repository or the commit cannot be read.
pub fn tree_of(bare: &Path, commit: &CommitId) -> Result<String, CommitError> {
    let repo = repo::open(bare).map_err(CommitError::Repo)?;
    let found = repo
        .find_commit(commit.oid())
        .map_err(|e| CommitError::Repo(repo::access(bare)(e)))?;
    Ok(found.tree_id().to_string())
}

/// Whether a ref was not changed because it named something else than expected.
pub(crate) fn is_moved(error: &git2::Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::Modified | ErrorCode::Exists | ErrorCode::NotFound | ErrorCode::Locked
    )
}

/// A branch that a new one of this name cannot be beside: a file cannot lie where a folder is.
fn in_the_way(repo: &Repository, branch: &str) -> Result<Option<String>, git2::Error> {
    let above = branch.match_indices('/').map(|(at, _)| &branch[..at]);
    for above in above {
        if repo.find_reference(&format!("refs/heads/{above}")).is_ok() {
            return Ok(Some(above.to_owned()));
        }
    }
    let mut below = repo.references_glob(&format!("refs/heads/{branch}/*"))?;
    let below = below.names().next().transpose()?;
    Ok(below.and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned)))
}

fn branch_ref(branch: &str) -> Result<String, CommitError> {
    let name = format!("refs/heads/{branch}");
    if branch.starts_with('-') || !git2::Reference::is_valid_name(&name) {
        let name = branch.to_owned();
        return Err(CommitError::Repo(RepoError::InvalidReference { name }));
    }
    Ok(name)
}
