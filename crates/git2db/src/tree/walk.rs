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
    repo,
};

/// Deepest folder.
const MAX_DEPTH: usize = 64;
/// Largest `.gitattributes` that is read, in bytes, as in git.
const MAX_ATTRIBUTES_BYTES: usize = 100 << 20;

/// The files of `commit` in the bare repository at `path` that `include` wants, ordered by path.
///
/// A file is an LFS object if `.gitattributes` of the commit give it `filter=lfs` and its blob is
/// a pointer; a file that was added without git-lfs is an ordinary one. What is dangerous to put on a disk is
/// refused; see [`Refusal`]. Names are checked everywhere, what lies behind them only where
/// `include` wants it.
pub fn walk(
    path: &Path,
    commit: &CommitId,
    include: &Include,
    limits: &Limits,
) -> Result<Vec<Entry>, TreeError> {
    let repo = repo::open(path).map_err(TreeError::Repo)?;
    let walker = Walker {
        repo: &repo,
        odb: odb(&repo, path)?,
        path,
        commit,
    };
    let root = repo
        .find_commit(commit.oid())
        .and_then(|commit| commit.tree())
        .map_err(|e| walker.failed(e))?;
    let raw = walker.list(root.id(), limits)?;
    let attributes = walker.attributes(&raw)?;
    let wanted: Vec<&Raw> = raw
        .iter()
        .filter(|raw| include.matches(&raw.path))
        .collect();
    let mut entries = Vec::with_capacity(wanted.len());
    for raw in wanted {
        let kind = walker.kind(raw, &attributes, limits)?;
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
    let raw = walker.list(tree, &Limits::default())?;
    walker.attributes(&raw)
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
    TreeError::Refused {
        path: path.to_owned(),
        refusal,
    }
}

impl Walker<'_> {
    /// All files, with their names checked.
    fn list(&self, root: Oid, limits: &Limits) -> Result<Vec<Raw>, TreeError> {
        let mut files = Vec::new();
        let mut seen = HashSet::new();
        let mut pending = vec![(String::new(), root, 1)];
        while let Some((folder, id, depth)) = pending.pop() {
            let tree = self.repo.find_tree(id).map_err(|e| self.failed(e))?;
            for entry in &tree {
                let shown = || format!("{folder}{}", String::from_utf8_lossy(entry.name_bytes()));
                let name = names::check_name(entry.name_bytes())
                    .map_err(|refusal| refused(&shown(), refusal))?;
                let path = format!("{folder}{name}");
                if names::is_reserved(&path) {
                    return Err(refused(&path, Refusal::Reserved));
                }
                if seen.len() >= limits.max_entries {
                    return Err(refused(&path, Refusal::TooManyEntries(limits.max_entries)));
                }
                if !seen.insert(path.clone()) {
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
        Ok(files)
    }

    fn attributes(&self, files: &[Raw]) -> Result<Attributes, TreeError> {
        let mut found: Vec<(&str, &Raw)> = files
            .iter()
            .filter(|raw| raw.mode & 0o170_000 == 0o100_000)
            .filter_map(|raw| match raw.path.rsplit_once('/') {
                Some((folder, ".gitattributes")) => Some((folder, raw)),
                None if raw.path == ".gitattributes" => Some(("", raw)),
                _ => None,
            })
            .collect();
        // The root's file defines the macros of the others.
        found.sort_by_key(|(folder, _)| folder.len());
        let mut attributes = Attributes::default();
        for (folder, raw) in found {
            let (size, _) = self.header(raw.oid)?;
            if size > MAX_ATTRIBUTES_BYTES {
                let (size, limit) = (size as u64, MAX_ATTRIBUTES_BYTES as u64);
                return Err(refused(&raw.path, Refusal::HugeBlob { size, limit }));
            }
            attributes.add(
                folder,
                self.odb.read(raw.oid).map_err(|e| self.failed(e))?.data(),
            );
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
        if (1..MAX_POINTER_BYTES).contains(&size) && attributes.is_lfs(&raw.path) {
            let blob = self.odb.read(raw.oid).map_err(|e| self.failed(e))?;
            match Pointer::parse(blob.data()) {
                Ok(pointer) => {
                    return Ok(EntryKind::Lfs {
                        pointer,
                        executable,
                    });
                }
                Err(InvalidPointer::Extension) => return refuse(Refusal::PointerExtension),
                // Added without git-lfs; git-lfs takes it as it is, too.
                Err(InvalidPointer::NotAPointer) => {}
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
