//! Whether, where and of what a worktree can be made.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use git2::ErrorCode;

use super::{Head, Start, Worktrees, WorktreesError, io_error, names};
use crate::{
    CommitId, RepoError,
    storage::{self, Kind},
};

impl Worktrees<'_> {
    /// The commit that a worktree begins with.
    pub(super) fn commit(
        &self,
        repo: &git2::Repository,
        start: &Start,
    ) -> Result<CommitId, WorktreesError> {
        let found = match start {
            Start::NewBranch { commit, .. } | Start::Detached(commit) => {
                repo.find_commit(commit.oid()).map_err(|error| {
                    if error.code() == ErrorCode::NotFound {
                        WorktreesError::Repo(RepoError::CommitMissing {
                            path: self.repository.path().to_owned(),
                            commit: commit.clone(),
                        })
                    } else {
                        self.access(error)
                    }
                })
            }
            Start::Branch(branch) => repo
                .find_reference(&full(branch))
                .and_then(|found| found.peel_to_commit())
                .map_err(|error| match error.code() {
                    ErrorCode::NotFound | ErrorCode::InvalidSpec => WorktreesError::NoBranch {
                        branch: branch.clone(),
                    },
                    _ => self.access(error),
                }),
        }?;
        Ok(CommitId::from_oid(found.id()))
    }

    /// Whether a branch that is to be made can be.
    pub(super) fn check_branch(
        &self,
        repo: &git2::Repository,
        start: &Start,
    ) -> Result<(), WorktreesError> {
        let Start::NewBranch { name, .. } = start else {
            return Ok(());
        };
        if !git2::Branch::name_is_valid(name).unwrap_or(false) {
            return Err(WorktreesError::Repo(RepoError::InvalidReference {
                name: name.clone(),
            }));
        }
        match repo.find_reference(&full(name)) {
            Ok(_) => Err(WorktreesError::BranchExists {
                branch: name.clone(),
            }),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(self.access(error)),
        }
    }

    /// What may have changed until the lock was held, and what other worktrees have.
    pub(super) fn check_start(
        &self,
        repo: &git2::Repository,
        start: &Start,
        path: &Path,
    ) -> Result<(), WorktreesError> {
        self.check_branch(repo, start)?;
        let wanted = match start {
            Start::Branch(branch) | Start::NewBranch { name: branch, .. } => Some(branch),
            Start::Detached(_) => None,
        };
        // Not all that can be told of each: there may be hundreds.
        for name in names(&self.folder())? {
            let Some(theirs) = self.path(&name)? else {
                continue;
            };
            if theirs == path {
                let path = path.to_owned();
                let why = "a worktree that is not there now is recorded at that path";
                return Err(WorktreesError::BadPath { path, why });
            }
            if let Some(branch) = wanted
                && self.head(&name)? == Some(Head::Branch(branch.clone()))
            {
                return Err(WorktreesError::BranchInUse {
                    branch: branch.clone(),
                    path: theirs,
                });
            }
        }
        Ok(())
    }

    /// The last part of the path, with a number if another worktree has that name.
    pub(super) fn free_name(&self, path: &Path) -> String {
        let last = path.file_name().unwrap_or_default().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let replace = |c: char| if plain(c) { c } else { '-' };
        let name: String = last.chars().map(replace).collect();
        let is_taken = |name: &str| self.admin(name).exists() || self.private(name).exists();
        let mut candidate = name.clone();
        for n in 2.. {
            if !is_taken(&candidate) {
                break;
            }
            candidate = format!("{name}{n}");
        }
        candidate
    }
}

pub(super) fn full(branch: &str) -> String {
    format!("refs/heads/{branch}")
}

/// The path without links in it, as mountinfo shows it. What is above it is made.
pub(super) fn free_path(path: &Path) -> Result<PathBuf, WorktreesError> {
    let bad = |why| WorktreesError::BadPath {
        path: path.to_owned(),
        why,
    };
    let name = path.file_name().ok_or_else(|| bad("it has no last part"))?;
    if path.to_str().is_none_or(|text| text.contains('\n')) {
        return Err(bad(
            "it is not UTF-8, or not in one line, as git's files want it",
        ));
    }
    if path.is_symlink() {
        return Err(bad("it is a symbolic link"));
    }
    let absolute = std::path::absolute(path).map_err(|e| io_error("find", path, e))?;
    let above = absolute.parent().ok_or_else(|| bad("it is the root"))?;
    fs::create_dir_all(above).map_err(|e| io_error("create folder", above, e))?;
    let above = above
        .canonicalize()
        .map_err(|e| io_error("find", above, e))?;
    Ok(above.join(name))
}

/// The best driver for a worktree at `path`; each file system is tried once in a process.
pub(super) fn best(path: &Path) -> Result<Kind, WorktreesError> {
    static FOUND: Mutex<Option<HashMap<u64, Kind>>> = Mutex::new(None);
    let above = path.parent().unwrap_or(path);
    let device = fs::metadata(above)
        .map_err(|e| io_error("read", above, e))?
        .dev();
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.get_or_insert_default();
    if let Some(kind) = found.get(&device) {
        return Ok(*kind);
    }
    let kind = storage::probe(above)
        .map_err(WorktreesError::Storage)?
        .best()
        .kind();
    found.insert(device, kind);
    Ok(kind)
}
