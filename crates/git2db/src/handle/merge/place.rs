//! Where a merge happens: a branch of the bare repository, or a worktree.

use git2::{Commit, Repository};

use super::{MergeError, access};
use crate::{
    CommitId, RepositoryHandle, Worktree,
    commit::is_moved,
    handle::{RefError, WorktreeError},
    repo,
};

pub(super) struct Place<'a> {
    repository: &'a RepositoryHandle,
    repo: Repository,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Branch(&'a str),
    Worktree(&'a Worktree),
}

impl<'a> Place<'a> {
    /// A branch that no worktree works on.
    pub(super) fn branch(
        repository: &'a RepositoryHandle,
        branch: &'a str,
    ) -> Result<Self, MergeError> {
        match repository.refuse_checked_out(branch) {
            Ok(()) => {}
            Err(RefError::CheckedOut { branch, worktree }) => {
                return Err(MergeError::CheckedOut { branch, worktree });
            }
            Err(error) => return Err(MergeError::Ref(error)),
        }
        Ok(Self {
            repository,
            repo: repo::open(repository.path()).map_err(MergeError::Repo)?,
            kind: Kind::Branch(branch),
        })
    }

    pub(super) fn worktree(worktree: &'a Worktree) -> Result<Self, MergeError> {
        let repository = worktree.repository();
        let repo = worktree.repo().map_err(MergeError::Repo)?;
        let index = repo.index().map_err(|e| access(repository.path(), e))?;
        worktree
            .refuse_unfinished(&repo, &index)
            .map_err(MergeError::Worktree)?;
        drop(index);
        Ok(Self {
            repository,
            repo,
            kind: Kind::Worktree(worktree),
        })
    }

    pub(super) fn repo(&self) -> &Repository {
        &self.repo
    }

    /// The commit that is there now.
    pub(super) fn tip(&self) -> Result<Commit<'_>, MergeError> {
        match self.kind {
            Kind::Branch(branch) => {
                let tip = self
                    .repository
                    .branch_tip(branch)
                    .map_err(MergeError::Ref)?;
                self.find(&tip)
            }
            Kind::Worktree(worktree) => worktree
                .head_commit(&self.repo)
                .and_then(|head| head.ok_or(WorktreeError::NoCommits))
                .map_err(MergeError::Worktree),
        }
    }

    pub(super) fn find(&self, commit: &CommitId) -> Result<Commit<'_>, MergeError> {
        self.repository
            .find(&self.repo, commit)
            .map_err(MergeError::History)
    }

    /// Goes from one commit to another. The branch moves only if it still names the first.
    pub(super) fn go(
        &self,
        from: &Commit<'_>,
        to: &Commit<'_>,
        why: &str,
    ) -> Result<(), MergeError> {
        match self.kind {
            Kind::Branch(branch) => {
                let name = format!("refs/heads/{branch}");
                let moved = self
                    .repo
                    .reference_matching(&name, to.id(), true, from.id(), why);
                match moved {
                    Ok(_) => Ok(()),
                    Err(error) if is_moved(&error) => Err(self.moved()),
                    Err(error) => Err(self.fail(error)),
                }
            }
            Kind::Worktree(worktree) => {
                worktree
                    .advance(&self.repo, to, false)
                    .map_err(MergeError::Worktree)?;
                let Err(error) = worktree.move_head(&self.repo, Some(from.id()), to.id(), why)
                else {
                    return Ok(());
                };
                worktree
                    .go_back(&self.repo, to, from)
                    .map_err(MergeError::Worktree)?;
                Err(match error {
                    WorktreeError::Moved { branch } => MergeError::Moved { branch },
                    other => MergeError::Worktree(other),
                })
            }
        }
    }

    pub(super) fn moved(&self) -> MergeError {
        let branch = match self.kind {
            Kind::Branch(branch) => branch.to_owned(),
            Kind::Worktree(worktree) => worktree.path().display().to_string(),
        };
        MergeError::Moved { branch }
    }

    pub(super) fn fail(&self, error: git2::Error) -> MergeError {
        access(self.repository.path(), error)
    }
}
