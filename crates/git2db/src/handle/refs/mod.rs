//! Branches and tags.

mod branches;
mod error;
mod tags;

use std::{fs, path::PathBuf};

use git2::{ErrorCode, Repository};

pub use branches::{Branch, Upstream};
pub use error::RefError;
pub use tags::{Annotation, Tag};

use super::RepositoryHandle;
use crate::{RepoError, repo};

impl RepositoryHandle {
    /// Where `HEAD` of a worktree names the branch, given in full: the folder of the worktree.
    pub(super) fn checked_out(&self, full_name: &str) -> Result<Option<PathBuf>, RepoError> {
        let wanted = format!("ref: {full_name}");
        let folder = self.path().join("worktrees");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(RepoError::Folder {
                    path: folder,
                    source,
                });
            }
        };
        for entry in entries {
            let path = entry
                .map_err(|source| RepoError::Folder {
                    path: folder.clone(),
                    source,
                })?
                .path();
            // One that is being added or removed just now has no HEAD.
            let head = fs::read_to_string(path.join("HEAD")).unwrap_or_default();
            if head.trim_end() == wanted {
                let gitdir = fs::read_to_string(path.join("gitdir")).unwrap_or_default();
                let dot_git = PathBuf::from(gitdir.trim_end());
                return Ok(Some(dot_git.parent().map_or(path, ToOwned::to_owned)));
            }
        }
        Ok(None)
    }

    pub(super) fn refuse_checked_out(&self, branch: &str) -> Result<(), RefError> {
        let name = format!("refs/heads/{branch}");
        match self.checked_out(&name).map_err(RefError::Repo)? {
            Some(worktree) => Err(RefError::CheckedOut {
                branch: branch.to_owned(),
                worktree,
            }),
            None => Ok(()),
        }
    }

    fn refuse_blocked(
        &self,
        repo: &Repository,
        kind: &'static str,
        name: &str,
        full: &str,
    ) -> Result<(), RefError> {
        match is_blocked(repo, full) {
            Ok(false) => Ok(()),
            Ok(true) => Err(RefError::Exists {
                kind,
                name: name.to_owned(),
            }),
            Err(error) => Err(self.ref_error(kind, name, error)),
        }
    }

    fn ref_error(&self, kind: &'static str, name: &str, error: git2::Error) -> RefError {
        let name = name.to_owned();
        match error.code() {
            ErrorCode::Exists => RefError::Exists { kind, name },
            ErrorCode::NotFound => RefError::Missing { kind, name },
            ErrorCode::InvalidSpec => RefError::Repo(RepoError::InvalidReference { name }),
            ErrorCode::Modified | ErrorCode::Locked => RefError::Moved { name },
            _ => RefError::Repo(repo::access(self.path())(error)),
        }
    }
}

/// Whether a full name may be given to a ref that is new.
fn check_name(name: &str, full: &str) -> Result<(), RefError> {
    if name.starts_with('-') || name == "HEAD" || !git2::Reference::is_valid_name(full) {
        return Err(RefError::Repo(RepoError::InvalidReference {
            name: name.to_owned(),
        }));
    }
    Ok(())
}

/// Whether a ref lies where a folder is to be for `full`, or the other way round: `dev` and
/// `dev/next` exclude each other.
fn is_blocked(repo: &Repository, full: &str) -> Result<bool, git2::Error> {
    if repo.references_glob(&format!("{full}/*"))?.next().is_some() {
        return Ok(true);
    }
    // Of `refs/heads/a/b`, that is `refs/heads/a`.
    for (at, _) in full.match_indices('/').skip(2) {
        match repo.find_reference(&full[..at]) {
            Ok(_) => return Ok(true),
            Err(error) if error.code() == ErrorCode::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The branch that `HEAD` of the bare repository names.
fn default_branch(repo: &Repository) -> Option<String> {
    let head = repo.find_reference("HEAD").ok()?;
    head.symbolic_target().ok()?.map(ToOwned::to_owned)
}
