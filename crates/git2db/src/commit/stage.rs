//! Writing changes as a tree.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use git2::{FileMode, ObjectType, Oid, Repository, Tree, build::TreeUpdateBuilder};

use super::{Change, CommitError, Content, Staged};
use crate::{
    CommitId,
    lfs::{Attributes, MAX_POINTER_BYTES, Pointer, track_line},
    repo,
    store::{ObjectStore, StoreError},
    tree::{self, Limits},
};

/// Safetensors above this go to LFS whatever the attributes say, in bytes.
const LARGE_WEIGHTS_BYTES: u64 = 10 << 20;
pub(crate) const ATTRIBUTES: &str = ".gitattributes";

/// Writes `changes` to the files of `base` (of none, if it is `None`) as a tree into the bare
/// repository. They are applied in order; a later change of a path wins.
///
/// A file goes to LFS, that is into `store` with a pointer in git, if `.gitattributes` of the new
/// tree say so. A `*.safetensors` file of more than 10 MiB, and any file above the limit of
/// [`Limits`], goes there too, and so does what is given as [`Content::Lfs`]; the root's
/// `.gitattributes` gets a line for it. What is a pointer already stays one.
pub fn stage(
    bare: &Path,
    base: Option<&CommitId>,
    changes: &[Change],
    store: &ObjectStore,
) -> Result<Staged, CommitError> {
    let repo = repo::open(bare).map_err(CommitError::Repo)?;
    let access = |e| CommitError::Repo(repo::access(bare)(e));
    for change in changes {
        check_path(change.path())?;
    }
    let start = match base {
        Some(base) => repo
            .find_commit(base.oid())
            .and_then(|c| c.tree())
            .map_err(access)?
            .id(),
        None => repo
            .treebuilder(None)
            .and_then(|t| t.write())
            .map_err(access)?,
    };
    let mut stager = Stager::new(&repo, bare, store, start);
    // Attributes first: they decide about the other files.
    let (attributes, others): (Vec<&Change>, Vec<&Change>) = changes
        .iter()
        .partition(|change| change.path().rsplit('/').next() == Some(ATTRIBUTES));
    for change in attributes {
        stager.apply(change, false)?;
    }
    let nobody = CommitId::from_oid(Oid::ZERO_SHA1);
    let rules = tree::attributes(&repo, bare, stager.tree, base.unwrap_or(&nobody))
        .map_err(CommitError::Tree)?;
    let mut untracked = Vec::new();
    for change in others {
        let lfs = is_for_lfs(change, &rules, &mut untracked)?;
        stager.apply(change, lfs)?;
    }
    stager.track(&untracked)?;
    if !untracked.is_empty() {
        // A folder's own attributes come before the root's.
        let rules = tree::attributes(&repo, bare, stager.tree, base.unwrap_or(&nobody))
            .map_err(CommitError::Tree)?;
        for path in &untracked {
            if !rules.is_lfs(path).is_ok_and(|lfs| lfs) {
                let why = "a .gitattributes of its folder takes it out of LFS: change that first";
                return Err(invalid(path, why));
            }
        }
    }
    Ok(Staged {
        base: base.cloned(),
        tree: stager.tree.to_string(),
        objects: stager.objects,
    })
}

/// Writes blobs and trees.
pub(super) struct Stager<'a> {
    repo: &'a Repository,
    bare: &'a Path,
    store: &'a ObjectStore,
    /// The tree so far.
    pub(super) tree: Oid,
    /// The objects that went to the store.
    pub(super) objects: Vec<Pointer>,
}

impl<'a> Stager<'a> {
    pub(super) fn new(
        repo: &'a Repository,
        bare: &'a Path,
        store: &'a ObjectStore,
        tree: Oid,
    ) -> Self {
        Self {
            repo,
            bare,
            store,
            tree,
            objects: Vec::new(),
        }
    }

    fn apply(&mut self, change: &Change, lfs: bool) -> Result<(), CommitError> {
        match change {
            Change::Remove { path } => {
                let there = self.entry(path)?;
                if !matches!(there, Some((_, ObjectType::Blob))) {
                    return Err(invalid(path, "there is no file to remove"));
                }
                self.update(path, |update| update.remove(path.as_str()))
            }
            Change::Put {
                path,
                content,
                executable,
            } => {
                self.check_place(path)?;
                let blob = if lfs {
                    self.put_lfs(path, content)?
                } else {
                    self.blob(&content.read(path)?)?
                };
                let mode = if *executable {
                    FileMode::BlobExecutable
                } else {
                    FileMode::Blob
                };
                self.update(path, |update| update.upsert(path.as_str(), blob, mode))
            }
        }
    }

    pub(super) fn put_lfs(&mut self, path: &str, content: &Content) -> Result<Oid, CommitError> {
        let pointer = match content {
            Content::Bytes(bytes) => self.store.insert(&mut bytes.as_slice()),
            Content::File(file) => self.store.insert_file(file),
            Content::Lfs(pointer) => Ok(pointer.clone()),
        }
        .map_err(|error| match error {
            StoreError::Input { source, .. } => read_error(path, source),
            other => CommitError::Store(other),
        })?;
        let blob = self.blob(pointer.to_string().as_bytes())?;
        self.objects.push(pointer);
        Ok(blob)
    }

