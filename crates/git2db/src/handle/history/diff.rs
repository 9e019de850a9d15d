//! What differs between two commits, in bytes as their users see them.

use git2::{Delta, Diff, DiffFindOptions, DiffOptions, FileMode, ObjectType, Oid, Repository};

use super::HistoryError;
use crate::{
    CommitId, RepositoryHandle,
    lfs::{MAX_POINTER_BYTES, Pointer},
};

/// One file that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where it lies now; for a removed file, where it lay.
    pub path: String,
    /// What happened to it.
    pub kind: DifferenceKind,
    /// What it was.
    pub before: Option<FileVersion>,
    /// What it is.
    pub after: Option<FileVersion>,
}

/// What happened to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its content or mode changed.
    Modified,
    /// A file became a link or the other way round.
    TypeChanged,
    /// It moved, with half of its content at least, or all of it if it is a large file.
    Renamed {
        /// Where it lay.
        from: String,
    },
}

/// A file in one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    /// The git blob, 40 hexadecimal digits.
    pub blob: String,
    /// The mode that git notes, such as `0o100644`.
    pub mode: u32,
    /// Bytes of the content: of a large file, not of its pointer.
    pub bytes: u64,
    /// What the blob points to, for a file in LFS.
    pub pointer: Option<Pointer>,
}

impl RepositoryHandle {
    /// What changed from one commit to another, ordered by path; `None` stands for no files at
    /// all. With `path`, only what lies there or below.
    ///
    /// Renames are found as by `git diff -M`: files that are the same first, then those of which
    /// half or more is the same. libgit2 measures that in its own way, so that close cases may be
    /// told otherwise than by git.
    pub fn diff(
        &self,
        from: Option<&CommitId>,
        to: Option<&CommitId>,
        path: Option<&str>,
    ) -> Result<Vec<Difference>, HistoryError> {
        let repo = self.repo().map_err(HistoryError::Repo)?;
        let tree = |commit: Option<&CommitId>| match commit {
            Some(commit) => {
                let commit = self.find(&repo, commit)?;
                commit.tree().map(Some).map_err(|e| self.history(e))
            }
            None => Ok(None),
        };
        let (old, new) = (tree(from)?, tree(to)?);
        let mut options = DiffOptions::new();
        options
            .include_typechange(true)
            .disable_pathspec_match(true);
        if let Some(path) = path {
            options.pathspec(path);
        }
        let found = || -> Result<Vec<Difference>, git2::Error> {
            let mut diff =
                repo.diff_tree_to_tree(old.as_ref(), new.as_ref(), Some(&mut options))?;
            diff.find_similar(Some(&mut renames()))?;
            differences(&repo, &diff)
        }();
        found.map_err(|e| self.history(e))
    }
}

/// How renames are found: as by `git diff -M`.
pub(in crate::handle) fn renames() -> DiffFindOptions {
    let mut options = DiffFindOptions::new();
    options.renames(true).rename_threshold(50);
    options
}

fn differences(repo: &Repository, diff: &Diff<'_>) -> Result<Vec<Difference>, git2::Error> {
    let mut found = Vec::new();
    for delta in diff.deltas() {
        let (old, new) = (delta.old_file(), delta.new_file());
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let (from, path) = (text(old.path_bytes()), text(new.path_bytes()));
        let before = version(repo, old.id(), old.mode())?;
        let after = version(repo, new.id(), new.mode())?;
        let kind = match delta.status() {
            Delta::Added => DifferenceKind::Added,
            Delta::Deleted => DifferenceKind::Removed,
            Delta::Typechange => DifferenceKind::TypeChanged,
            // Pointers look alike: large files have moved only if they are the same.
            Delta::Renamed if is_other(before.as_ref(), after.as_ref()) => {
                found.push(Difference {
                    path: from,
                    kind: DifferenceKind::Removed,
                    before,
                    after: None,
                });
                found.push(Difference {
                    path,
                    kind: DifferenceKind::Added,
                    before: None,
                    after,
                });
                continue;
            }
            Delta::Renamed => DifferenceKind::Renamed { from },
            _ => DifferenceKind::Modified,
        };
        found.push(Difference {
            path,
            kind,
            before,
            after,
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    unsplit(&mut found);
    Ok(found)
}

/// libgit2 takes a file that became a link for one that went and one that came, so that the first
/// may seem to have moved. As for git, what is still there has not moved.
fn unsplit(found: &mut [Difference]) {
    let mut changed = Vec::new();
    for at in 0..found.len() {
        let DifferenceKind::Renamed { from } = &found[at].kind else {
            continue;
        };
        let back = found
            .iter()
            .position(|other| other.path == *from && other.kind == DifferenceKind::Added);
        if let Some(back) = back {
            found[back].kind = DifferenceKind::TypeChanged;
            found[back].before = found[at].before.take();
            changed.push(at);
        }
    }
    for at in changed {
        found[at].kind = DifferenceKind::Added;
    }
}

/// Whether one of them is a large file that is not the other.
fn is_other(before: Option<&FileVersion>, after: Option<&FileVersion>) -> bool {
    let pointer = |version: Option<&FileVersion>| version.and_then(|v| v.pointer.clone());
    pointer(before) != pointer(after)
}

fn version(
    repo: &Repository,
    blob: Oid,
    mode: FileMode,
) -> Result<Option<FileVersion>, git2::Error> {
    if mode == FileMode::Unreadable || blob.is_zero() {
        return Ok(None);
    }
    let (mut bytes, mut pointer) = (0, None);
    if mode != FileMode::Commit {
        (bytes, pointer) = size(repo, blob, mode == FileMode::Link)?;
    }
    Ok(Some(FileVersion {
        blob: blob.to_string(),
        mode: u32::from(mode),
        bytes,
        pointer,
    }))
}

/// The bytes of a content as its users see them, and the pointer in its place.
pub(super) fn size(
    repo: &Repository,
    blob: Oid,
    is_link: bool,
) -> Result<(u64, Option<Pointer>), git2::Error> {
    let (len, kind) = repo.odb()?.read_header(blob)?;
    if len < MAX_POINTER_BYTES
        && kind == ObjectType::Blob
        && !is_link
        && let Ok(pointer) = Pointer::parse(repo.find_blob(blob)?.content())
    {
        return Ok((pointer.size, Some(pointer)));
    }
    Ok((len as u64, None))
}
