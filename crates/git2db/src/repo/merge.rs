//! Merging one branch of a bare repository into another, without a worktree.

use std::{collections::BTreeSet, path::Path};

use git2::{Commit, ErrorCode, MergeOptions, Oid, Repository, Signature};

use super::{
    RepoError,
    sync::{SyncError, sync_commit, sync_ref},
};
use crate::{CommitId, Reference, commit::Author};

/// What is merged into what.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The branch that changes, without `refs/heads/`.
    pub into: &'a str,
    /// What it takes up.
    pub from: &'a Reference,
    /// What `into` must name now; `None` for whatever it names.
    pub expected: Option<&'a CommitId>,
    /// Message of the commit, if one is made.
    pub message: &'a str,
    /// Who makes it.
    pub author: &'a Author,
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// What the branch named before.
    pub before: CommitId,
    /// What it names now.
    pub after: CommitId,
    /// Whether a commit was made. If not, the branch moved forward or had it all.
    pub is_commit: bool,
}

/// A merge was not made; nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The repository cannot be read or written.
    #[error("the merge cannot be made")]
    Repo(#[source] RepoError),
    /// One of the two does not exist.
    #[error("{reference} does not exist")]
    Missing {
        /// What was looked for.
        reference: Reference,
    },
    /// The branch does not name what was expected, or somebody else moved it meanwhile.
    #[error("branch {branch} names another commit than was expected")]
    BranchMoved {
        /// The branch.
        branch: String,
    },
    /// Both sides changed the same.
    #[error("both sides changed {paths:?}")]
    Conflicts {
        /// The files, in order.
        paths: Vec<String>,
    },
    /// The two have no commit in common.
    #[error("{from} has no history in common with branch {branch}")]
    Unrelated {
        /// The branch.
        branch: String,
        /// What was to be merged.
        from: Reference,
    },
    /// The name cannot stand in a commit.
    #[error("{0:?} cannot be the author of a commit")]
    InvalidAuthor(String),
    /// What was written could not be made durable.
    #[error(transparent)]
    Sync(SyncError),
}

/// Lets a branch of the bare repository at `bare` take up another, as `git merge` does: it moves
/// forward if it can, else a commit with both as parents is made. The branch changes at once and
/// only if it still names what was merged into, and what it then names is on the disk.
///
/// # Errors
/// See [`MergeError`]. After an error the branch is as it was; objects that nothing names may stay
/// until git tidies.
pub fn merge(bare: &Path, merge: &Merge<'_>) -> Result<Merged, MergeError> {
    let repo = super::open(bare).map_err(MergeError::Repo)?;
    let access = |error| MergeError::Repo(super::access(bare)(error));
    let into = Reference::Branch(merge.into.to_owned());
    let name = format!("refs/heads/{}", merge.into);
    if !git2::Reference::is_valid_name(&name) {
        return Err(MergeError::Repo(RepoError::InvalidReference { name }));
    }
    let ours = find(&repo, bare, &into)?;
    let theirs = find(&repo, bare, merge.from)?;
    let before = CommitId::from_oid(ours.id());
    if merge.expected.is_some_and(|expected| *expected != before) {
        return Err(moved(merge));
    }
    let base = match repo.merge_base(ours.id(), theirs.id()) {
        Ok(base) => base,
        Err(error) if error.code() == ErrorCode::NotFound => {
            return Err(MergeError::Unrelated {
                branch: merge.into.to_owned(),
                from: merge.from.clone(),
            });
        }
        Err(error) => return Err(access(error)),
    };
    if base == theirs.id() {
        return Ok(Merged {
            after: before.clone(),
            before,
            is_commit: false,
        });
    }
    let is_commit = base != ours.id();
    let after = if is_commit {
        commit(&repo, bare, merge, &ours, &theirs)?
    } else {
        theirs.id()
    };
    sync_commit(&repo, bare, after).map_err(MergeError::Sync)?;
    match repo.reference_matching(&name, after, true, ours.id(), "merge") {
        Ok(_) => {}
        Err(error) => {
            return Err(match error.code() {
                ErrorCode::Modified | ErrorCode::NotFound | ErrorCode::Locked => moved(merge),
                _ => access(error),
            });
        }
    }
    sync_ref(bare, &name).map_err(MergeError::Sync)?;
    Ok(Merged {
        before,
        after: CommitId::from_oid(after),
        is_commit,
    })
}

fn moved(merge: &Merge<'_>) -> MergeError {
    MergeError::BranchMoved {
        branch: merge.into.to_owned(),
    }
}

fn find<'r>(
    repo: &'r Repository,
    bare: &Path,
    reference: &Reference,
) -> Result<Commit<'r>, MergeError> {
    let found = super::resolve_local(bare, reference).map_err(MergeError::Repo)?;
    let commit = found.ok_or_else(|| MergeError::Missing {
        reference: reference.clone(),
    })?;
    repo.find_commit(commit.oid())
        .map_err(|error| MergeError::Repo(super::access(bare)(error)))
}

/// Writes the commit of a merge; no ref names it yet.
fn commit(
    repo: &Repository,
    bare: &Path,
    merge: &Merge<'_>,
    ours: &Commit<'_>,
    theirs: &Commit<'_>,
) -> Result<Oid, MergeError> {
    let access = |error| MergeError::Repo(super::access(bare)(error));
    let Author { name, email } = merge.author;
    let signature =
        Signature::now(name, email).map_err(|_| MergeError::InvalidAuthor(name.clone()))?;
    let mut index = repo
        .merge_commits(ours, theirs, Some(&MergeOptions::new()))
        .map_err(access)?;
    if index.has_conflicts() {
        let mut paths = BTreeSet::new();
        for conflict in index.conflicts().map_err(access)? {
            let conflict = conflict.map_err(access)?;
            let sides = [conflict.ancestor, conflict.our, conflict.their];
            for side in sides.into_iter().flatten() {
                paths.insert(String::from_utf8_lossy(&side.path).into_owned());
            }
        }
        let paths = paths.into_iter().collect();
        return Err(MergeError::Conflicts { paths });
    }
    let tree = index
        .write_tree_to(repo)
        .and_then(|tree| repo.find_tree(tree))
        .map_err(access)?;
    let message = merge.message;
    repo.commit(
        None,
        &signature,
        &signature,
        message,
        &tree,
        &[ours, theirs],
    )
    .map_err(access)
}
