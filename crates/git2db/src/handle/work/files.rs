//! Restoring, removing and moving files.

use std::{fs, path::Path};

use git2::IndexEntry;

use super::{
    State, StatusOptions, WorktreeError,
    advance::find,
    io_error, is_within, large, named, normal,
    odd::{lossy, utf8},
    stage::{forget, no_path, refused},
};
use crate::{CommitId, Worktree, commit::check_path};

impl Worktree {
    /// Lets the files at and below `paths` be what is staged, or, with `from`, what a commit has:
    /// then what is staged too. Changes that nobody committed are lost. Untracked files stay.
    ///
    /// # Errors
    /// Nothing is known of a path; a file is in conflict and no commit is given.
    pub fn restore(&self, paths: &[&str], from: Option<&CommitId>) -> Result<(), WorktreeError> {
        let (repo, mut index) = self.opened()?;
        let open: Vec<String> = self
            .conflicts(&index)?
            .into_iter()
            .map(|f| f.path)
            .collect();
        let tree = if let Some(commit) = from {
            let commit = (self.repository())
                .find(&repo, commit)
                .map_err(WorktreeError::History)?;
            commit.tree().map_err(|e| self.fail(e))?
        } else {
            let within = |path: &String| paths.iter().any(|wanted| is_within(path, wanted));
            let open: Vec<String> = open.iter().filter(|path| within(path)).cloned().collect();
            if !open.is_empty() {
                return Err(super::stage::conflicted(open));
            }
            // A tree of what is staged, which is known to be without the conflicts elsewhere.
            let mut staged = git2::Index::new().map_err(|e| self.fail(e))?;
            for entry in index.iter().filter(large::is_merged) {
                staged.add(&entry).map_err(|e| self.fail(e))?;
            }
            let tree = staged.write_tree_to(&repo).map_err(|e| self.fail(e))?;
            repo.find_tree(tree).map_err(|e| self.fail(e))?
        };
        self.refresh(&repo, &mut index)?;
        let changed = self.status(StatusOptions {
            untracked: false,
            ignored: false,
        })?;
        let changed: Vec<String> = changed.into_iter().map(|file| file.path).collect();
        let mut plan = std::collections::BTreeMap::new();
        for wanted in paths {
            let wanted = normal(wanted).ok_or_else(|| no_path(wanted))?;
            let mut known = false;
            let committed = files_of(&tree).map_err(|e| self.fail(e))?;
            let staged = index.iter().map(|entry| entry.path);
            for path in committed.into_iter().chain(staged) {
                if !is_within(&lossy(&path), wanted) {
                    continue;
                }
                known = true;
                let path = utf8(&path)?.to_owned();
                let version = find(&tree, &path).map_err(|e| self.fail(e))?;
                let entry = index.get_path(Path::new(&path), 0);
                let same = entry.map(|entry| (entry.id, entry.mode)) == version;
                if !same || changed.contains(&path) {
                    plan.insert(path, version);
                }
            }
            if !known {
                return Err(no_path(wanted));
            }
        }
        self.write(&repo, &mut index, &tree, &plan)
    }

