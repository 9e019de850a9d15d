//! Staging, and taking back what was staged.

use std::{collections::BTreeSet, fs, io::Write as _, path::Path};

use git2::{Delta, DiffOptions, ErrorCode, Index, IndexEntry, IndexTime, Repository, Tree};

use super::{
    State, StatusOptions, WorktreeError,
    ignore::Ignore,
    io_error, is_within, large, named, normal,
    odd::{self, refuse_replaced},
};
use crate::{
    Worktree,
    commit::{ATTRIBUTES, CommitError, check_path, is_large},
    lfs::track_line,
};

impl Worktree {
    /// Stages the files at `paths` as they are now: new, changed and deleted ones, those below a
    /// folder, and what solves a conflict. Paths are taken as they are, not as patterns.
    ///
    /// A `*.safetensors` of more than 10 MiB, and any file above the limit of [`crate::Limits`],
    /// goes to LFS also if no attribute says so: the root's `.gitattributes` gets a line for it,
    /// which is staged too.
    ///
    /// A large file that was written within the last second delays the call until that is over.
    ///
    /// # Errors
    /// There is nothing at a path, or it is ignored, or it is not one to commit.
    pub fn add(&self, paths: &[&str]) -> Result<(), WorktreeError> {
        self.stage(Some(paths))
    }

    /// Stages all files as they are now, as `git add --all`.
    pub fn add_all(&self) -> Result<(), WorktreeError> {
        self.stage(None)
    }

    fn stage(&self, paths: Option<&[&str]>) -> Result<(), WorktreeError> {
        let wanted: Vec<&str> = match paths {
            Some(paths) => paths
                .iter()
                .map(|&path| normal(path).ok_or_else(|| no_path(path)))
                .collect::<Result<_, _>>()?,
            None => vec![""],
        };
        let mut chosen = BTreeSet::new();
        for file in self.status(StatusOptions::default())? {
            let is_changed = match &file.state {
                State::Tracked { unstaged, .. } => unstaged.is_some(),
                State::Untracked | State::Conflicted(_) => true,
                State::Ignored => false,
            };
            if is_changed && wanted.iter().any(|wanted| is_within(&file.path, wanted)) {
                chosen.insert(file.path);
            }
        }
        // Opened only now: the index of the status is not to be written.
        let (repo, mut index) = self.opened()?;
        for path in &wanted {
            self.check_there(&repo, &index, path, &chosen)?;
        }
        self.refresh(&repo, &mut index)?;
        if self.track_large(&repo, &chosen)? {
            chosen.insert(ATTRIBUTES.to_owned());
        }
        let (there, gone): (Vec<_>, Vec<_>) = chosen.iter().partition(|path| self.is_there(path));
        for path in &gone {
            refuse_replaced(path, |path| is_known(&index, path))?;
        }
        for path in gone {
            forget(&mut index, path.as_bytes()).map_err(|e| self.fail(e))?;
        }
        for path in there {
            check_path(path).map_err(WorktreeError::Commit)?;
            index.add_path(Path::new(path)).map_err(|e| self.fail(e))?;
        }
        index.write().map_err(|e| self.fail(e))?;
        self.settle()
    }

    /// Whether something lies at a path that can be staged. A folder where a file was is none;
    /// one that git lists as a whole is a repository of its own, which is refused by its name.
    fn is_there(&self, path: &str) -> bool {
        path.ends_with('/')
            || fs::symlink_metadata(self.place(path)).is_ok_and(|found| !found.is_dir())
    }

    /// Something must be at a path that is named.
    fn check_there(
        &self,
        repo: &Repository,
        index: &Index,
        path: &str,
        chosen: &BTreeSet<String>,
    ) -> Result<(), WorktreeError> {
        let is_known = path.is_empty()
            || chosen.iter().any(|found| is_within(found, path))
            || index.iter().any(|entry| {
                std::str::from_utf8(&entry.path).is_ok_and(|found| is_within(found, path))
            });
        if is_known {
            return Ok(());
        }
        if let Ok(found) = fs::symlink_metadata(self.place(path)) {
            let ignored = Ignore::of(self.path(), repo, index)
                .and_then(|rules| rules.ignores(path, found.is_dir()));
            if ignored.map_err(|e| self.fail(e))? {
                let path = path.to_owned();
                return Err(WorktreeError::Ignored { path });
            }
            check_path(path).map_err(WorktreeError::Commit)?;
            // A folder without files.
            return Ok(());
        }
        Err(no_path(path))
    }

