//! A repository on this machine, read without a server and without the git program.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use git2::{ObjectType, Oid, PackBuilder, Repository};

use super::{GitSource, Want};
use crate::{
    CommitId, Observer, Progress, RemoteError, RemoteUrl, RepoError,
    lfs::{LfsError, ObjectSource, Pointer, Transfer},
    remote::RemoteRef,
    repo,
    store::{ObjectStore, StoreError},
};

/// The repository at a path, bare or with a working folder. Unlike libgit2's own transport for
/// paths it knows depth, and reads shallow repositories.
#[derive(Clone, Debug)]
pub struct LocalSource {
    path: PathBuf,
    url: RemoteUrl,
}

impl LocalSource {
    /// The repository at `path`, which is absolute.
    ///
    /// # Errors
    /// There is none that this user may read.
    pub fn open(path: &Path) -> Result<Self, RemoteError> {
        let url = RemoteUrl::local(path).map_err(|e| RemoteError::Local {
            detail: e.to_string(),
        })?;
        let source = Self {
            path: path.to_owned(),
            url,
        };
        source.repo()?;
        Ok(source)
    }

    /// Where its LFS objects lie if git-lfs put them there.
    pub fn objects(&self) -> LocalObjects {
        let dot_git = self.path.join(".git");
        let git_dir = if dot_git.exists() {
            dot_git
        } else {
            self.path.clone()
        };
        LocalObjects {
            folder: git_dir.join("lfs/objects"),
        }
    }

    fn repo(&self) -> Result<Repository, RemoteError> {
        let opened = match self.path.join(".git").exists() {
            true => repo::open_worktree(&self.path),
            false => repo::open(&self.path),
        };
        opened.map_err(|error| match error {
            RepoError::Open { source, .. } if source.code() == git2::ErrorCode::NotFound => {
                RemoteError::RepositoryNotFound {
                    url: self.url.clone(),
                    detail: "there is nothing".to_owned(),
                }
            }
            RepoError::Open { source, .. } => crate::libgit::remote_error(&self.url, &source),
            other => RemoteError::Local {
                detail: other.to_string(),
            },
        })
    }

    fn error(&self, error: &git2::Error) -> RemoteError {
        crate::libgit::remote_error(&self.url, error)
    }
}

impl GitSource for LocalSource {
    fn refs(&self, _observer: &dyn Observer) -> Result<Vec<RemoteRef>, RemoteError> {
        let repo = self.repo()?;
        list(&repo).map_err(|e| self.error(&e))
    }

