//! Switching to another branch or commit, and going back.

use git2::Oid;

use super::{WorktreeError, stage::conflicted};
use crate::{CommitId, Worktree, handle::RefError};

/// What a worktree switches to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A branch.
    Branch(&'a str),
    /// A branch that is made, at a commit or, without one, where the worktree is now.
    NewBranch(&'a str, Option<&'a CommitId>),
    /// A commit, without a branch: what is committed there has no name.
    Commit(&'a CommitId),
}

/// How much goes back in [`Worktree::reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The branch.
    Soft,
    /// And what is staged.
    Mixed,
    /// And the files that git knows.
    Hard,
}

impl Worktree {
    /// Switches to a branch or commit. Changes that nobody committed stay where both commits have
    /// the same file.
    ///
    /// # Errors
    /// Without `force`: a change would be lost, or a merge is under way. Always: another worktree
    /// works on the branch. Then nothing has changed.
    pub fn switch(&self, to: Target<'_>, force: bool) -> Result<(), WorktreeError> {
        let (repo, index) = self.opened()?;
        if !force {
            self.refuse_unfinished(&repo, &index)?;
        }
        let bare = self.repository();
        let current = repo
            .find_reference("HEAD")
            .map_err(|e| self.fail(e))?
            .symbolic_target()
            .ok()
            .flatten()
            .map(ToOwned::to_owned);
        let commit = match to {
            Target::Commit(commit) | Target::NewBranch(_, Some(commit)) => {
                bare.find(&repo, commit).map_err(WorktreeError::History)?
            }
            Target::NewBranch(_, None) => {
                self.head_commit(&repo)?.ok_or(WorktreeError::NoCommits)?
            }
            Target::Branch(name) => {
                if current.as_deref() != Some(format!("refs/heads/{name}").as_str()) {
                    bare.refuse_checked_out(name).map_err(WorktreeError::Ref)?;
                }
                let tip = bare.branch_tip(name).map_err(WorktreeError::Ref)?;
                bare.find(&repo, &tip).map_err(WorktreeError::History)?
            }
        };
        if let Target::NewBranch(name, _) = to {
            // Made first, so that a name that cannot be given leaves the files as they are.
            let at = CommitId::from_oid(commit.id());
            bare.create_branch(name, &at, false)
                .map_err(WorktreeError::Ref)?;
        }
        if let Err(error) = self.advance(&repo, &commit, force) {
            if let Target::NewBranch(name, _) = to {
                bare.delete_branch(name, true).map_err(WorktreeError::Ref)?;
            }
            return Err(error);
        }
        match to {
            Target::Branch(name) | Target::NewBranch(name, _) => {
                repo.set_head(&format!("refs/heads/{name}"))
            }
            Target::Commit(_) => repo.set_head_detached(commit.id()),
        }
        .and_then(|()| if force { repo.cleanup_state() } else { Ok(()) })
        .map_err(|e| self.fail(e))
    }

    /// The branch that the worktree works on; `None` with a detached `HEAD`. It has no commit
    /// before the first.
    pub fn branch(&self) -> Result<Option<String>, WorktreeError> {
        let (repo, _) = self.opened()?;
        let head = repo.find_reference("HEAD").map_err(|e| self.fail(e))?;
        let target = head.symbolic_target().ok().flatten();
        Ok(target
            .and_then(|name| name.strip_prefix("refs/heads/"))
            .map(ToOwned::to_owned))
    }

    /// The last commit of the worktree; `None` before the first.
    pub fn head(&self) -> Result<Option<CommitId>, WorktreeError> {
        let (repo, _) = self.opened()?;
        let head = self.head_commit(&repo)?;
        Ok(head.map(|commit| CommitId::from_oid(commit.id())))
    }

    /// Lets the branch of the worktree name another commit, and what is staged and the files too,
    /// as far as `how` says. Untracked files stay.
    ///
    /// # Errors
    /// `Soft` with files in conflict; somebody else moved the branch meanwhile.
    pub fn reset(&self, to: &CommitId, how: Reset) -> Result<(), WorktreeError> {
        let (repo, mut index) = self.opened()?;
        let commit = self
            .repository()
            .find(&repo, to)
            .map_err(WorktreeError::History)?;
        let from: Option<Oid> = self.head_commit(&repo)?.map(|head| head.id());
        match how {
            Reset::Soft => {
                let open = self.conflicts(&index)?;
                if !open.is_empty() {
                    return Err(conflicted(open.into_iter().map(|file| file.path).collect()));
                }
            }
            Reset::Mixed => {
                self.refresh(&repo, &mut index)?;
                let tree = commit.tree().map_err(|e| self.fail(e))?;
                index
                    .read_tree(&tree)
                    .and_then(|()| index.write())
                    .map_err(|e| self.fail(e))?;
                // What is staged now may be what the file is.
                self.refresh(&repo, &mut index)?;
                self.settle()?;
            }
            Reset::Hard => self.advance(&repo, &commit, true)?,
        }
        if from != Some(commit.id()) {
            self.move_head(&repo, from, commit.id(), "reset")?;
        }
        if how == Reset::Soft {
            return Ok(());
        }
        repo.cleanup_state().map_err(|e| self.fail(e))
    }
}

impl From<RefError> for WorktreeError {
    fn from(error: RefError) -> Self {
        Self::Ref(error)
    }
}
