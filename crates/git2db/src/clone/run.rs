//! The steps of a clone.

use std::path::PathBuf;

use super::{CloneBuilder, CloneError, Cloned};
use crate::{
    CommitId, Depth, Digest, FetchOptions, Include, Observer, Reference, RemoteError,
    RepositoryHandle, Tags,
    handle::Refspec,
    lfs::{self, ObjectSource as _},
    lock::FileLock,
    manager::ManagerError,
    remote::{self, RemoteRef},
    repo::{self, Download},
    transport::{self, GitSource, LocalSource, Want},
    tree,
};

pub(super) fn run(clone: &CloneBuilder<'_>, observer: &dyn Observer) -> Result<Cloned, CloneError> {
    let mut include = Include::new(&clone.include).map_err(CloneError::Glob)?;
    if !clone.exclude.is_empty() {
        include = include
            .excluding(&clone.exclude)
            .map_err(CloneError::Glob)?;
    }
    let (path, lock_path) = aside(clone);
    let lock = FileLock::acquire(&lock_path, &|| observer.is_cancelled())
        .map_err(|e| CloneError::Manager(ManagerError::io("lock", &lock_path, e)))?
        .ok_or(CloneError::Remote(RemoteError::Cancelled))?;
    match clone.db.get(&clone.name) {
        Err(ManagerError::NotTracked { .. }) => {}
        Ok(_) => {
            let name = clone.name.clone();
            return Err(CloneError::Manager(ManagerError::NameTaken { name }));
        }
        Err(error) => return Err(CloneError::Manager(error)),
    }
    let store = clone.db.store().clone();
    let handle = RepositoryHandle::init(&path, store).map_err(CloneError::Repo)?;
    if handle.remote("origin").is_err() {
        handle
            .add_remote("origin", &clone.url)
            .map_err(CloneError::Fetch)?;
    }
    let local = match (clone.git, clone.url.to_path()) {
        (None, Some(path)) => Some(LocalSource::open(&path).map_err(CloneError::Remote)?),
        _ => None,
    };
    let source = clone
        .git
        .or(local.as_ref().map(|local| local as &dyn GitSource));
    let step = Step {
        clone,
        handle: &handle,
        source,
        observer,
    };
    let commit = step.git()?;
    let objects = if clone.with_lfs {
        step.large_files(&commit, &include, local.as_ref())?
    } else {
        lfs::Transfer::default()
    };
    let url = Some(clone.url.clone());
    let tracked = clone
        .db
        .take_in(clone.name.clone(), &path, url, step.followed()?, true)
        .map_err(CloneError::Manager)?;
    // Whoever waits for the lock sees that it is gone and makes another.
    std::fs::remove_file(&lock_path)
        .map_err(|e| CloneError::Manager(ManagerError::io("remove", &lock_path, e)))?;
    drop(lock);
    Ok(Cloned {
        tracked,
        commit,
        objects,
    })
}

/// Where the clone lies until it is complete, and its lock. The same for the same name and URL.
fn aside(clone: &CloneBuilder<'_>) -> (PathBuf, PathBuf) {
    let key = Digest::of(format!("{}\0{}", clone.name, clone.url).as_bytes());
    let folder = clone.db.root().join("clones");
    let name = &key.as_str()[..32];
    (
        folder.join(format!("{name}.git")),
        folder.join(format!("{name}.lock")),
    )
}

struct Step<'a> {
    clone: &'a CloneBuilder<'a>,
    handle: &'a RepositoryHandle,
    source: Option<&'a dyn GitSource>,
    observer: &'a dyn Observer,
}

