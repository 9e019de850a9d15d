//! Branches.

use git2::{BranchType, ErrorCode, Repository};

use super::{RefError, check_name, default_branch};
use crate::{
    CommitId, RepositoryHandle,
    handle::{CommitInfo, HistoryError},
};
use std::path::PathBuf;

const BRANCH: &str = "branch";

/// A branch of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its name, without `refs/heads/`.
    pub name: String,
    /// Its last commit.
    pub last: CommitInfo,
    /// What it follows.
    pub upstream: Option<Upstream>,
    /// The worktree that works on it.
    pub worktree: Option<PathBuf>,
    /// Whether it is the one that a clone gets.
    pub is_default: bool,
}

/// What a branch follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The full name of the ref, such as `refs/remotes/origin/main`.
    pub name: String,
    /// Commits that only the branch has, and those that only the upstream has; `None` if the
    /// upstream is gone.
    pub ahead_behind: Option<(usize, usize)>,
}

impl RepositoryHandle {
    /// Makes a branch that names `commit`. With `force`, one of that name is moved there.
    ///
    /// # Errors
    /// There is one already, or a worktree works on the one to move.
    pub fn create_branch(
        &self,
        name: &str,
        commit: &CommitId,
        force: bool,
    ) -> Result<(), RefError> {
        let full = format!("refs/heads/{name}");
        check_name(name, &full)?;
        let repo = self.repo().map_err(RefError::Repo)?;
        let commit = self.find(&repo, commit).map_err(RefError::History)?;
        self.refuse_blocked(&repo, BRANCH, name, &full)?;
        if force {
            self.refuse_checked_out(name)?;
        }
        repo.reference(&full, commit.id(), force, "branch: Created")
            .map(drop)
            .map_err(|e| self.ref_error(BRANCH, name, e))
    }