    /// Removes files, also below folders, from what is staged and, unless `keep` says so, from the
    /// worktree.
    ///
    /// # Errors
    /// Without `force`: a file has changes that nobody committed. Nothing is known of a path.
    pub fn remove(&self, paths: &[&str], keep: bool, force: bool) -> Result<(), WorktreeError> {
        let changed = self.status(StatusOptions {
            untracked: false,
            ignored: false,
        })?;
        let (repo, mut index) = self.opened()?;
        let mut chosen: Vec<String> = Vec::new();
        for wanted in paths {
            let wanted = normal(wanted).ok_or_else(|| no_path(wanted))?;
            let before = chosen.len();
            for entry in index.iter() {
                if is_within(&lossy(&entry.path), wanted) {
                    chosen.push(utf8(&entry.path)?.to_owned());
                }
            }
            if chosen.len() == before {
                return Err(no_path(wanted));
            }
        }
        chosen.sort();
        chosen.dedup();
        // What is kept in the worktree is lost only if something else is staged.
        let is_lost = |state: &State| match state {
            State::Tracked { staged, unstaged } if keep => staged.is_some() && unstaged.is_some(),
            State::Tracked { staged, unstaged } => {
                staged.is_some()
                    || unstaged
                        .as_ref()
                        .is_some_and(|c| *c != super::Change::Deleted)
            }
            _ => false,
        };
        let lost: Vec<String> = changed
            .into_iter()
            .filter(|file| is_lost(&file.state) && chosen.binary_search(&file.path).is_ok())
            .map(|file| file.path)
            .collect();
        if !force && !lost.is_empty() {
            return Err(WorktreeError::LocalChanges { paths: named(lost) });
        }
        self.refresh(&repo, &mut index)?;
        for path in &chosen {
            if !keep {
                self.remove_file(path)?;
            }
            forget(&mut index, path.as_bytes()).map_err(|e| self.fail(e))?;
        }
        index.write().map_err(|e| self.fail(e))?;
        self.settle()
    }

    /// Moves a file or folder that git knows, with what is staged of it; `to` is its new path.
    ///
    /// # Errors
    /// Git does not know it, something lies at `to`, or `to` is not a path to commit.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), WorktreeError> {
        let (repo, mut index) = self.opened()?;
        let from = normal(from).filter(|path| !path.is_empty());
        let from = from.ok_or_else(|| no_path(""))?;
        let to = normal(to).ok_or_else(|| no_path(to))?;
        check_path(to).map_err(WorktreeError::Commit)?;
        if is_within(to, from) && to != from {
            return Err(refused(to, "a folder cannot be moved into itself"));
        }
        let moved: Vec<IndexEntry> = index
            .iter()
            .filter(|entry| is_within(&lossy(&entry.path), from))
            .collect();
        if moved.is_empty() || fs::symlink_metadata(self.place(from)).is_err() {
            return Err(no_path(from));
        }
        if let Some(open) = moved.iter().find(|entry| !large::is_merged(entry)) {
            return Err(super::stage::conflicted(vec![lossy(&open.path)]));
        }
        let known = index.iter().any(|entry| is_within(&lossy(&entry.path), to));
        if known || fs::symlink_metadata(self.place(to)).is_ok() {
            return Err(WorktreeError::Exists {
                path: to.to_owned(),
            });
        }
        self.refresh(&repo, &mut index)?;
        let target = self.place(to);
        if let Some(above) = target.parent() {
            fs::create_dir_all(above).map_err(|e| io_error("create", above, e))?;
        }
        fs::rename(self.place(from), &target).map_err(|e| io_error("rename to", &target, e))?;
        for mut entry in moved {
            let rest = entry.path[from.len()..].to_vec();
            forget(&mut index, &entry.path).map_err(|e| self.fail(e))?;
            entry.path = [to.as_bytes(), &rest].concat();
            index.add(&entry).map_err(|e| self.fail(e))?;
        }
        index.write().map_err(|e| self.fail(e))?;
        // The folder that is empty now goes, as git does not know of empty ones.
        if let Some(above) = Path::new(from).parent() {
            self.remove_file(&above.join("-").to_string_lossy())?;
        }
        // What was renamed has a new time, which is noted for large files.
        large_again(self)
    }
}

fn large_again(worktree: &Worktree) -> Result<(), WorktreeError> {
    let (repo, mut index) = worktree.opened()?;
    worktree.refresh(&repo, &mut index)?;
    worktree.settle()
}

/// Paths of all files of a tree.
fn files_of(tree: &git2::Tree<'_>) -> Result<Vec<Vec<u8>>, git2::Error> {
    let mut files = Vec::new();
    tree.walk(git2::TreeWalkMode::PreOrder, |folder, entry| {
        if entry.kind() != Some(git2::ObjectType::Tree) {
            files.push([folder.as_bytes(), entry.name_bytes()].concat());
        }
        git2::TreeWalkResult::Ok
    })?;
    Ok(files)
}
