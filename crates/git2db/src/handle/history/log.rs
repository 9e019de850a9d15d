//! The log, in git's order.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    path::{Path, PathBuf},
};

use git2::{Commit, ErrorCode, Oid, Repository};

use super::{CommitInfo, HistoryError};
use crate::{CommitId, RepositoryHandle, repo};

/// Which commits a log shows.
#[derive(Clone, Debug, Default)]
pub struct LogRange {
    /// Where it begins, each with all that came before it.
    pub from: Vec<CommitId>,
    /// What is left out, each with all that came before it: `A..B` of git is `B` without `A`.
    pub without: Vec<CommitId>,
    /// Only commits that changed this file or folder, with git's simplification: of a merge that
    /// took it from one parent, only that parent is followed. With [`without`](Self::without), a
    /// merge that took it from a parent that is left out may be shown where git, which decides by
    /// dates as it goes, shows none, or the other way round.
    pub path: Option<String>,
    /// Of merges, only the first parent.
    pub first_parent: bool,
    /// At most so many.
    pub limit: Option<usize>,
}

/// Commits one after the other, the latest first, as `git log` shows them. Reads as it is asked;
/// what [`LogRange::without`] leaves out is read at once.
#[must_use = "nothing is read before it is asked"]
pub struct Log {
    repo: Repository,
    bare: PathBuf,
    /// By time of commit, then in the order of coming.
    pending: BinaryHeap<(i64, Reverse<u64>, Oid)>,
    seen: HashSet<Oid>,
    excluded: HashSet<Oid>,
    /// Named as excluded: a commit like one of them shows nothing.
    bottom: HashSet<Oid>,
    path: Option<String>,
    first_parent: bool,
    left: Option<usize>,
    count: u64,
}

impl RepositoryHandle {
    /// The log of a range, read commit by commit.
    pub fn log(&self, range: &LogRange) -> Result<Log, HistoryError> {
        let repo = repo::open(self.path()).map_err(HistoryError::Repo)?;
        let mut excluded = HashSet::new();
        let mut pending = Vec::new();
        for commit in &range.without {
            pending.push(self.find(&repo, commit)?.id());
        }
        let bottom = pending.iter().copied().collect();
        while let Some(id) = pending.pop() {
            if excluded.insert(id) {
                let parents = parents(&repo, id).map_err(|e| self.history(e))?;
                pending.extend(parents);
            }
        }
        let mut log = Log {
            bare: self.path().to_owned(),
            pending: BinaryHeap::new(),
            seen: HashSet::new(),
            excluded,
            bottom,
            path: range.path.clone(),
            first_parent: range.first_parent,
            left: range.limit,
            count: 0,
            repo,
        };
        for commit in &range.from {
            self.find(&log.repo, commit)?;
            log.push(commit.oid()).map_err(|e| self.history(e))?;
        }
        Ok(log)
    }
}

/// Parents that are in the repository; a shallow one ends somewhere.
fn parents(repo: &Repository, id: Oid) -> Result<Vec<Oid>, git2::Error> {
    match repo.find_commit(id) {
        Ok(commit) => Ok(commit.parent_ids().collect()),
        Err(error) if error.code() == ErrorCode::NotFound && repo.is_shallow() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Log {
    fn push(&mut self, id: Oid) -> Result<(), git2::Error> {
        if self.excluded.contains(&id) || !self.seen.insert(id) {
            return Ok(());
        }
        match self.repo.find_commit(id) {
            Ok(commit) => {
                let time = commit.committer().when().seconds();
                self.count += 1;
                self.pending.push((time, Reverse(self.count), id));
                Ok(())
            }
            // The first commits of a shallow history name parents that were left out.
            Err(error) if error.code() == ErrorCode::NotFound && self.repo.is_shallow() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next commit that is shown.
    fn step(&mut self) -> Result<Option<CommitInfo>, git2::Error> {
        while let Some((_, _, id)) = self.pending.pop() {
            let (info, follow, shown) = {
                let commit = self.repo.find_commit(id)?;
                let (follow, shown) = self.simplify(&commit)?;
                (CommitInfo::of(&commit), follow, shown)
            };
            for parent in follow {
                self.push(parent)?;
            }
            if shown {
                return Ok(Some(info));
            }
        }
        Ok(None)
    }

    /// Which parents are followed and whether the commit is shown, as `try_to_simplify_commit` of
    /// git's `revision.c` decides.
    fn simplify(&self, commit: &Commit<'_>) -> Result<(Vec<Oid>, bool), git2::Error> {
        let mut follow: Vec<Oid> = commit.parent_ids().collect();
        let second = follow.get(1).copied();
        if self.first_parent {
            follow.truncate(1);
        }
        let Some(path) = &self.path else {
            return Ok((follow, true));
        };
        let mine = Self::at(commit, path)?;
        let (mut change, mut other_change) = (false, false);
        // git looks at whether a second parent is relevant also where it does not compare with it.
        let mut relevant = second.is_some_and(|second| self.is_relevant(second));
        let mut known = 0;
        for &parent in &follow {
            let parent = match self.repo.find_commit(parent) {
                Ok(parent) => parent,
                Err(error) if error.code() == ErrorCode::NotFound && self.repo.is_shallow() => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            known += 1;
            let is_relevant = self.is_relevant(parent.id());
            relevant |= is_relevant;
            if Self::at(&parent, path)? == mine {
                if is_relevant {
                    return Ok((vec![parent.id()], false));
                }
            } else if is_relevant {
                change = true;
            } else {
                other_change = true;
            }
        }
        let shown = match known {
            0 => mine.is_some(),
            _ if relevant => change,
            _ => other_change,
        };
        Ok((follow, shown))
    }

    fn is_relevant(&self, id: Oid) -> bool {
        !self.excluded.contains(&id) || self.bottom.contains(&id)
    }

    /// What lies at the path: object and mode.
    fn at(commit: &Commit<'_>, path: &str) -> Result<Option<(Oid, i32)>, git2::Error> {
        match commit
            .tree()?
            .get_path(Path::new(path.trim_end_matches('/')))
        {
            Ok(entry) => Ok(Some((entry.id(), entry.filemode_raw()))),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Iterator for Log {
    type Item = Result<CommitInfo, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == Some(0) {
            return None;
        }
        match self.step() {
            Ok(None) => None,
            Ok(Some(commit)) => {
                self.left = self.left.map(|left| left - 1);
                Some(Ok(commit))
            }
            Err(error) => {
                // What comes after is not known.
                self.left = Some(0);
                Some(Err(HistoryError::Repo(repo::access(&self.bare)(error))))
            }
        }
    }
}