    fn pack(
        &self,
        want: &Want,
        sink: &mut dyn Write,
        observer: &dyn Observer,
    ) -> Result<Vec<CommitId>, RemoteError> {
        let repo = self.repo()?;
        let mut selection = Selection::new(&repo, want).map_err(|e| self.error(&e))?;
        selection
            .collect(want, observer)
            .map_err(|e| match observer.is_cancelled() {
                true => RemoteError::Cancelled,
                false => self.error(&e),
            })?;
        let mut failed = None;
        let written = selection.pack.foreach(|bytes| {
            if observer.is_cancelled() {
                return false;
            }
            match sink.write_all(bytes) {
                Ok(()) => true,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        match (written, failed) {
            (_, Some(error)) => Err(RemoteError::Local {
                detail: format!("the pack cannot be written: {error}"),
            }),
            (Err(_), None) if observer.is_cancelled() => Err(RemoteError::Cancelled),
            (Err(error), None) => Err(self.error(&error)),
            (Ok(()), None) => Ok(selection.boundary),
        }
    }
}

/// As `git ls-remote` lists them.
fn list(repo: &Repository) -> Result<Vec<RemoteRef>, git2::Error> {
    let mut refs = Vec::new();
    let mut add = |name: &str, oid: Oid| {
        refs.push(RemoteRef {
            name: name.to_owned(),
            commit: CommitId::from_oid(oid),
        });
    };
    if let Ok(head) = repo.head().and_then(|head| head.resolve()) {
        if let Some(oid) = head.target() {
            add("HEAD", oid);
        }
    }
    for found in repo.references()? {
        let found = found?;
        // One that names nothing, as the HEAD of an empty remote, is no ref for others.
        let Ok(direct) = found.resolve() else {
            continue;
        };
        let (Ok(name), Some(oid)) = (found.name(), direct.target()) else {
            continue;
        };
        add(name, oid);
        if let Ok(tag) = repo.find_tag(oid) {
            add(
                &format!("{name}^{{}}"),
                tag.as_object().peel(ObjectType::Any)?.id(),
            );
        }
    }
    Ok(refs)
}

/// The objects that go into a pack.
struct Selection<'a> {
    repo: &'a Repository,
    pack: PackBuilder<'a>,
    seen: HashSet<Oid>,
    had: HashSet<Oid>,
    boundary: Vec<CommitId>,
    /// Where the source's own history is cut, or that of the receiver shall stay so.
    shallow: HashSet<Oid>,
}

impl<'a> Selection<'a> {
    fn new(repo: &'a Repository, want: &Want) -> Result<Self, git2::Error> {
        let mut shallow: HashSet<Oid> = super::receive::shallow(repo).into_iter().collect();
        shallow.extend(want.shallow.iter().map(CommitId::oid));
        // What led to what they have they have, too. With a depth nothing is presumed.
        let mut had = HashSet::new();
        let mut pending: Vec<Oid> = want.have.iter().map(CommitId::oid).collect();
        while let Some(id) = pending.pop() {
            let Ok(commit) = repo.find_commit(id) else {
                continue;
            };
            if had.insert(id) && !shallow.contains(&id) {
                pending.extend(commit.parent_ids());
            }
        }
        let mut pack = repo.packbuilder()?;
        pack.set_threads(1);
        Ok(Self {
            repo,
            pack,
            seen: HashSet::new(),
            had,
            boundary: Vec::new(),
            shallow,
        })
    }

    fn collect(&mut self, want: &Want, observer: &dyn Observer) -> Result<(), git2::Error> {
        let mut queue = VecDeque::new();
        for wanted in &want.commits {
            if let Some(commit) = self.tip(wanted.oid())? {
                queue.push_back((commit, 1));
            }
        }
        let mut depths: HashMap<Oid, u32> = HashMap::new();
        let mut known_trees = HashSet::new();
        while let Some((id, depth)) = queue.pop_front() {
            if observer.is_cancelled() {
                return Err(git2::Error::from_str("cancelled"));
            }
            // Breadth first: the first visit is the shortest way.
            if self.had.contains(&id) || depths.insert(id, depth).is_some() {
                if self.had.contains(&id) && known_trees.insert(id) {
                    self.skip_tree(self.repo.find_commit(id)?.tree_id())?;
                }
                continue;
            }
            let commit = self.repo.find_commit(id)?;
            self.insert(id)?;
            let is_last = want.depth.is_some_and(|most| depth >= most);
            if self.shallow.contains(&id) {
                self.boundary.push(CommitId::from_oid(id));
                continue;
            }
            let mut cut = false;
            for parent in commit.parent_ids() {
                if is_last || self.repo.find_commit(parent).is_err() {
                    cut = true;
                } else {
                    queue.push_back((parent, depth + 1));
                }
            }
            if cut {
                self.boundary.push(CommitId::from_oid(id));
            }
        }
        // A commit at the boundary of one history may be within another.
        let (repo, shallow) = (self.repo, &self.shallow);
        self.boundary.retain(|id| {
            let sent = |commit: git2::Commit<'_>| {
                let mut parents = commit.parent_ids();
                parents.all(|parent| depths.contains_key(&parent))
            };
            shallow.contains(&id.oid()) || !repo.find_commit(id.oid()).is_ok_and(sent)
        });
        let mut commits: Vec<_> = depths.into_iter().collect();
        commits.sort_by_key(|(_, depth)| *depth);
        for (id, _) in commits {
            let tree = self.repo.find_commit(id)?.tree_id();
            self.insert_tree(tree, observer)?;
        }
        Ok(())
    }

    /// The commit at the end of tags, which are inserted; `None` if it is another object.
    fn tip(&mut self, mut id: Oid) -> Result<Option<Oid>, git2::Error> {
        loop {
            let object = self.repo.find_object(id, None)?;
            match object.kind() {
                Some(ObjectType::Commit) => return Ok(Some(id)),
                Some(ObjectType::Tag) => {
                    self.insert(id)?;
                    id = self.repo.find_tag(id)?.target_id();
                }
                Some(ObjectType::Tree) => {
                    self.insert_tree(id, &())?;
                    return Ok(None);
                }
                _ => {
                    self.insert(id)?;
                    return Ok(None);
                }
            }
        }
    }

    fn insert(&mut self, id: Oid) -> Result<(), git2::Error> {
        if self.seen.insert(id) {
            self.pack.insert_object(id, None)?;
        }
        Ok(())
    }

    /// Whoever has a commit has its files.
    fn skip_tree(&mut self, root: Oid) -> Result<(), git2::Error> {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            if !self.seen.insert(id) {
                continue;
            }
            for entry in &self.repo.find_tree(id)? {
                match entry.kind() {
                    Some(ObjectType::Tree) => pending.push(entry.id()),
                    _ => {
                        self.seen.insert(entry.id());
                    }
                }
            }
        }
        Ok(())
    }

