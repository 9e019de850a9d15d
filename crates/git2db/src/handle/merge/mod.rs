//! Merging, repeating and taking back changes, without a worktree or in one.
//!
//! The result is computed in memory. A conflict is an answer, [`Merged::Conflicts`], after which
//! no branch, index or file has changed. A pointer of a large file is merged as a whole: the line
//! with its digest differs wherever its content does.

mod answer;
mod error;
mod place;

pub use answer::{ConflictedFile, FastForward, Merge, Merged, Version};
pub use error::MergeError;

use git2::{Commit, ErrorCode, Index, IndexConflict, IndexEntry, MergeOptions, Repository};
use place::Place;

use super::{Conflict, RepositoryHandle, Worktree, work::pointer_of};
use crate::{
    CommitId,
    commit::{Metadata, write_commit},
    repo,
};

impl RepositoryHandle {
    /// Merges the commit `from` into a branch, without a worktree.
    ///
    /// The branch changes only if it still names what was merged; nothing else changes.
    ///
    /// # Errors
    /// A worktree works on the branch; only a fast-forward is allowed and there is none; the
    /// histories are unrelated; somebody moved the branch.
    pub fn merge(
        &self,
        into: &str,
        from: &CommitId,
        options: &Merge,
    ) -> Result<Merged, MergeError> {
        merge(&Place::branch(self, into)?, from, options)
    }

    /// Repeats the change of a commit on a branch, with the author of that and the message,
    /// committer and signature of `metadata`. Of a merge, the change from its parent `mainline`,
    /// counted from 1.
    pub fn cherry_pick(
        &self,
        onto: &str,
        commit: &CommitId,
        mainline: Option<u32>,
        metadata: &Metadata,
    ) -> Result<Merged, MergeError> {
        repeat(
            &Place::branch(self, onto)?,
            commit,
            mainline,
            metadata,
            false,
        )
    }

    /// Takes the change of a commit back by a new one on a branch. Of a merge, the change from its
    /// parent `mainline`, counted from 1.
    pub fn revert(
        &self,
        on: &str,
        commit: &CommitId,
        mainline: Option<u32>,
        metadata: &Metadata,
    ) -> Result<Merged, MergeError> {
        repeat(&Place::branch(self, on)?, commit, mainline, metadata, true)
    }
}

impl Worktree {
    /// Merges the commit `from` into the branch of the worktree, whose files follow. Refused if
    /// that would lose a change that nobody committed.
    pub fn merge(&self, from: &CommitId, options: &Merge) -> Result<Merged, MergeError> {
        merge(&Place::worktree(self)?, from, options)
    }

    /// As [`RepositoryHandle::cherry_pick`], on the branch of the worktree.
    pub fn cherry_pick(
        &self,
        commit: &CommitId,
        mainline: Option<u32>,
        metadata: &Metadata,
    ) -> Result<Merged, MergeError> {
        repeat(&Place::worktree(self)?, commit, mainline, metadata, false)
    }

    /// As [`RepositoryHandle::revert`], on the branch of the worktree.
    pub fn revert(
        &self,
        commit: &CommitId,
        mainline: Option<u32>,
        metadata: &Metadata,
    ) -> Result<Merged, MergeError> {
        repeat(&Place::worktree(self)?, commit, mainline, metadata, true)
    }
}

fn merge(place: &Place<'_>, from: &CommitId, options: &Merge) -> Result<Merged, MergeError> {
    let repo = place.repo();
    let ours = place.tip()?;
    let into = CommitId::from_oid(ours.id());
    if options
        .expected
        .as_ref()
        .is_some_and(|expected| *expected != into)
    {
        return Err(place.moved());
    }
    let theirs = place.find(from)?;
    let base = match repo.merge_base(ours.id(), theirs.id()) {
        Ok(base) => base,
        Err(error) if error.code() == ErrorCode::NotFound => {
            let from = from.clone();
            return Err(MergeError::Unrelated { into, from });
        }
        Err(error) => return Err(place.fail(error)),
    };
    if base == theirs.id() {
        return Ok(Merged::UpToDate);
    }
    let is_ahead = base == ours.id();
    if is_ahead && options.fast_forward != FastForward::Never {
        place.go(&ours, &theirs, "merge: Fast-forward")?;
        return Ok(Merged::FastForward(from.clone()));
    }
    if options.fast_forward == FastForward::Only {
        let from = from.clone();
        return Err(MergeError::NotFastForward { into, from });
    }
    let mut how = MergeOptions::new();
    how.find_renames(options.renames);
    let mut index = repo
        .merge_commits(&ours, &theirs, Some(&how))
        .map_err(|e| place.fail(e))?;
    // All pointers look alike: what libgit2 takes for one large file that moved may be two.
    let found = conflicts(repo, &index).map_err(|e| place.fail(e))?;
    if options.renames && found.iter().any(ConflictedFile::is_large) {
        how.find_renames(false);
        index = repo
            .merge_commits(&ours, &theirs, Some(&how))
            .map_err(|e| place.fail(e))?;
    }
    conclude(
        place,
        index,
        &ours,
        Some(&theirs),
        &options.metadata,
        "merge",
    )
}