    /// Gives large files among `paths` to LFS; whether the root's attributes were changed.
    fn track_large(
        &self,
        repo: &Repository,
        paths: &BTreeSet<String>,
    ) -> Result<bool, WorktreeError> {
        let mut lines = String::new();
        for path in paths {
            let size = match fs::symlink_metadata(self.place(path)) {
                Ok(found) if found.is_file() => found.len(),
                _ => continue,
            };
            if !is_large(path, size) || large::is_lfs(repo, path).map_err(|e| self.fail(e))? {
                continue;
            }
            let line = track_line(path)
                .ok_or_else(|| refused(path, "it is too long for a line of .gitattributes"))?;
            lines.push_str(&line);
            lines.push('\n');
        }
        if lines.is_empty() {
            return Ok(false);
        }
        let place = self.place(ATTRIBUTES);
        let write = |e| io_error("write", &place, e);
        let mut text = match fs::symlink_metadata(&place) {
            Ok(found) if found.is_file() => fs::read(&place).map_err(write)?,
            Ok(_) => return Err(refused(ATTRIBUTES, "it is not a file")),
            Err(_) => Vec::new(),
        };
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(lines.as_bytes());
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(self.path())
            .map_err(write)?;
        file.write_all(&text).map_err(write)?;
        file.persist(&place).map_err(|e| write(e.error))?;
        Ok(true)
    }

    /// Lets what is staged at `paths` be what the last commit has there, also below folders; files
    /// stay as they are. Without `paths`, everywhere.
    pub fn unstage(&self, paths: Option<&[&str]>) -> Result<(), WorktreeError> {
        let (repo, mut index) = self.opened()?;
        self.refresh(&repo, &mut index)?;
        let tree = self.head_tree(&repo)?;
        for path in paths.unwrap_or(&[""]) {
            let path = normal(path).ok_or_else(|| no_path(path))?;
            let known = take_back(&repo, &mut index, tree.as_ref(), path);
            if !known.map_err(|e| self.fail(e))? {
                return Err(no_path(path));
            }
        }
        index.write().map_err(|e| self.fail(e))?;
        // What is staged now may be what the file is.
        self.refresh(&repo, &mut index)?;
        self.settle()
    }
}

/// Puts entries of `tree` at and below `path` into the index; whether there is anything.
fn take_back(
    repo: &Repository,
    index: &mut Index,
    tree: Option<&Tree<'_>>,
    path: &str,
) -> Result<bool, git2::Error> {
    let mut options = DiffOptions::new();
    options
        .include_typechange(true)
        .include_unmodified(true)
        .disable_pathspec_match(true);
    if !path.is_empty() {
        options.pathspec(path);
    }
    let mut changes = Vec::new();
    let mut is_known = path.is_empty();
    let diff = repo.diff_tree_to_index(tree, Some(index), Some(&mut options))?;
    for delta in diff.deltas() {
        is_known = true;
        if delta.status() == Delta::Unmodified {
            continue;
        }
        let old = delta.old_file();
        let bytes = old.path_bytes().or(delta.new_file().path_bytes());
        let bytes = bytes.unwrap_or_default().to_vec();
        let was = (!old.id().is_zero()).then(|| (old.id(), u32::from(old.mode())));
        changes.push((bytes, was));
    }
    for (bytes, was) in changes {
        // Of a conflict, all three versions go.
        let committed = match (was, tree) {
            (Some(was), _) => Some(was),
            (None, Some(tree)) => match tree.get_path(odd::path(&bytes)) {
                Ok(entry) => Some((entry.id(), entry.filemode() as u32)),
                Err(error) if error.code() == ErrorCode::NotFound => None,
                Err(error) => return Err(error),
            },
            (None, None) => None,
        };
        forget(index, &bytes)?;
        if let Some((id, mode)) = committed {
            index.add(&entry(bytes, id, mode))?;
        }
    }
    Ok(is_known)
}

/// An entry whose file has yet to be looked at.
fn entry(path: Vec<u8>, id: git2::Oid, mode: u32) -> IndexEntry {
    IndexEntry {
        ctime: IndexTime::new(0, 0),
        mtime: IndexTime::new(0, 0),
        dev: 0,
        ino: 0,
        mode,
        uid: 0,
        gid: 0,
        file_size: 0,
        id,
        flags: 0,
        flags_extended: 0,
        path,
    }
}

/// Takes a path out of the index, with all versions of a conflict.
pub(super) fn forget(index: &mut Index, path: &[u8]) -> Result<(), git2::Error> {
    for stage in 0..=3 {
        match index.remove(odd::path(path), stage) {
            Err(error) if error.code() != ErrorCode::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the index has the path, or versions of a conflict.
pub(super) fn is_known(index: &Index, path: &str) -> bool {
    (0..4).any(|stage| index.get_path(Path::new(path), stage).is_some())
}

pub(super) fn refused(path: &str, why: &str) -> WorktreeError {
    WorktreeError::Commit(CommitError::InvalidPath {
        path: path.to_owned(),
        why: why.to_owned(),
    })
}

pub(super) fn no_path(path: &str) -> WorktreeError {
    WorktreeError::NoPath {
        path: path.to_owned(),
    }
}

pub(super) fn conflicted(paths: Vec<String>) -> WorktreeError {
    WorktreeError::Conflicted {
        paths: named(paths),
    }
}
