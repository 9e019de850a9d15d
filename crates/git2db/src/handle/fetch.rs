//! Fetching into a repository.

use std::collections::{BTreeMap, BTreeSet};

use git2::Repository;

use super::{
    RepositoryHandle,
    error::FetchError,
    fetch_options::{Depth, FetchOptions, Fetched, Tags},
    update::{self, is_tag},
};
use crate::{
    CommitId, Credentials, Observer, RemoteError, RemoteUrl,
    remote::{self, RemoteRef},
    repo::{self, Download, UNSHALLOW},
    transport::{self, GitSource, LocalSource, Want},
};

/// By which way objects come.
#[derive(Clone, Copy)]
enum Way<'a> {
    Server(&'a Credentials),
    Source(&'a dyn GitSource),
}

/// A ref to be changed.
struct Planned {
    source: String,
    commit: CommitId,
    target: Option<String>,
    force: bool,
}

impl RepositoryHandle {
    /// Fetches from a configured remote, as `git fetch` does. LFS objects are not fetched.
    ///
    /// All objects come and are found complete before a ref is changed; each ref is then changed
    /// by itself, and only if it still names what it named before. One fetch at a time per
    /// repository, across processes.
    ///
    /// # Errors
    /// No ref was changed, unless it is one of writing a ref.
    pub fn fetch(
        &self,
        remote: &str,
        options: &FetchOptions,
        credentials: &Credentials,
        observer: &dyn Observer,
    ) -> Result<Fetched, FetchError> {
        let configured = self.remote(remote)?;
        let url = configured.url.map_err(|source| FetchError::Url {
            name: remote.to_owned(),
            source,
        })?;
        let mut options = options.clone();
        if options.refspecs.is_empty() {
            let parsed: Result<_, _> = configured.fetch.iter().map(|spec| spec.parse()).collect();
            options.refspecs = parsed.map_err(FetchError::Refspec)?;
        }
        self.fetch_url(&url, &options, credentials, observer)
    }

    /// Fetches from a URL, just what the refspecs name. A path on this machine is read without a
    /// server and may be shallow.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_url(
        &self,
        url: &RemoteUrl,
        options: &FetchOptions,
        credentials: &Credentials,
        observer: &dyn Observer,
    ) -> Result<Fetched, FetchError> {
        match url.to_path() {
            Some(path) => {
                let source = LocalSource::open(&path).map_err(FetchError::Remote)?;
                self.run_fetch(url, Way::Source(&source), options, observer)
            }
            None => self.run_fetch(url, Way::Server(credentials), options, observer),
        }
    }

    /// Fetches from a [`GitSource`], such as a peer, what the refspecs name. `url` is what errors
    /// call it.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_from(
        &self,
        source: &dyn GitSource,
        url: &RemoteUrl,
        options: &FetchOptions,
        observer: &dyn Observer,
    ) -> Result<Fetched, FetchError> {
        self.run_fetch(url, Way::Source(source), options, observer)
    }

    fn run_fetch(
        &self,
        url: &RemoteUrl,
        way: Way<'_>,
        options: &FetchOptions,
        observer: &dyn Observer,
    ) -> Result<Fetched, FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        let _lock = repo::lock(self.path(), observer).map_err(FetchError::Remote)?;
        let heads = match way {
            Way::Server(credentials) => {
                remote::list_within(url, credentials, &options.limits, observer)
            }
            Way::Source(source) => source.refs(observer),
        }
        .map_err(FetchError::Remote)?;
        let plan = plan(&heads, options, url).map_err(FetchError::Remote)?;
        let transfer = Transfer {
            handle: self,
            repo: &repo,
            url,
            way,
            options,
            observer,
        };
        transfer.bring(&plan, options.depth)?;
        let mut changes = plan;
        if options.tags == Tags::Following {
            let tags = transfer.following(&heads, &changes);
            // Their commits are here; the tags' own objects may not be.
            transfer.bring(&tags, Depth::AsIs)?;
            changes.extend(tags);
        }
        let access = |e| FetchError::Repo(repo::access(self.path())(e));
        let mut fetched = Fetched::default();
        if options.prune {
            let there: BTreeSet<&str> = heads.iter().map(|head| head.name.as_str()).collect();
            let gone = |name: &str| {
                let mut sources = options.refspecs.iter().filter_map(|spec| spec.unmap(name));
                sources
                    .next()
                    .is_some_and(|source| !there.contains(source.as_str()))
            };
            fetched.updated = update::prune(&repo, &gone).map_err(access)?;
        }
        for Planned {
            commit,
            target,
            force,
            ..
        } in changes
        {
            let Some(target) = target else { continue };
            match update::set(&repo, &target, &commit, force).map_err(access)? {
                Ok(None) => {}
                Ok(Some(updated)) => fetched.updated.push(updated),
                Err(why) => fetched.rejected.push((target, why.to_owned())),
            }
        }
        Ok(fetched)
    }
}