fn repeat(
    place: &Place<'_>,
    commit: &CommitId,
    mainline: Option<u32>,
    metadata: &Metadata,
    back: bool,
) -> Result<Merged, MergeError> {
    let repo = place.repo();
    let ours = place.tip()?;
    let change = place.find(commit)?;
    let parents = change.parent_count();
    let mainline = match mainline {
        None if parents > 1 => {
            let commit = commit.clone();
            return Err(MergeError::WhichParent { commit });
        }
        Some(number) if number == 0 || number as usize > parents => {
            let commit = commit.clone();
            return Err(MergeError::NoParent { commit, number });
        }
        // libgit2 takes a number only for a merge.
        Some(number) if parents > 1 => number,
        _ => 0,
    };
    let how = MergeOptions::new();
    let index = if back {
        repo.revert_commit(&change, &ours, mainline, Some(&how))
    } else {
        repo.cherrypick_commit(&change, &ours, mainline, Some(&how))
    }
    .map_err(|e| place.fail(e))?;
    let mut metadata = metadata.clone();
    if !back {
        let author = super::Signer::of(&change.author());
        metadata.committer.get_or_insert(metadata.author);
        metadata.author = author.author();
        metadata.author_time = Some(author.time);
    }
    let why = if back { "revert" } else { "cherry-pick" };
    conclude(place, index, &ours, None, &metadata, why)
}

/// Commits a merged index and lets the branch follow; or says what is in conflict.
fn conclude(
    place: &Place<'_>,
    mut index: Index,
    ours: &Commit<'_>,
    theirs: Option<&Commit<'_>>,
    metadata: &Metadata,
    why: &str,
) -> Result<Merged, MergeError> {
    let repo = place.repo();
    if index.has_conflicts() {
        let found = conflicts(repo, &index).map_err(|e| place.fail(e))?;
        return Ok(Merged::Conflicts(found));
    }
    let tree = index
        .write_tree_to(repo)
        .and_then(|id| repo.find_tree(id))
        .map_err(|e| place.fail(e))?;
    if theirs.is_none() && tree.id() == ours.tree_id() {
        return Ok(Merged::UpToDate);
    }
    let parents: Vec<&Commit<'_>> = [Some(ours), theirs].into_iter().flatten().collect();
    let id = write_commit(repo, &tree, &parents, metadata).map_err(MergeError::Commit)?;
    let commit = repo.find_commit(id).map_err(|e| place.fail(e))?;
    place.go(ours, &commit, why)?;
    Ok(Merged::Committed(CommitId::from_oid(id)))
}

fn conflicts(repo: &Repository, index: &Index) -> Result<Vec<ConflictedFile>, git2::Error> {
    let mut found = Vec::new();
    for conflict in index.conflicts()? {
        let IndexConflict {
            ancestor,
            our,
            their,
        } = conflict?;
        let side = [&our, &their, &ancestor].into_iter().flatten().next();
        let path = side.map(|entry| String::from_utf8_lossy(&entry.path).into_owned());
        let kind = Conflict::of(ancestor.is_some(), our.is_some(), their.is_some());
        if let (Some(path), Some(kind)) = (path, kind) {
            found.push(ConflictedFile {
                path,
                kind,
                base: version(repo, ancestor)?,
                ours: version(repo, our)?,
                theirs: version(repo, their)?,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn version(repo: &Repository, entry: Option<IndexEntry>) -> Result<Option<Version>, git2::Error> {
    let Some(entry) = entry else {
        return Ok(None);
    };
    let pointer = match entry.mode & 0o170_000 {
        0o100_000 => pointer_of(repo, entry.id)?,
        _ => None,
    };
    Ok(Some(Version {
        blob: entry.id.to_string(),
        mode: entry.mode,
        pointer,
    }))
}

/// The error for a failed operation on the repository at `path`.
fn access(path: &std::path::Path, error: git2::Error) -> MergeError {
    MergeError::Repo(repo::access(path)(error))
}
