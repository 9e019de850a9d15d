//! Walking the tree of a commit.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use git2::{ErrorCode, ObjectType, Odb, Oid, Repository};

use super::{Entry, EntryKind, Limits, Refusal, TreeError, links, names};
use crate::{
    CommitId, Include, RepoError,
    lfs::{Attributes, InvalidPointer, MAX_POINTER_BYTES, Pointer},
    libgit, repo,
};

/// The name of git's empty blob, which lies in no repository.
pub(crate) const EMPTY_BLOB: &str = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
const ATTRIBUTES: &str = ".gitattributes";
/// Endings of files that a model is loaded from. None of them is a text of three lines that
/// happens to look like a pointer.
const LOADED: [&str; 14] = [
    "bin",
    "gguf",
    "ggml",
    "h5",
    "json",
    "model",
    "msgpack",
    "npz",
    "onnx",
    "pkl",
    "pt",
    "pth",
    "safetensors",
    "tiktoken",
];

/// Deepest folder.
const MAX_DEPTH: usize = 64;
/// Largest commit, and largest list of a folder, that is read, in bytes.
const MAX_OBJECT_BYTES: usize = 32 << 20;
/// Characters of a path that is too long that are shown.
const SHOWN_CHARS: usize = 200;

/// The files of `commit` in the bare repository at `path` that `include` wants, ordered by path.
///
/// A file is an LFS object if `.gitattributes` of the commit give it `filter=lfs` and its blob is
/// a pointer; one of size 0 is an empty file. A file that was added without git-lfs is an ordinary
/// one, and so is a pointer that no attribute gives to LFS, unless it lies where a model's weights,
/// tokenizer or configuration are expected: a model must not be served with it. What is dangerous to put on a disk is
/// refused; see [`Refusal`]. Names are checked everywhere, what lies behind them only where
/// `include` wants it.
pub fn walk(
    path: &Path,
    commit: &CommitId,
    include: &Include,
    limits: &Limits,
) -> Result<Vec<Entry>, TreeError> {
    let repo = repo::open(path).map_err(TreeError::Repo)?;
    libgit::allow_objects(limits.max_blob_bytes);
    let walker = Walker {
        repo: &repo,
        odb: odb(&repo, path)?,
        path,
        commit,
    };
    walker.check_size("the commit", commit.oid())?;
    let root = repo
        .find_commit(commit.oid())
        .and_then(|commit| commit.tree())
        .map_err(|e| walker.failed(e))?;
    let (raw, paths_bytes) = walker.list(root.id(), limits)?;
    let attributes = walker.attributes(&raw, limits)?;
    let mut links_bytes = paths_bytes;
    let wanted: Vec<&Raw> = raw
        .iter()
        .filter(|raw| include.matches(&raw.path))
        .collect();
    let mut entries = Vec::with_capacity(wanted.len());
    for raw in wanted {
        let kind = walker.kind(raw, &attributes, limits)?;
        if let EntryKind::Symlink { target } = &kind {
            links_bytes += target.len();
            if links_bytes > limits.max_paths_bytes {
                return Err(refused(
                    &raw.path,
                    Refusal::LongPaths(limits.max_paths_bytes),
                ));
            }
        }
        entries.push(Entry {
            path: raw.path.clone(),
            kind,
        });
    }
    check_links(&entries)?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// The rules of all `.gitattributes` in a tree that `commit` is made of, or will be.
pub(crate) fn attributes(
    repo: &Repository,
    path: &Path,
    tree: Oid,
    commit: &CommitId,
) -> Result<Attributes, TreeError> {
    let walker = Walker {
        repo,
        odb: odb(repo, path)?,
        path,
        commit,
    };
    let limits = Limits::default();
    let (raw, _) = walker.list(tree, &limits)?;
    walker.attributes(&raw, &limits)
}

struct Walker<'a> {
    repo: &'a Repository,
    odb: Odb<'a>,
    path: &'a Path,
    commit: &'a CommitId,
}

/// An entry of a tree that is not a folder.
struct Raw {
    path: String,
    oid: Oid,
    mode: i32,
}

fn odb<'a>(repo: &'a Repository, path: &Path) -> Result<Odb<'a>, TreeError> {
    repo.odb()
        .map_err(|e| TreeError::Repo(repo::access(path)(e)))
}