    /// All branches by name.
    pub fn branches(&self) -> Result<Vec<Branch>, RefError> {
        let repo = self.repo().map_err(RefError::Repo)?;
        let fail = |e| self.ref_error(BRANCH, "", e);
        let default = default_branch(&repo);
        let mut found = Vec::new();
        for item in repo.branches(Some(BranchType::Local)).map_err(fail)? {
            let (branch, _) = item.map_err(fail)?;
            let full = String::from_utf8_lossy(branch.get().name_bytes()).into_owned();
            let name = full.strip_prefix("refs/heads/").unwrap_or(&full).to_owned();
            let last = match branch.get().peel_to_commit() {
                Ok(last) => last,
                // Somebody deleted it while we looked.
                Err(error) if error.code() == ErrorCode::NotFound => continue,
                Err(error) => return Err(self.ref_error(BRANCH, &name, error)),
            };
            found.push(Branch {
                upstream: self.upstream(&repo, &full, last.id())?,
                worktree: self.checked_out(&full).map_err(RefError::Repo)?,
                is_default: default.as_ref() == Some(&full),
                last: CommitInfo::of(&last),
                name,
            });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Deletes a branch, with its reflog and its upstream.
    ///
    /// # Errors
    /// Without `force`: it has commits that neither its upstream nor, if it has none, the default
    /// branch has. Always: a worktree works on it, or it is the default branch.
    pub fn delete_branch(&self, name: &str, force: bool) -> Result<(), RefError> {
        let repo = self.repo().map_err(RefError::Repo)?;
        let fail = |e| self.ref_error(BRANCH, name, e);
        let mut branch = repo.find_branch(name, BranchType::Local).map_err(fail)?;
        self.refuse_checked_out(name)?;
        let full = format!("refs/heads/{name}");
        let default = default_branch(&repo);
        if default.as_ref() == Some(&full) {
            return Err(RefError::DefaultBranch {
                branch: name.to_owned(),
            });
        }
        if !force {
            let tip = branch.get().peel_to_commit().map_err(fail)?.id();
            let upstream = self.upstream(&repo, &full, tip)?;
            let into = match upstream {
                Some(upstream) if upstream.ahead_behind.is_some() => upstream.name,
                _ => default.unwrap_or_else(|| "HEAD".to_owned()),
            };
            let base = match repo.find_reference(&into).and_then(|r| r.peel_to_commit()) {
                Ok(base) => Some(base.id()),
                Err(error) if error.code() == ErrorCode::NotFound => None,
                Err(error) => return Err(fail(error)),
            };
            let merged = match base {
                Some(base) => base == tip || repo.graph_descendant_of(base, tip).map_err(fail)?,
                None => false,
            };
            if !merged {
                return Err(RefError::NotMerged {
                    branch: name.to_owned(),
                    into,
                });
            }
        }
        branch.delete().map_err(fail)
    }

    /// Gives a branch another name, with its reflog and its upstream; worktrees that work on it go
    /// on doing so. With `force`, one of the new name is replaced.
    pub fn rename_branch(&self, name: &str, to: &str, force: bool) -> Result<(), RefError> {
        let full = format!("refs/heads/{to}");
        check_name(to, &full)?;
        let repo = self.repo().map_err(RefError::Repo)?;
        let mut branch = repo
            .find_branch(name, BranchType::Local)
            .map_err(|e| self.ref_error(BRANCH, name, e))?;
        if name == to {
            return Ok(());
        }
        // `dev` may become `dev/next`, and the other way round.
        if !is_beside(name, to) {
            self.refuse_blocked(&repo, BRANCH, to, &full)?;
        }
        if force {
            self.refuse_checked_out(to)?;
        }
        branch
            .rename(to, force)
            .map(drop)
            .map_err(|e| self.ref_error(BRANCH, to, e))
    }

    /// Lets a branch follow another (`origin/main`, or a local one), or none.
    pub fn set_upstream(&self, name: &str, upstream: Option<&str>) -> Result<(), RefError> {
        let repo = self.repo().map_err(RefError::Repo)?;
        let fail = |e| self.ref_error(BRANCH, name, e);
        let mut branch = repo.find_branch(name, BranchType::Local).map_err(fail)?;
        match branch.set_upstream(upstream) {
            Err(error) if error.code() == ErrorCode::NotFound => Err(RefError::Missing {
                kind: BRANCH,
                name: upstream.unwrap_or(name).to_owned(),
            }),
            other => other.map_err(fail),
        }
    }

    /// The last commit of a branch.
    pub fn branch_tip(&self, name: &str) -> Result<CommitId, RefError> {
        let repo = self.repo().map_err(RefError::Repo)?;
        repo.find_reference(&format!("refs/heads/{name}"))
            .and_then(|branch| branch.peel_to_commit())
            .map(|commit| CommitId::from_oid(commit.id()))
            .map_err(|e| self.ref_error(BRANCH, name, e))
    }

    fn upstream(
        &self,
        repo: &Repository,
        full: &str,
        tip: git2::Oid,
    ) -> Result<Option<Upstream>, RefError> {
        let fail = |e| self.ref_error(BRANCH, full, e);
        let name = match repo.branch_upstream_name(full) {
            Ok(name) => name.as_str().map_err(fail)?.to_owned(),
            // None is configured, or its remote is not.
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let ahead_behind = match repo.find_reference(&name).and_then(|r| r.peel_to_commit()) {
            Ok(other) => Some(repo.graph_ahead_behind(tip, other.id()).map_err(fail)?),
            Err(error) if error.code() == ErrorCode::NotFound => None,
            Err(error) => return Err(fail(error)),
        };
        Ok(Some(Upstream { name, ahead_behind }))
    }
}

fn is_beside(name: &str, to: &str) -> bool {
    let below = |one: &str, other: &str| {
        one.strip_prefix(other)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    below(name, to) || below(to, name)
}

impl From<HistoryError> for RefError {
    fn from(error: HistoryError) -> Self {
        Self::History(error)
    }
}
