//! The tree of what an overlay shows, folder by folder.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use git2::{ErrorCode, FileMode, ObjectType, Oid, Repository, Tree};

use super::{Upper, notes};
use crate::{
    commit::{
        ATTRIBUTES, Change, CommitError, Content, invalid, read_error,
        stage::{Stager, is_for_lfs},
    },
    lfs::{Attributes, MAX_POINTER_BYTES, Pointer},
    repo,
    tree::{check_name, is_reserved},
};

/// What a walk over the upper is for.
pub(super) enum Pass<'a> {
    /// The files that hold attributes; others are as good as not there.
    Attributes,
    /// All files, with the rules of before and after.
    All {
        /// Those of the commit.
        old_rules: &'a Attributes,
        /// Those of the new tree.
        new_rules: &'a Attributes,
    },
}

/// The folder of the commit that one of the upper lies on.
pub(super) struct Below {
    /// Its path in the commit, which is another one after a move.
    pub(super) path: String,
    /// Its tree.
    pub(super) tree: Oid,
}

/// Puts trees together.
pub(super) struct Folders<'a> {
    pub(super) repo: &'a Repository,
    pub(super) upper: &'a Upper<'a>,
    /// The commit's tree.
    pub(super) root: Oid,
    pub(super) stager: Stager<'a>,
    pub(super) pass: Pass<'a>,
    /// Files for LFS that no attribute gives to it.
    pub(super) untracked: Vec<String>,
}

/// Entries of a tree by name: object and mode.
type Entries = BTreeMap<String, (Oid, i32)>;