fn refused(path: &str, refusal: Refusal) -> TreeError {
    let path = match &refusal {
        // Of a message that somebody reads, this would be most.
        Refusal::LongPath(_) | Refusal::LongPaths(_) => path.chars().take(SHOWN_CHARS).collect(),
        _ => path.to_owned(),
    };
    TreeError::Refused { path, refusal }
}

impl Walker<'_> {
    /// All files, with their names checked, and the bytes of all paths.
    fn list(&self, root: Oid, limits: &Limits) -> Result<(Vec<Raw>, usize), TreeError> {
        let mut files = Vec::new();
        let (mut entries, mut paths_bytes) = (0, 0);
        let mut pending = vec![(String::new(), root, 1)];
        while let Some((folder, id, depth)) = pending.pop() {
            let name = if folder.is_empty() {
                "the root"
            } else {
                &folder
            };
            self.check_size(name, id)?;
            let tree = self.repo.find_tree(id).map_err(|e| self.failed(e))?;
            let mut seen = HashSet::new();
            for entry in &tree {
                let shown = || format!("{folder}{}", String::from_utf8_lossy(entry.name_bytes()));
                let name = names::check_name(entry.name_bytes())
                    .map_err(|refusal| refused(&shown(), refusal))?;
                let path = format!("{folder}{name}");
                if names::is_reserved(&path) {
                    return Err(refused(&path, Refusal::Reserved));
                }
                if entries >= limits.max_entries {
                    return Err(refused(&path, Refusal::TooManyEntries(limits.max_entries)));
                }
                entries += 1;
                if path.len() > limits.max_path_bytes {
                    return Err(refused(&path, Refusal::LongPath(limits.max_path_bytes)));
                }
                paths_bytes += path.len();
                if paths_bytes > limits.max_paths_bytes {
                    return Err(refused(&path, Refusal::LongPaths(limits.max_paths_bytes)));
                }
                if !seen.insert(entry.name_bytes().to_owned()) {
                    return Err(refused(&path, Refusal::Duplicate));
                }
                let mode = entry.filemode_raw();
                if mode & 0o170_000 != 0o040_000 {
                    files.push(Raw {
                        path,
                        oid: entry.id(),
                        mode,
                    });
                } else if depth >= MAX_DEPTH {
                    return Err(refused(&path, Refusal::TooDeep(MAX_DEPTH)));
                } else {
                    pending.push((format!("{path}/"), entry.id(), depth + 1));
                }
            }
        }
        Ok((files, paths_bytes))
    }

    /// Refuses a commit or a folder that would take much memory.
    fn check_size(&self, name: &str, oid: Oid) -> Result<(), TreeError> {
        let (size, _) = self.header(oid)?;
        if size > MAX_OBJECT_BYTES {
            let (size, limit) = (size as u64, MAX_OBJECT_BYTES as u64);
            return Err(refused(name, Refusal::HugeObject { size, limit }));
        }
        Ok(())
    }

    fn attributes(&self, files: &[Raw], limits: &Limits) -> Result<Attributes, TreeError> {
        let mut found: Vec<(&str, &Raw)> = files
            .iter()
            .filter(|raw| raw.mode & 0o170_000 == 0o100_000)
            .filter_map(|raw| match raw.path.rsplit_once('/') {
                Some((folder, ATTRIBUTES)) => Some((folder, raw)),
                None if raw.path == ATTRIBUTES => Some(("", raw)),
                _ => None,
            })
            .collect();
        // The root's file defines the macros of the others.
        found.sort_by_key(|(folder, _)| folder.len());
        let mut attributes = Attributes::default();
        let mut total = 0_usize;
        for (folder, raw) in found {
            let (size, _) = self.header(raw.oid)?;
            total = total.saturating_add(size);
            if total > limits.max_attributes_bytes {
                let limit = limits.max_attributes_bytes;
                return Err(refused(&raw.path, Refusal::HugeAttributes(limit)));
            }
            let content = self.odb.read(raw.oid).map_err(|e| self.failed(e))?;
            attributes
                .add(folder, content.data())
                .map_err(|why| refused(&raw.path, Refusal::Attributes(why)))?;
        }
        Ok(attributes)
    }

    fn kind(
        &self,
        raw: &Raw,
        attributes: &Attributes,
        limits: &Limits,
    ) -> Result<EntryKind, TreeError> {
        let refuse = |refusal| Err(refused(&raw.path, refusal));
        let executable = raw.mode & 0o111 != 0;
        match raw.mode & 0o170_000 {
            0o100_000 => {}
            0o120_000 => return self.symlink(raw),
            0o160_000 => return refuse(Refusal::Submodule),
            _ => return refuse(Refusal::Mode(raw.mode)),
        }
        let (size, kind) = self.header(raw.oid)?;
        if kind != ObjectType::Blob {
            return refuse(Refusal::Mode(raw.mode));
        }
        if (1..MAX_POINTER_BYTES).contains(&size) {
            let blob = self.odb.read(raw.oid).map_err(|e| self.failed(e))?;
            let parsed = Pointer::parse(blob.data());
            // Most files are none: their rules are not asked for.
            let is_lfs = parsed != Err(InvalidPointer::NotAPointer)
                && attributes
                    .is_lfs(&raw.path)
                    .map_err(|why| refused(ATTRIBUTES, Refusal::Attributes(why)))?;
            match parsed {
                // Whatever its name, there are no bytes to fetch.
                Ok(pointer) if is_lfs && pointer.size == 0 => {
                    return Ok(EntryKind::Blob {
                        oid: EMPTY_BLOB.to_owned(),
                        size: 0,
                        executable,
                    });
                }
                Ok(pointer) if is_lfs => {
                    return Ok(EntryKind::Lfs {
                        pointer,
                        executable,
                    });
                }
                Err(InvalidPointer::Extension) if is_lfs => {
                    return refuse(Refusal::PointerExtension);
                }
                // Added without git-lfs; git-lfs takes it as it is, too.
                Err(InvalidPointer::NotAPointer) => {}
                Ok(_) | Err(InvalidPointer::Extension) if is_loaded(&raw.path) => {
                    return refuse(Refusal::StrayPointer);
                }
                Ok(_) | Err(InvalidPointer::Extension) => {
                    tracing::warn!(
                        commit = %self.commit,
                        path = raw.path,
                        "an LFS pointer that .gitattributes do not give to LFS is an ordinary file"
                    );
                }
            }
        }
        let size = size as u64;
        if size > limits.max_blob_bytes {
            return refuse(Refusal::HugeBlob {
                size,
                limit: limits.max_blob_bytes,
            });
        }
        Ok(EntryKind::Blob {
            oid: raw.oid.to_string(),
            size,
            executable,
        })
    }

    fn symlink(&self, raw: &Raw) -> Result<EntryKind, TreeError> {
        let invalid = |target: String| refused(&raw.path, Refusal::InvalidLink(target));
        let (size, _) = self.header(raw.oid)?;
        if size > links::MAX_TARGET_BYTES {
            return Err(invalid(format!("{size} bytes")));
        }
        let blob = self.odb.read(raw.oid).map_err(|e| self.failed(e))?;
        let target = String::from_utf8(blob.data().to_vec()).map_err(|e| invalid(e.to_string()))?;
        Ok(EntryKind::Symlink { target })
    }

    fn header(&self, oid: Oid) -> Result<(usize, ObjectType), TreeError> {
        self.odb.read_header(oid).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: git2::Error) -> TreeError {
        TreeError::Repo(if error.code() == ErrorCode::NotFound {
            RepoError::CommitMissing {
                path: self.path.to_owned(),
                commit: self.commit.clone(),
            }
        } else {
            repo::access(self.path)(error)
        })
    }
}

/// Whether the ending is that of a file that a model is loaded from.
fn is_loaded(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, ending)| {
        LOADED
            .iter()
            .any(|loaded| ending.eq_ignore_ascii_case(loaded))
    })
}

fn check_links(entries: &[Entry]) -> Result<(), TreeError> {
    let links: HashMap<String, String> = entries
        .iter()
        .filter_map(|entry| match &entry.kind {
            EntryKind::Symlink { target } => Some((entry.path.clone(), target.clone())),
            EntryKind::Blob { .. } | EntryKind::Lfs { .. } => None,
        })
        .collect();
    for (path, target) in &links {
        links::check_link(path, target, &links).map_err(|refusal| refused(path, refusal))?;
    }
    Ok(())
}