/// Which refs come, and where they are kept.
fn plan(
    heads: &[RemoteRef],
    options: &FetchOptions,
    url: &RemoteUrl,
) -> Result<Vec<Planned>, RemoteError> {
    let mut planned = BTreeMap::new();
    let mut add = |head: &RemoteRef, target: Option<String>, force| {
        let key = (head.name.clone(), target.clone());
        planned.entry(key).or_insert(Planned {
            source: head.name.clone(),
            commit: head.commit.clone(),
            target,
            force,
        });
    };
    for spec in &options.refspecs {
        let mut found = false;
        for head in heads.iter().filter(|head| !head.name.ends_with("^{}")) {
            if spec.matches(&head.name) {
                found = true;
                add(head, spec.target(&head.name), spec.is_forced());
            }
        }
        if !found && !spec.source().contains('*') {
            let reference = spec.reference();
            let url = url.clone();
            return Err(RemoteError::ReferenceNotFound { url, reference });
        }
    }
    if options.tags == Tags::All {
        for head in heads.iter().filter(|head| is_tag(&head.name)) {
            add(head, Some(head.name.clone()), false);
        }
    }
    Ok(planned.into_values().collect())
}

struct Transfer<'a> {
    handle: &'a RepositoryHandle,
    repo: &'a Repository,
    url: &'a RemoteUrl,
    way: Way<'a>,
    options: &'a FetchOptions,
    observer: &'a dyn Observer,
}

impl Transfer<'_> {
    /// Brings the objects of the planned refs.
    fn bring(&self, planned: &[Planned], depth: Depth) -> Result<(), FetchError> {
        let wanted: BTreeSet<_> = planned.iter().map(|p| p.commit.clone()).collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        let cut = self.repo.is_shallow();
        let is_here = match depth {
            Depth::AsIs => true,
            Depth::Whole => !cut,
            Depth::Commits(_) => false,
        };
        let repo = self.repo;
        if wanted.is_empty()
            || (is_here && transport::ensure_whole(repo, &wanted, self.url, self.observer).is_ok())
        {
            return Ok(());
        }
        match self.way {
            Way::Server(credentials) => {
                let mut names: Vec<_> = planned.iter().map(|p| p.source.clone()).collect();
                names.dedup();
                let download = Download {
                    url: self.url,
                    credentials,
                    names: &names,
                    depth: match depth {
                        Depth::Commits(depth) => i32::try_from(depth.get()).unwrap_or(UNSHALLOW),
                        Depth::Whole if cut => UNSHALLOW,
                        Depth::AsIs | Depth::Whole => 0,
                    },
                    limits: &self.options.limits,
                };
                // libgit2 does not look whether a server sent all that belongs to a commit.
                repo::download(repo, self.handle.path(), &download, self.observer)
                    .and_then(|()| transport::ensure_whole(repo, &wanted, self.url, self.observer))
            }
            Way::Source(source) => {
                let want = match depth {
                    Depth::AsIs => transport::want_new(repo, wanted)
                        .map_err(|e| FetchError::Repo(repo::access(self.handle.path())(e)))?,
                    Depth::Commits(depth) => Want {
                        commits: wanted,
                        depth: Some(depth.get()),
                        ..Want::default()
                    },
                    Depth::Whole => Want {
                        commits: wanted,
                        ..Want::default()
                    },
                };
                let limits = &self.options.limits;
                transport::receive(repo, source, &want, self.url, limits, self.observer)
            }
        }
        .map_err(FetchError::Remote)
    }

    /// The tags that name commits that are here, and that are not here themselves.
    fn following(&self, heads: &[RemoteRef], planned: &[Planned]) -> Vec<Planned> {
        let Ok(odb) = self.repo.odb() else {
            return Vec::new();
        };
        let named: BTreeSet<_> = planned.iter().filter_map(|p| p.target.as_deref()).collect();
        let peeled: BTreeMap<_, _> = heads
            .iter()
            .filter_map(|head| Some((head.name.strip_suffix("^{}")?, &head.commit)))
            .collect();
        heads
            .iter()
            .filter(|head| is_tag(&head.name) && !named.contains(head.name.as_str()))
            .filter(|head| self.repo.find_reference(&head.name).is_err())
            .filter(|head| {
                let at = peeled.get(head.name.as_str()).copied();
                odb.exists(at.unwrap_or(&head.commit).oid())
            })
            .map(|head| Planned {
                source: head.name.clone(),
                commit: head.commit.clone(),
                target: Some(head.name.clone()),
                force: false,
            })
            .collect()
    }
}
