//! Bare repositories on this machine and how commits come into them.

mod branches;
mod error;
mod fetch;
mod merge;
mod stale;
mod sync;

use std::{io::ErrorKind, path::Path};

use git2::{
    ErrorCode, ObjectType, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags, Tree,
};

pub use branches::{BranchQuery, BranchTip, branch, branches};
pub use error::RepoError;
pub(crate) use fetch::{Download, UNSHALLOW, download, lock};
pub use fetch::{Fetch, History, fetch_commit, fetch_commit_within};
pub use merge::{Merge, MergeError, Merged, merge};
pub use sync::SyncError;
pub(crate) use sync::{sync_commit, sync_ref};

use crate::{CommitId, Reference, libgit, lock::FileLock};

/// Makes a bare repository at `path`, or does nothing if there is one. Threads and processes may
/// ask for the same one at once, and one that was killed while it made it is followed by the next.
///
/// It allows clients to fetch any commit by name (`uploadpack.allowAnySHA1InWant`) and has no
/// hooks. Its `HEAD` names `refs/heads/main` until [`set_reference`] changes that.
pub fn init_bare(path: &Path) -> Result<(), RepoError> {
    libgit::init();
    if is_made(path)? {
        return Ok(());
    }
    // Whoever makes a repository here holds the folder above, which needs no file of its own.
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    let held = std::fs::create_dir_all(above)
        .and_then(|()| FileLock::hold(above))
        .map_err(|source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RepoError::DiskFull {
                path: path.to_owned(),
            },
            _ => RepoError::Folder {
                path: above.to_owned(),
                source,
            },
        })?;
    if !is_made(path)? {
        make(path).map_err(|source| {
            if libgit::is_disk_full(&source) {
                RepoError::DiskFull {
                    path: path.to_owned(),
                }
            } else {
                RepoError::Open {
                    path: path.to_owned(),
                    source,
                }
            }
        })?;
    }
    drop(held);
    Ok(())
}

/// What a repository of ours allows, written last when it is made.
const ANY_COMMIT: &str = "uploadpack.allowAnySHA1InWant";