impl Step<'_> {
    /// Brings the git objects, and sets refs and `HEAD`. Returns the wanted commit.
    fn git(&self) -> Result<CommitId, CloneError> {
        let clone = self.clone;
        if let Reference::Commit(commit) = &clone.reference {
            self.one_commit(commit)?;
            self.detach(commit)?;
            return Ok(commit.clone());
        }
        let heads = match self.source {
            Some(source) => source.refs(self.observer),
            None => {
                remote::list_within(&clone.url, &clone.credentials, &clone.limits, self.observer)
            }
        }
        .map_err(CloneError::Remote)?;
        let missing = || {
            CloneError::Remote(RemoteError::ReferenceNotFound {
                url: clone.url.clone(),
                reference: clone.reference.clone(),
            })
        };
        let wanted = match &clone.reference {
            Reference::Head => default_branch(&heads).ok_or_else(missing)?,
            other => other.full_name().ok_or_else(missing)?,
        };
        let kept = wanted.replacen("refs/heads/", "refs/remotes/origin/", 1);
        let one = Refspec::one(&wanted, Some(kept.clone()), true);
        let options = match clone.depth {
            Some(depth) => FetchOptions {
                refspecs: vec![one],
                tags: Tags::None,
                depth: Depth::Commits(depth),
                limits: clone.limits,
                ..FetchOptions::default()
            },
            None => FetchOptions {
                refspecs: vec![Refspec::branches("origin"), one],
                tags: Tags::All,
                prune: true,
                depth: Depth::Whole,
                limits: clone.limits,
            },
        };
        let fetched = match self.source {
            Some(source) => self
                .handle
                .fetch_from(source, &clone.url, &options, self.observer),
            None => self
                .handle
                .fetch_url(&clone.url, &options, &clone.credentials, self.observer),
        };
        let fetched = fetched.map_err(CloneError::Fetch)?;
        // Everything is forced and nothing checked out, but for a tag that moved since an attempt
        // that was broken off.
        tracing::debug!(rejected = ?fetched.rejected, "cloned");
        let kept = match wanted.strip_prefix("refs/heads/") {
            Some(branch) => Reference::Branch(format!("origin/{branch}")),
            None => clone.reference.clone(),
        };
        let commit = self.read(&kept)?.ok_or_else(missing)?;
        match wanted.strip_prefix("refs/heads/") {
            Some(branch) => {
                let branch = Reference::Branch(branch.to_owned());
                repo::set_reference(self.handle.path(), &branch, &commit)
                    .map_err(CloneError::Repo)?;
            }
            None => self.detach(&commit)?,
        }
        Ok(commit)
    }

    /// What is here of a tag, or of `origin/BRANCH`.
    fn read(&self, reference: &Reference) -> Result<Option<CommitId>, CloneError> {
        let Reference::Branch(branch) = reference else {
            return repo::resolve_local(self.handle.path(), reference).map_err(CloneError::Repo);
        };
        let repo = self.handle.repo().map_err(CloneError::Repo)?;
        let found = repo.refname_to_id(&format!("refs/remotes/{branch}"));
        Ok(found.ok().map(CommitId::from_oid))
    }

    fn one_commit(&self, commit: &CommitId) -> Result<(), CloneError> {
        let clone = self.clone;
        let repo = self.handle.repo().map_err(CloneError::Repo)?;
        let lock = repo::lock(self.handle.path(), self.observer).map_err(CloneError::Remote)?;
        let commits = vec![commit.clone()];
        if transport::ensure_whole(&repo, &commits, &clone.url, self.observer).is_ok() {
            return Ok(());
        }
        if let Some(source) = self.source {
            let want = Want {
                commits,
                depth: clone.depth.map(std::num::NonZeroU32::get),
                ..Want::default()
            };
            return transport::receive(
                &repo,
                source,
                &want,
                &clone.url,
                &clone.limits,
                self.observer,
            )
            .map_err(CloneError::Remote);
        }
        if let Some(depth) = clone.depth.filter(|depth| depth.get() > 1) {
            let wanted = Download {
                url: &clone.url,
                credentials: &clone.credentials,
                names: &[commit.to_string()],
                depth: i32::try_from(depth.get()).unwrap_or(repo::UNSHALLOW),
                limits: &clone.limits,
            };
            return repo::download(&repo, self.handle.path(), &wanted, self.observer)
                .and_then(|()| transport::ensure_whole(&repo, &commits, &clone.url, self.observer))
                .map_err(CloneError::Remote);
        }
        drop(lock);
        let fetch = repo::Fetch {
            url: &clone.url,
            reference: &clone.reference,
            commit,
            history: match clone.depth {
                Some(_) => repo::History::None,
                None => repo::History::Whole,
            },
            credentials: &clone.credentials,
        };
        repo::fetch_commit_within(self.handle.path(), &fetch, &clone.limits, self.observer)
            .map_err(CloneError::Remote)
    }

    fn detach(&self, commit: &CommitId) -> Result<(), CloneError> {
        let repo = self.handle.repo().map_err(CloneError::Repo)?;
        repo.set_head_detached(commit.oid())
            .map_err(|e| CloneError::Repo(repo::access(self.handle.path())(e)))
    }

    fn large_files(
        &self,
        commit: &CommitId,
        include: &Include,
        local: Option<&LocalSource>,
    ) -> Result<lfs::Transfer, CloneError> {
        let clone = self.clone;
        let entries = tree::walk(self.handle.path(), commit, include, &clone.limits)
            .map_err(CloneError::Tree)?;
        let objects = tree::pointers(&entries);
        if objects.is_empty() {
            return Ok(lfs::Transfer::default());
        }
        let store = self.handle.store();
        match (clone.objects, local) {
            (Some(source), _) => source.fetch(&objects, store, self.observer),
            (None, Some(local)) => local.objects().fetch(&objects, store, self.observer),
            (None, None) => lfs::Client::new(&clone.url, &clone.credentials, clone.options)
                .and_then(|client| client.download(&objects, store, self.observer)),
        }
        .map_err(CloneError::Lfs)
    }

    /// What the entry follows: the default branch by its name.
    fn followed(&self) -> Result<Reference, CloneError> {
        if self.clone.reference != Reference::Head {
            return Ok(self.clone.reference.clone());
        }
        let repo = self.handle.repo().map_err(CloneError::Repo)?;
        let head = repo
            .find_reference("HEAD")
            .map_err(|e| CloneError::Repo(repo::access(self.handle.path())(e)))?;
        let name = head.symbolic_target().ok().flatten();
        let branch = name.and_then(|name| name.strip_prefix("refs/heads/"));
        Ok(branch.map_or(Reference::Head, |b| Reference::Branch(b.to_owned())))
    }
}

/// The branch that `HEAD` stands for: one with its commit, `main` and `master` before others, as
/// git guessed before servers told it.
fn default_branch(heads: &[RemoteRef]) -> Option<String> {
    let head = heads.iter().find(|head| head.name == "HEAD")?;
    let mut same: Vec<&str> = heads
        .iter()
        .filter(|other| other.commit == head.commit && other.name.starts_with("refs/heads/"))
        .map(|other| other.name.as_str())
        .collect();
    same.sort_by_key(|name| match *name {
        "refs/heads/main" => 0,
        "refs/heads/master" => 1,
        _ => 2,
    });
    same.first().map(|&name| name.to_owned())
}
