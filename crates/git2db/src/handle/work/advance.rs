//! Letting the files of a worktree be those of another commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use git2::{Commit, DiffOptions, ErrorCode, Index, ObjectType, Oid, Repository, Tree};

use super::{
    Change, FileStatus, State, StatusOptions, WorktreeError, io_error, named,
    odd::{refuse_replaced, utf8},
    stage::{forget, is_known},
};
use crate::{Worktree, commit::ATTRIBUTES, filter, libgit, store::StoreError};

/// The new version of each path that is written: what it is to be, `None` if it is to go.
type Plan = BTreeMap<String, Option<(Oid, u32)>>;

impl Worktree {
    /// Lets files and index be those of `target`, where that differs from the last commit.
    /// Nothing is touched if that would lose a change that nobody committed; with `force` such
    /// changes of tracked files go, and untracked files go where a file is to be.
    ///
    /// `HEAD` stays. A large file whose object is not in the store, or was found damaged on the
    /// way, is its pointer.
    pub(in crate::handle) fn advance(
        &self,
        repo: &Repository,
        target: &Commit<'_>,
        force: bool,
    ) -> Result<(), WorktreeError> {
        let local = self.status(StatusOptions {
            untracked: true,
            ignored: true,
        })?;
        let head = self.head_tree(repo)?;
        let tree = target.tree().map_err(|e| self.fail(e))?;
        let mut plan = self.changes(repo, head.as_ref(), &tree)?;
        let mut index = repo.index().map_err(|e| self.fail(e))?;
        self.refresh(repo, &mut index)?;
        if force {
            let at = |path: &str| find(&tree, path).map_err(|e| self.fail(e));
            for file in local.iter().filter(|file| is_tracked(file)) {
                let in_head = |path: &str| {
                    let found = head.as_ref().map(|tree| find(tree, path));
                    found.is_some_and(|found| found.is_ok_and(|found| found.is_some()))
                };
                refuse_replaced(&file.path, |path| is_known(&index, path) || in_head(path))?;
                plan.insert(file.path.clone(), at(&file.path)?);
                if let State::Tracked {
                    staged: Some(Change::Renamed { from }),
                    ..
                } = &file.state
                {
                    plan.insert(from.clone(), at(from)?);
                }
            }
            // A file that was taken out of the index and is there again is nobody's but the user's.
            plan.retain(|path, entry| entry.is_some() || is_known(&index, path));
        } else {
            let lost = lost(&local, &mut plan, &index);
            if !lost.is_empty() {
                return Err(WorktreeError::LocalChanges { paths: named(lost) });
            }
        }
        self.write(repo, &mut index, &tree, &plan)
    }

    /// Lets files and index be those of `to` again, after [`advance`](Self::advance) to `from`.
    pub(in crate::handle) fn go_back(
        &self,
        repo: &Repository,
        from: &Commit<'_>,
        to: &Commit<'_>,
    ) -> Result<(), WorktreeError> {
        let tree = to.tree().map_err(|e| self.fail(e))?;
        let old = from.tree().map_err(|e| self.fail(e))?;
        let plan = self.changes(repo, Some(&old), &tree)?;
        let mut index = repo.index().map_err(|e| self.fail(e))?;
        self.refresh(repo, &mut index)?;
        self.write(repo, &mut index, &tree, &plan)
    }

    /// What is written to come from one tree to another.
    ///
    /// # Errors
    /// A name among it is not UTF-8.
    fn changes(
        &self,
        repo: &Repository,
        from: Option<&Tree<'_>>,
        to: &Tree<'_>,
    ) -> Result<Plan, WorktreeError> {
        let mut options = DiffOptions::new();
        options.include_typechange(true);
        let mut plan = Plan::new();
        for delta in repo
            .diff_tree_to_tree(from, Some(to), Some(&mut options))
            .map_err(|e| self.fail(e))?
            .deltas()
        {
            let (old, new) = (delta.old_file(), delta.new_file());
            let path = new.path_bytes().or(old.path_bytes()).unwrap_or_default();
            let version = (!new.id().is_zero()).then(|| (new.id(), u32::from(new.mode())));
            plan.insert(utf8(path)?.to_owned(), version);
        }
        Ok(plan)
    }

    /// Lets the files at `plan` be those of `tree`, and the index too.
    pub(super) fn write(
        &self,
        repo: &Repository,
        index: &mut Index,
        tree: &Tree<'_>,
        plan: &Plan,
    ) -> Result<(), WorktreeError> {
        // Old files go first: libgit2 would read them to see whether they changed.
        for path in plan.keys().rev() {
            self.remove_file(path)?;
            forget(index, path.as_bytes()).map_err(|e| self.fail(e))?;
        }
        index.write().map_err(|e| self.fail(e))?;
        // Attributes first: they decide how the other files are written.
        let is_attributes = |path: &&str| path.rsplit('/').next() == Some(ATTRIBUTES);
        let new = plan.iter().filter(|(_, version)| version.is_some());
        let (attributes, others): (Vec<_>, Vec<_>) =
            new.map(|(path, _)| path.as_str()).partition(is_attributes);
        self.check_out(index, tree, &attributes)?;
        self.check_out(index, tree, &others)?;
        self.date_back(repo, index, &others)?;
        self.settle()
    }