impl Folders<'_> {
    /// The tree of the folder `place` of the upper, which the overlay shows at `path` on `below`.
    pub(super) fn tree(
        &mut self,
        place: &Path,
        path: &str,
        below: Option<&Below>,
    ) -> Result<Oid, CommitError> {
        let mut entries = self.hidden_in(path)?;
        if let Some(below) = below {
            self.show(below, path, &mut entries)?;
        }
        let mut found: Vec<PathBuf> = fs::read_dir(place)
            .and_then(|found| found.map(|entry| Ok(entry?.path())).collect())
            .map_err(|e| read_error(path, e))?;
        found.sort();
        for place in found {
            let bytes = place.file_name().unwrap_or_default().as_encoded_bytes();
            let shown = join(path, &String::from_utf8_lossy(bytes));
            let name =
                check_name(bytes).map_err(|refusal| invalid(&shown, &refusal.to_string()))?;
            // The node plugin's own file, and what pods make of it, is no part of a commit.
            if is_reserved(&shown) {
                continue;
            }
            entries.remove(name);
            let kept = self.hidden_at(&shown)?;
            let entry = self.entry(&place, &shown, name, below)?;
            let tree = i32::from(FileMode::Tree);
            match (entry, kept) {
                (Some((_, new)), Some((_, old))) if [new, old] != [tree; 2] => {
                    return Err(invalid(
                        &shown,
                        "the commit has something else there that its checkout does not show",
                    ));
                }
                (Some(entry), _) | (None, Some(entry)) => {
                    entries.insert(name.to_owned(), entry);
                }
                (None, None) => {}
            }
        }
        self.write(&entries)
    }

    /// What the upper has at a path; `None` if it has nothing for git.
    fn entry(
        &mut self,
        place: &Path,
        path: &str,
        name: &str,
        above: Option<&Below>,
    ) -> Result<Option<(Oid, i32)>, CommitError> {
        let failed = |e: io::Error| read_error(path, e);
        let found = fs::symlink_metadata(place).map_err(failed)?;
        let kind = found.file_type();
        if notes::is_whiteout(&found) {
            return Ok(None);
        }
        if kind.is_dir() {
            let below = if notes::is_opaque(self.upper, place).map_err(failed)? {
                None
            } else {
                let origin = self.origin(place, path, name, above)?;
                origin.map_or(Ok(None), |origin| self.below(origin))?
            };
            let tree = self.tree(place, path, below.as_ref())?;
            let is_empty = self.find(tree)?.is_empty();
            return Ok((!is_empty).then_some((tree, FileMode::Tree.into())));
        }
        let is_first = matches!(self.pass, Pass::Attributes);
        if is_first && name != ATTRIBUTES {
            return Ok(None);
        }
        if kind.is_symlink() {
            let target = fs::read_link(place).map_err(failed)?;
            let blob = self.stager.blob(target.as_os_str().as_encoded_bytes())?;
            return Ok(Some((blob, FileMode::Link.into())));
        }
        if !kind.is_file() {
            return Err(invalid(
                path,
                "it is neither a file nor a folder nor a link: remove it",
            ));
        }
        let blob = if notes::is_without_content(self.upper, place).map_err(failed)? {
            let origin = self.origin(place, path, name, above)?;
            self.moved_file(origin, path)?
        } else {
            self.written(place, path, &found)?
        };
        Ok(Some((blob, mode_of(&found).into())))
    }

    /// The blob of a file whose content was written.
    fn written(&mut self, place: &Path, path: &str, found: &Metadata) -> Result<Oid, CommitError> {
        let change = Change::Put {
            path: path.to_owned(),
            content: Content::File(place.to_owned()),
            executable: mode_of(found) == FileMode::BlobExecutable,
        };
        let is_lfs = match &self.pass {
            Pass::All { new_rules, .. } if !path.ends_with(ATTRIBUTES) => {
                is_for_lfs(&change, new_rules, &mut self.untracked)?
            }
            _ => false,
        };
        let content = Content::File(place.to_owned());
        if !is_lfs {
            return self.stager.blob(&content.read(path)?);
        }
        let blob = self.stager.put_lfs(path, &content)?;
        // Written with the content that it had.
        if self.at(path)?.is_some_and(|(id, _)| id == blob) {
            self.stager.objects.pop();
        }
        Ok(blob)
    }

    /// The blob of a file of the commit, which lay at `origin` there.
    fn moved_file(&mut self, origin: Option<String>, path: &str) -> Result<Oid, CommitError> {
        let lost = || invalid(path, "its content is not in the commit that it lies on");
        let origin = origin.ok_or_else(lost)?;
        let (blob, mode) = self.at(&origin)?.ok_or_else(lost)?;
        if !is_file(mode) {
            return Err(lost());
        }
        self.moved(blob, &origin, path)
    }

    /// The blob that a file of the commit has at another path, where other rules may hold.
    fn moved(&mut self, blob: Oid, origin: &str, path: &str) -> Result<Oid, CommitError> {
        let Pass::All {
            old_rules,
            new_rules,
        } = &self.pass
        else {
            return Ok(blob);
        };
        if origin == path {
            return Ok(blob);
        }
        let is_lfs = |rules: &Attributes, path: &str| {
            let costly = |why: crate::lfs::TooCostly| invalid(ATTRIBUTES, &why.to_string());
            rules.is_lfs(path).map_err(costly)
        };
        let (was, is) = (is_lfs(old_rules, origin)?, is_lfs(new_rules, path)?);
        if was == is {
            return Ok(blob);
        }
        let access = |e| CommitError::Repo(repo::access(self.repo.path())(e));
        let (size, _) = self
            .repo
            .odb()
            .and_then(|odb| odb.read_header(blob))
            .map_err(access)?;
        let content = self
            .repo
            .find_blob(blob)
            .map_err(access)?
            .content()
            .to_vec();
        let is_pointer = size < MAX_POINTER_BYTES && Pointer::parse(&content).is_ok();
        if was && is_pointer {
            self.untracked.push(path.to_owned());
        } else if is && !is_pointer && size > 0 {
            return self.stager.put_lfs(path, &Content::Bytes(content));
        }
        Ok(blob)
    }

    /// Where what the upper has at `place` was in the commit.
    fn origin(
        &self,
        place: &Path,
        path: &str,
        name: &str,
        above: Option<&Below>,
    ) -> Result<Option<String>, CommitError> {
        let moved = notes::moved_from(self.upper, place).map_err(|e| read_error(path, e))?;
        Ok(match moved {
            Some(from) if from.starts_with('/') => Some(from.trim_start_matches('/').to_owned()),
            Some(from) => above.map(|above| join(&above.path, &from)),
            None => above.map(|above| join(&above.path, name)),
        })
    }

    /// The folder of the commit at a path, if it is one.
    fn below(&self, path: String) -> Result<Option<Below>, CommitError> {
        Ok(match self.at(&path)? {
            Some((tree, mode)) if mode == i32::from(FileMode::Tree) => Some(Below { path, tree }),
            _ => None,
        })
    }

    /// Adds what a checkout shows of a folder of the commit, which is now at `path`.
    fn show(
        &mut self,
        below: &Below,
        path: &str,
        entries: &mut Entries,
    ) -> Result<(), CommitError> {
        for (name, (id, mode)) in self.find(below.tree)? {
            let origin = join(&below.path, &name);
            let shown = join(path, &name);
            if mode == i32::from(FileMode::Tree) {
                let is_as_before = below.path == path;
                let tree = if is_as_before {
                    id
                } else {
                    let mut inner = self.hidden_in(&shown)?;
                    let below = Below {
                        path: origin,
                        tree: id,
                    };
                    self.show(&below, &shown, &mut inner)?;
                    self.write(&inner)?
                };
                if is_as_before || !self.find(tree)?.is_empty() {
                    entries.insert(name, (tree, mode));
                }
            } else if self.upper.include.matches(&origin) {
                let id = if is_file(mode) {
                    self.moved(id, &origin, &shown)?
                } else {
                    id
                };
                entries.insert(name, (id, mode));
            }
        }
        Ok(())
    }

    /// What the commit has in the folder `path` that its checkout does not show.
    fn hidden_in(&self, path: &str) -> Result<Entries, CommitError> {
        match self.hidden_at(path)? {
            Some((tree, mode)) if mode == i32::from(FileMode::Tree) => self.find(tree),
            _ => Ok(Entries::new()),
        }
    }

    /// What the commit has at a path, without what its checkout shows.
    fn hidden_at(&self, path: &str) -> Result<Option<(Oid, i32)>, CommitError> {
        if self.upper.include.is_all() {
            return Ok(None);
        }
        let Some((id, mode)) = self.at(path)? else {
            return Ok(None);
        };
        self.hidden(path, id, mode)
    }

    fn hidden(&self, path: &str, id: Oid, mode: i32) -> Result<Option<(Oid, i32)>, CommitError> {
        if mode != i32::from(FileMode::Tree) {
            return Ok((!self.upper.include.matches(path)).then_some((id, mode)));
        }
        let mut kept = Entries::new();
        for (name, (id, mode)) in self.find(id)? {
            if let Some(entry) = self.hidden(&join(path, &name), id, mode)? {
                kept.insert(name, entry);
            }
        }
        if kept.is_empty() {
            return Ok(None);
        }
        Ok(Some((self.write(&kept)?, mode)))
    }

    /// What the commit has at a path.
    fn at(&self, path: &str) -> Result<Option<(Oid, i32)>, CommitError> {
        if path.is_empty() {
            return Ok(Some((self.root, FileMode::Tree.into())));
        }
        match self.opened(self.root)?.get_path(Path::new(path)) {
            Ok(entry) => Ok(Some((entry.id(), entry.filemode()))),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.stager.access(error)),
        }
    }

    /// The entries of a tree.
    fn find(&self, tree: Oid) -> Result<Entries, CommitError> {
        let mut entries = Entries::new();
        for entry in &self.opened(tree)? {
            let name = check_name(entry.name_bytes());
            let name = name.map_err(|refusal| {
                let shown = String::from_utf8_lossy(entry.name_bytes());
                invalid(&shown, &refusal.to_string())
            })?;
            let is_known = matches!(entry.kind(), Some(ObjectType::Blob | ObjectType::Tree));
            if !is_known {
                return Err(invalid(name, "submodules are not supported"));
            }
            entries.insert(name.to_owned(), (entry.id(), entry.filemode()));
        }
        Ok(entries)
    }

    fn opened(&self, tree: Oid) -> Result<Tree<'_>, CommitError> {
        self.repo.find_tree(tree).map_err(|e| self.stager.access(e))
    }

    fn write(&self, entries: &Entries) -> Result<Oid, CommitError> {
        let write = || {
            let mut builder = self.repo.treebuilder(None)?;
            for (name, (id, mode)) in entries {
                builder.insert(name.as_str(), *id, *mode)?;
            }
            builder.write()
        };
        write().map_err(|e| self.stager.access(e))
    }
}

fn is_file(mode: i32) -> bool {
    mode == i32::from(FileMode::Blob) || mode == i32::from(FileMode::BlobExecutable)
}

/// As git sees it: executable if its owner may.
fn mode_of(found: &Metadata) -> FileMode {
    if found.permissions().mode() & 0o100 == 0 {
        FileMode::Blob
    } else {
        FileMode::BlobExecutable
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}