    /// Adds lines to the root's attributes.
    pub(super) fn track(&mut self, paths: &[String]) -> Result<(), CommitError> {
        if paths.is_empty() {
            return Ok(());
        }
        let mut text = match self.entry(ATTRIBUTES)? {
            Some((id, ObjectType::Blob)) => self
                .repo
                .find_blob(id)
                .map_err(|e| self.access(e))?
                .content()
                .to_vec(),
            _ => Vec::new(),
        };
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        for path in paths {
            let line = track_line(path)
                .ok_or_else(|| invalid(path, "it is too long for a line of .gitattributes"))?;
            text.extend(line.into_bytes());
            text.push(b'\n');
        }
        let blob = self.blob(&text)?;
        self.update(ATTRIBUTES, |update| {
            update.upsert(ATTRIBUTES, blob, FileMode::Blob)
        })
    }

    /// A file can take the place of a file, and be made in folders.
    fn check_place(&self, path: &str) -> Result<(), CommitError> {
        if matches!(self.entry(path)?, Some((_, ObjectType::Tree))) {
            return Err(invalid(path, "there is a folder"));
        }
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        for folder in above {
            if !matches!(self.entry(folder)?, None | Some((_, ObjectType::Tree))) {
                return Err(invalid(path, "one of its folders is a file"));
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        path: &str,
        edit: impl FnOnce(&mut TreeUpdateBuilder) -> &mut TreeUpdateBuilder,
    ) -> Result<(), CommitError> {
        let tree = self.tree()?;
        let mut update = TreeUpdateBuilder::new();
        edit(&mut update);
        let updated = update.create_updated(self.repo, &tree).map_err(|error| {
            if error.class() == git2::ErrorClass::Tree {
                invalid(path, error.message())
            } else {
                self.access(error)
            }
        })?;
        drop(tree);
        self.tree = updated;
        Ok(())
    }

    /// What lies at a path of the tree so far.
    fn entry(&self, path: &str) -> Result<Option<(Oid, ObjectType)>, CommitError> {
        let tree = self.tree()?;
        match tree.get_path(Path::new(path)) {
            Ok(entry) => Ok(entry.kind().map(|kind| (entry.id(), kind))),
            Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.access(error)),
        }
    }

    fn tree(&self) -> Result<Tree<'_>, CommitError> {
        self.repo.find_tree(self.tree).map_err(|e| self.access(e))
    }

    pub(super) fn blob(&self, content: &[u8]) -> Result<Oid, CommitError> {
        self.repo.blob(content).map_err(|e| self.access(e))
    }

    pub(super) fn access(&self, error: git2::Error) -> CommitError {
        CommitError::Repo(repo::access(self.bare)(error))
    }
}

/// Whether the file goes to LFS; `untracked` gets the path if attributes do not say so.
pub(super) fn is_for_lfs(
    change: &Change,
    rules: &Attributes,
    untracked: &mut Vec<String>,
) -> Result<bool, CommitError> {
    let Change::Put { path, content, .. } = change else {
        return Ok(false);
    };
    let is_given = matches!(content, Content::Lfs(_));
    let size = content.size(path)?;
    if size == 0 {
        return Ok(false);
    }
    let small = size < MAX_POINTER_BYTES as u64;
    if small && !is_given && Pointer::parse(&content.read(path)?).is_ok() {
        return Ok(false);
    }
    let by_rules = rules
        .is_lfs(path)
        .map_err(|why| invalid(ATTRIBUTES, &why.to_string()))?;
    if by_rules {
        return Ok(true);
    }
    let large = is_given || is_large(path, size);
    if large {
        untracked.push(path.clone());
    }
    Ok(large)
}

/// Whether a file goes to LFS whatever the attributes say.
pub(crate) fn is_large(path: &str, size: u64) -> bool {
    let weights = path.ends_with(".safetensors") && size > LARGE_WEIGHTS_BYTES;
    weights || size > Limits::default().max_blob_bytes
}

impl Change {
    fn path(&self) -> &str {
        match self {
            Self::Put { path, .. } | Self::Remove { path } => path,
        }
    }
}

impl Content {
    fn size(&self, path: &str) -> Result<u64, CommitError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::Lfs(pointer) => Ok(pointer.to_string().len() as u64),
            Self::File(file) => fs::metadata(file)
                .map(|found| found.len())
                .map_err(|e| read_error(path, e)),
        }
    }

    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, CommitError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Lfs(pointer) => Ok(pointer.to_string().into_bytes()),
            Self::File(file) => {
                let mut content = Vec::new();
                File::open(file)
                    .and_then(|mut file| file.read_to_end(&mut content))
                    .map_err(|e| read_error(path, e))?;
                Ok(content)
            }
        }
    }
}

/// Whether a file may be committed at a path.
pub(crate) fn check_path(path: &str) -> Result<(), CommitError> {
    if tree::is_reserved(path) {
        return Err(invalid(path, "paths beginning with .hyprstream are ours"));
    }
    for name in path.split('/') {
        tree::check_name(name.as_bytes()).map_err(|refusal| invalid(path, &refusal.to_string()))?;
    }
    Ok(())
}

pub(super) fn invalid(path: &str, why: &str) -> CommitError {
    CommitError::InvalidPath {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

pub(super) fn read_error(path: &str, source: std::io::Error) -> CommitError {
    CommitError::Read {
        path: path.to_owned(),
        source,
    }
}