    fn check_out(
        &self,
        index: &mut Index,
        tree: &Tree<'_>,
        paths: &[&str],
    ) -> Result<(), WorktreeError> {
        while let Err(error) = libgit::recreate(self.path(), tree.id(), paths) {
            match filter::take_failure() {
                // The object is put aside now, so that its pointer stays in the next round.
                Some(StoreError::Mismatch { oid, detail }) => {
                    tracing::warn!(%oid, detail, "a damaged object is not put in place");
                    for path in paths {
                        self.remove_file(path)?;
                    }
                }
                Some(failure) => return Err(WorktreeError::Store(failure)),
                None => return Err(self.fail(error)),
            }
        }
        // It was written through another index.
        index.read(true).map_err(|e| self.fail(e))
    }

    /// Removes a file or link, and folders that are empty then. What lies behind a link to a
    /// folder is not ours.
    pub(super) fn remove_file(&self, path: &str) -> Result<(), WorktreeError> {
        let place = self.place(path);
        let mut above = self.path().to_owned();
        for part in Path::new(path)
            .parent()
            .into_iter()
            .flat_map(Path::components)
        {
            above.push(part);
            match fs::symlink_metadata(&above) {
                Ok(found) if found.is_dir() => {}
                _ => return Ok(()),
            }
        }
        match fs::symlink_metadata(&place) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => fs::remove_file(&place).map_err(|e| io_error("remove", &place, e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", &place, error)),
        }
        let mut folder = place.parent();
        while let Some(path) = folder.filter(|path| *path != self.path()) {
            if fs::remove_dir(path).is_err() {
                // It holds something else.
                break;
            }
            folder = path.parent();
        }
        Ok(())
    }
}

/// The file at a path of a tree.
pub(super) fn find(tree: &Tree<'_>, path: &str) -> Result<Option<(Oid, u32)>, git2::Error> {
    match tree.get_path(Path::new(path)) {
        Ok(entry) if entry.kind() == Some(ObjectType::Tree) => Ok(None),
        Ok(entry) => Ok(Some((entry.id(), entry.filemode() as u32))),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_tracked(file: &FileStatus) -> bool {
    matches!(file.state, State::Tracked { .. } | State::Conflicted(_))
}

/// Local changes that `plan` would overwrite. What is staged as it is to be leaves the plan.
fn lost(local: &[FileStatus], plan: &mut Plan, index: &Index) -> Vec<String> {
    let mut lost = Vec::new();
    let written: BTreeSet<String> = plan
        .iter()
        .filter(|(_, version)| version.is_some())
        .map(|(path, _)| path.clone())
        .collect();
    for file in local {
        let path = &file.path;
        let mut paths = vec![path];
        let is_clean = match &file.state {
            State::Tracked { staged, unstaged } => {
                if let Some(Change::Renamed { from }) = staged {
                    paths.push(from);
                }
                unstaged.is_none()
            }
            _ => false,
        };
        for &path in &paths {
            let Some(version) = plan.get(path) else {
                continue;
            };
            let staged = index
                .get_path(Path::new(path), 0)
                .map(|entry| (entry.id, entry.mode));
            // git overwrites single files that are ignored.
            let is_ignored = file.state == State::Ignored;
            if is_clean && staged == *version {
                plan.remove(path);
            } else if !is_ignored {
                lost.push(path.clone());
            }
        }
        // A file where a folder is to be, or the other way round. What is deleted is not in the
        // way.
        let is_there = !matches!(
            &file.state,
            State::Tracked {
                unstaged: Some(Change::Deleted),
                ..
            } | State::Tracked {
                staged: Some(Change::Deleted),
                unstaged: None,
            }
        );
        if is_there && !plan.contains_key(path) && is_in_the_way(path, &written) {
            lost.push(path.clone());
        }
    }
    lost
}

fn is_in_the_way(path: &str, written: &BTreeSet<String>) -> bool {
    let path = path.trim_end_matches('/');
    let below = format!("{path}/");
    let is_folder = written
        .range(below.clone()..)
        .next()
        .is_some_and(|next| next.starts_with(&below));
    let above = path.match_indices('/').map(|(at, _)| &path[..at]);
    is_folder || above.into_iter().any(|folder| written.contains(folder))
}