fn is_made(path: &Path) -> Result<bool, RepoError> {
    match open(path) {
        Ok(repo) => {
            let config = repo.config().map_err(access(path))?;
            Ok(config.get_bool(ANY_COMMIT).is_ok())
        }
        Err(RepoError::Open { source, .. }) if source.code() == ErrorCode::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes what is missing. Nobody else does so meanwhile: a lock that lies there is of a process
/// that was killed.
fn make(path: &Path) -> Result<(), git2::Error> {
    let _ = std::fs::remove_file(path.join("config.lock"));
    let mut options = RepositoryInitOptions::new();
    options
        .bare(true)
        .mkpath(true)
        .external_template(false)
        .initial_head("main");
    let mut config = Repository::init_opts(path, &options)?.config()?;
    config.set_bool("core.fsyncObjectFiles", true)?;
    config.set_bool(ANY_COMMIT, true)
}

/// Whether the commit lies in the repository with its whole tree. LFS objects are not looked at.
pub fn has_commit(path: &Path, commit: &CommitId) -> Result<bool, RepoError> {
    is_complete(&open(path)?, path, commit)
}

/// Lets a branch or tag of the repository at `path` name `commit`, whatever it named before. One
/// that cannot be beside it (`dev` and `dev/next`) goes.
/// With [`Reference::Branch`] `HEAD` then names that branch, so that `git clone` works.
/// [`Reference::Head`] means the branch `main`; for a [`Reference::Commit`] nothing is done.
pub fn set_reference(
    path: &Path,
    reference: &Reference,
    commit: &CommitId,
) -> Result<(), RepoError> {
    let name = match reference {
        Reference::Head => "refs/heads/main".to_owned(),
        Reference::Commit(_) => return Ok(()),
        other => other.full_name().unwrap_or_default(),
    };
    if !git2::Reference::is_valid_name(&name) {
        return Err(RepoError::InvalidReference { name });
    }
    let repo = open(path)?;
    if repo.find_commit(commit.oid()).is_err() {
        return Err(RepoError::CommitMissing {
            path: path.to_owned(),
            commit: commit.clone(),
        });
    }
    make_way(&repo, &name).map_err(access(path))?;
    repo.reference(&name, commit.oid(), true, "hyprstream")
        .map_err(access(path))?;
    if name.starts_with("refs/heads/") {
        repo.set_head(&name).map_err(access(path))?;
    }
    Ok(())
}

/// The commit that `reference` names in the repository at `path`; `None` if it does not exist.
pub fn resolve_local(path: &Path, reference: &Reference) -> Result<Option<CommitId>, RepoError> {
    let repo = open(path)?;
    let found = match reference {
        Reference::Commit(commit) => repo.find_commit(commit.oid()).map(|c| c.id()),
        other => repo
            .find_reference(&other.full_name().unwrap_or_default())
            .and_then(|r| r.peel_to_commit())
            .map(|c| c.id()),
    };
    match found {
        Ok(oid) => Ok(Some(CommitId::from_oid(oid))),
        Err(error) => match error.code() {
            ErrorCode::Peel | ErrorCode::InvalidSpec if exists(&repo, reference) => {
                let (reference, kind) = (reference.clone(), "a folder or a file".to_owned());
                Err(RepoError::NotACommit { reference, kind })
            }
            ErrorCode::NotFound | ErrorCode::UnbornBranch | ErrorCode::InvalidSpec => Ok(None),
            _ => Err(access(path)(error)),
        },
    }
}

fn exists(repo: &Repository, reference: &Reference) -> bool {
    let name = reference.full_name();
    name.is_some_and(|name| repo.find_reference(&name).is_ok())
}

/// Removes the refs that stand in the way of `name`: a file cannot lie where a folder is, so that
/// `dev` and `dev/next` exclude each other. Of an upstream, the older one is gone, as for
/// `git fetch --prune`.
fn make_way(repo: &Repository, name: &str) -> Result<(), git2::Error> {
    let below = format!("{name}/");
    let mut gone = Vec::new();
    for found in repo.references()?.names() {
        let found = found?;
        let above = name
            .strip_prefix(found)
            .is_some_and(|rest| rest.starts_with('/'));
        if above || found.starts_with(&below) {
            gone.push(found.to_owned());
        }
    }
    for found in gone {
        repo.find_reference(&found)?.delete()?;
    }
    Ok(())
}

/// Opens exactly the repository at `path`, not one above it.
pub(crate) fn open(path: &Path) -> Result<Repository, RepoError> {
    open_with(path, RepositoryOpenFlags::NO_DOTGIT)
}

/// Opens the worktree at `path`, not one above it.
pub(crate) fn open_worktree(path: &Path) -> Result<Repository, RepoError> {
    open_with(path, RepositoryOpenFlags::empty())
}

fn open_with(path: &Path, flags: RepositoryOpenFlags) -> Result<Repository, RepoError> {
    libgit::init();
    let none: [&Path; 0] = [];
    let flags = RepositoryOpenFlags::NO_SEARCH | flags;
    Repository::open_ext(path, flags, none).map_err(|source| match source.code() {
        ErrorCode::Owner => RepoError::NotOurs {
            path: path.to_owned(),
        },
        _ => RepoError::Open {
            path: path.to_owned(),
            source,
        },
    })
}

/// The error for a failed operation on the open repository at `path`.
pub(crate) fn access(path: &Path) -> impl Fn(git2::Error) -> RepoError + '_ {
    |source| {
        if libgit::is_disk_full(&source) {
            RepoError::DiskFull {
                path: path.to_owned(),
            }
        } else if libgit::is_memory_full(&source) {
            let largest = libgit::largest_object();
            RepoError::Content {
                path: path.to_owned(),
                detail: format!(
                    "a git object is larger than {largest} bytes when it is unpacked, which is \
                     the limit: large files belong into LFS"
                ),
            }
        } else if libgit::is_malformed(&source) {
            RepoError::Content {
                path: path.to_owned(),
                detail: source.message().to_owned(),
            }
        } else {
            RepoError::Access {
                path: path.to_owned(),
                source,
            }
        }
    }
}

/// The ref that keeps a fetched commit; it is made when the commit is known to be complete.
fn keeping_ref(commit: &CommitId) -> String {
    format!("refs/hyprstream/commits/{commit}")
}

fn is_complete(repo: &Repository, path: &Path, commit: &CommitId) -> Result<bool, RepoError> {
    let found = match repo.find_commit(commit.oid()) {
        Ok(found) => found,
        Err(error) if error.code() == ErrorCode::NotFound => return Ok(false),
        Err(error) => return Err(access(path)(error)),
    };
    if repo.find_reference(&keeping_ref(commit)).is_ok() {
        return Ok(true);
    }
    let mut seen = std::collections::HashSet::new();
    match found.tree() {
        Ok(tree) => is_tree_complete(repo, &tree, &mut seen).map_err(access(path)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(false),
        Err(error) => Err(access(path)(error)),
    }
}

fn is_tree_complete(
    repo: &Repository,
    root: &Tree<'_>,
    seen: &mut std::collections::HashSet<Oid>,
) -> Result<bool, git2::Error> {
    let odb = repo.odb()?;
    let mut pending = vec![root.id()];
    while let Some(id) = pending.pop() {
        if !seen.insert(id) {
            continue;
        }
        let tree = match repo.find_tree(id) {
            Ok(tree) => tree,
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in &tree {
            match entry.kind() {
                Some(ObjectType::Tree) => pending.push(entry.id()),
                // A submodule names a commit of another repository.
                Some(ObjectType::Commit) => {}
                _ if !odb.exists(entry.id()) => return Ok(false),
                _ => {}
            }
        }
    }
    Ok(true)
}
