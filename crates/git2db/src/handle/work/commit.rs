//! Committing what is staged.

use git2::{Commit, ErrorCode, Index, Oid, Repository, Tree};

use super::{WorktreeError, stage::conflicted};
use crate::{
    CommitId, Worktree,
    commit::{Metadata, is_moved, write_commit},
};

impl Worktree {
    /// Commits what is staged to the branch of the worktree, or to a detached `HEAD`. A merge that
    /// stock git began here is concluded.
    ///
    /// # Errors
    /// Files are in conflict; nothing is staged; somebody else moved the branch meanwhile.
    pub fn commit(&self, metadata: &Metadata) -> Result<CommitId, WorktreeError> {
        let (mut repo, mut index) = self.opened()?;
        let merged = merge_heads(&mut repo).map_err(|e| self.fail(e))?;
        let tree = self.staged_tree(&repo, &mut index)?;
        let head = self.head_commit(&repo)?;
        let was = head.as_ref().map(Commit::tree_id);
        if merged.is_empty() && was.is_some_and(|was| was == tree.id()) {
            return Err(WorktreeError::NothingToCommit);
        }
        if was.is_none() && tree.is_empty() {
            return Err(WorktreeError::NothingToCommit);
        }
        let mut parents: Vec<Commit<'_>> = head.iter().cloned().collect();
        for id in merged {
            parents.push(repo.find_commit(id).map_err(|e| self.fail(e))?);
        }
        let parents: Vec<&Commit<'_>> = parents.iter().collect();
        let id = write_commit(&repo, &tree, &parents, metadata).map_err(WorktreeError::Commit)?;
        self.move_head(&repo, head.as_ref().map(Commit::id), id, "commit")?;
        repo.cleanup_state().map_err(|e| self.fail(e))?;
        Ok(CommitId::from_oid(id))
    }

    /// Puts a commit of what is staged in place of the last one, with its parents. Without
    /// `metadata`, it says what that said, made by the same people at the same times; a signature
    /// goes.
    pub fn amend(&self, metadata: Option<&Metadata>) -> Result<CommitId, WorktreeError> {
        let (repo, mut index) = self.opened()?;
        let tree = self.staged_tree(&repo, &mut index)?;
        let last = self.head_commit(&repo)?.ok_or(WorktreeError::NoCommits)?;
        let parents: Vec<Commit<'_>> = last.parents().collect();
        if parents.len() != last.parent_count() {
            let error = git2::Error::from_str("a parent of the last commit is missing");
            return Err(self.fail(error));
        }
        let parents: Vec<&Commit<'_>> = parents.iter().collect();
        let id = if let Some(metadata) = metadata {
            write_commit(&repo, &tree, &parents, metadata).map_err(WorktreeError::Commit)?
        } else {
            let message = String::from_utf8_lossy(last.message_raw_bytes()).into_owned();
            let (author, committer) = (last.author(), last.committer());
            repo.commit(None, &author, &committer, &message, &tree, &parents)
                .map_err(|e| self.fail(e))?
        };
        self.move_head(&repo, Some(last.id()), id, "commit (amend)")?;
        Ok(CommitId::from_oid(id))
    }

    fn staged_tree<'r>(
        &self,
        repo: &'r Repository,
        index: &mut Index,
    ) -> Result<Tree<'r>, WorktreeError> {
        let open = self.conflicts(index)?;
        if !open.is_empty() {
            return Err(conflicted(open.into_iter().map(|file| file.path).collect()));
        }
        index
            .write_tree_to(repo)
            .and_then(|id| repo.find_tree(id))
            .map_err(|e| self.fail(e))
    }

    /// The last commit; `None` before the first.
    pub(in crate::handle) fn head_commit<'r>(
        &self,
        repo: &'r Repository,
    ) -> Result<Option<Commit<'r>>, WorktreeError> {
        match repo.head().and_then(|head| head.peel_to_commit()) {
            Ok(commit) => Ok(Some(commit)),
            Err(error) if error.code() == ErrorCode::UnbornBranch => Ok(None),
            Err(error) => Err(self.fail(error)),
        }
    }

    pub(super) fn head_tree<'r>(
        &self,
        repo: &'r Repository,
    ) -> Result<Option<Tree<'r>>, WorktreeError> {
        let head = self.head_commit(repo)?;
        head.map(|commit| commit.tree().map_err(|e| self.fail(e)))
            .transpose()
    }

    /// Lets the branch of the worktree, or its detached `HEAD`, name `to` if it still names
    /// `from`.
    pub(in crate::handle) fn move_head(
        &self,
        repo: &Repository,
        from: Option<Oid>,
        to: Oid,
        why: &str,
    ) -> Result<(), WorktreeError> {
        let head = repo.find_reference("HEAD").map_err(|e| self.fail(e))?;
        let branch = head.symbolic_target().ok().flatten().map(ToOwned::to_owned);
        let name = branch.unwrap_or_else(|| "HEAD".to_owned());
        let moved = match from {
            Some(from) => repo.reference_matching(&name, to, true, from, why),
            None => repo.reference(&name, to, false, why),
        };
        match moved {
            Ok(_) => Ok(()),
            Err(error) if is_moved(&error) => Err(WorktreeError::Moved { branch: name }),
            Err(error) => Err(self.fail(error)),
        }
    }
}

/// The commits that stock git is merging in this worktree.
fn merge_heads(repo: &mut Repository) -> Result<Vec<Oid>, git2::Error> {
    let mut found = Vec::new();
    match repo.mergehead_foreach(|&id| {
        found.push(id);
        true
    }) {
        Err(error) if error.code() != ErrorCode::NotFound => Err(error),
        _ => Ok(found),
    }
}