    fn insert_tree(&mut self, root: Oid, observer: &dyn Observer) -> Result<(), git2::Error> {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            if self.seen.contains(&id) {
                continue;
            }
            if observer.is_cancelled() {
                return Err(git2::Error::from_str("cancelled"));
            }
            self.insert(id)?;
            for entry in &self.repo.find_tree(id)? {
                match entry.kind() {
                    Some(ObjectType::Tree) => pending.push(entry.id()),
                    // A submodule names a commit of another repository.
                    Some(ObjectType::Commit) => {}
                    _ => self.insert(entry.id())?,
                }
            }
        }
        Ok(())
    }
}

/// A folder of LFS objects as git-lfs keeps it, `ab/cd/<sha256>`.
#[derive(Clone, Debug)]
pub struct LocalObjects {
    folder: PathBuf,
}

impl LocalObjects {
    fn path(&self, object: &Pointer) -> PathBuf {
        let hex = object.oid.as_str();
        self.folder.join(&hex[..2]).join(&hex[2..4]).join(hex)
    }
}

impl ObjectSource for LocalObjects {
    fn fetch(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        let mut transfer = Transfer::default();
        let bytes_total = objects.iter().map(|object| object.size).sum();
        let mut bytes_done = 0;
        for object in objects {
            if observer.is_cancelled() {
                return Err(LfsError::Cancelled);
            }
            if store.size(&object.oid).map_err(LfsError::Store)? == Some(object.size) {
                store.mark_used(&object.oid);
                transfer.objects_present += 1;
            } else {
                let path = self.path(object);
                let mut file = File::open(&path).map_err(|e| LfsError::MissingObject {
                    oid: object.oid.clone(),
                    detail: format!("{}: {e}", path.display()),
                })?;
                store
                    .insert_verified(&mut file, object)
                    .map_err(LfsError::Store)?;
                transfer.objects_moved += 1;
                transfer.bytes_moved += object.size;
            }
            bytes_done += object.size;
            observer.progress(Progress::Objects {
                bytes_done,
                bytes_total,
            });
        }
        Ok(transfer)
    }
}

/// Puts objects of `store` where git-lfs looks for them in the bare repository at `bare`.
pub(crate) fn store_objects(
    objects: &[Pointer],
    store: &ObjectStore,
    target: &LocalSource,
    observer: &dyn Observer,
) -> Result<Transfer, LfsError> {
    let mut transfer = Transfer::default();
    let target = target.objects();
    for object in objects {
        if observer.is_cancelled() {
            return Err(LfsError::Cancelled);
        }
        let path = target.path(object);
        if path
            .metadata()
            .is_ok_and(|found| found.len() == object.size)
        {
            transfer.objects_present += 1;
            continue;
        }
        if store.size(&object.oid).map_err(LfsError::Store)? != Some(object.size) {
            return Err(LfsError::NotInStore {
                oid: object.oid.clone(),
            });
        }
        copy(&store.path(&object.oid), &path).map_err(|source| {
            LfsError::Store(StoreError::Io {
                act: "write",
                path: path.clone(),
                source,
            })
        })?;
        transfer.objects_moved += 1;
        transfer.bytes_moved += object.size;
    }
    Ok(transfer)
}

/// A copy that is there whole or not at all. Not a link: others may write to theirs.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let folder = to.parent().unwrap_or(to);
    crate::durable::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::copy(&mut File::open(from)?, file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(to).map_err(|e| e.error)?;
    crate::durable::sync_dir(folder)
}
