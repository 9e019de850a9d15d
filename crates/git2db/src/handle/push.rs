//! Pushing several refs at once.

use std::cell::RefCell;

use git2::{Oid, PushOptions, Repository};

use super::{
    RepositoryHandle,
    push_error::PushError,
    push_local,
    push_ref::{PushRef, Resolved, check},
};
use crate::{
    CommitId, Credentials, Limits, Observer, RemoteUrl,
    commit::upload_new_objects,
    lfs::Transfer,
    libgit::{Session, proxy},
    remote::{self, RemoteRef},
    repo,
};

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The LFS objects, which went first.
    pub objects: Transfer,
    /// The refs of the remote that were changed; without those that named the right commit already.
    pub changed: Vec<String>,
}

impl RepositoryHandle {
    /// Pushes refs to `url`: first the LFS objects that the remote may lack, then all refs in one
    /// request.
    ///
    /// What is promised: no ref is sent unless all of them pass what can be told here (they exist,
    /// are fast-forwards or forced, and the remote's refs are as expected in the very answer that
    /// the request is based on). A server changes a ref only if it still names what that answer
    /// said. A server may nonetheless take some and refuse others for reasons of its own, such as
    /// a hook or a push at the same time: `Refused` tells which. To a path on this machine all refs
    /// are locked before the first is changed, so that it is all or nothing but for a crash.
    ///
    /// # Errors
    /// Nothing was changed, unless it is a `Refused` that names refs that were taken.
    pub fn push(
        &self,
        url: &RemoteUrl,
        refs: &[PushRef],
        credentials: &Credentials,
        observer: &dyn Observer,
    ) -> Result<Pushed, PushError> {
        let repo = self.repo().map_err(PushError::Repo)?;
        let refs = resolve(&repo, refs)?;
        if let Some(path) = url.to_path() {
            return push_local::push(self, &repo, &path, url, &refs, observer);
        }
        let heads = remote::list_for_push(url, credentials, observer).map_err(PushError::Remote)?;
        // Before bytes are moved; the answer of the push itself is looked at again.
        let changed = check(&repo, &refs, |name| named(&heads, name), url)?;
        if changed.is_empty() {
            return Ok(Pushed {
                objects: Transfer::default(),
                changed: Vec::new(),
            });
        }
        let tips: Vec<Oid> = changed.iter().filter_map(|r| r.new).collect();
        let hint = changed
            .iter()
            .find(|r| r.new.is_some())
            .map(|r| r.name.as_str());
        let objects = upload_new_objects(self, &tips, &heads, url, credentials, hint, observer)
            .map_err(PushError::Objects)?;
        self.send(&repo, &changed, url, credentials, observer)?;
        Ok(Pushed {
            objects,
            changed: changed.into_iter().map(|r| r.name).collect(),
        })
    }

    fn send(
        &self,
        repo: &Repository,
        refs: &[Resolved],
        url: &RemoteUrl,
        credentials: &Credentials,
        observer: &dyn Observer,
    ) -> Result<(), PushError> {
        remote::follow_no_redirects(repo)
            .map_err(|e| PushError::Repo(repo::access(self.path())(e)))?;
        let session = Session::new(url, credentials, observer, &Limits::default(), None)
            .map_err(PushError::Remote)?;
        let (objected, refused) = (RefCell::new(None), RefCell::new(Vec::new()));
        let taken = RefCell::new(Vec::new());
        let pushed = {
            let mut callbacks = session.callbacks();
            callbacks.push_negotiation(|updates| {
                let now = |name: &str| {
                    let update = updates
                        .iter()
                        .find(|update| update.dst_refname().is_ok_and(|n| n == name));
                    update
                        .map(git2::PushUpdate::src)
                        .filter(|oid| !oid.is_zero())
                };
                check(repo, refs, now, url).map(|_| ()).map_err(|error| {
                    objected.replace(Some(error));
                    git2::Error::from_str("the remote's refs are not as they should be")
                })
            });
            callbacks.push_update_reference(|name, status| {
                match status {
                    Some(status) => refused.borrow_mut().push((name.to_owned(), shown(status))),
                    None => taken.borrow_mut().push(name.to_owned()),
                }
                Ok(())
            });
            let mut options = PushOptions::new();
            options
                .remote_callbacks(callbacks)
                .proxy_options(proxy())
                .follow_redirects(session.redirects());
            // Forced for libgit2, since we have looked ourselves and it would look at less.
            let specs: Vec<String> = refs
                .iter()
                .map(|r| match r.new {
                    Some(new) => format!("+{new}:{}", r.name),
                    None => format!(":{}", r.name),
                })
                .collect();
            repo.remote_anonymous(&session.address())
                .and_then(|mut remote| remote.push(&specs, Some(&mut options)))
        };
        if let Some(error) = objected.into_inner() {
            return Err(error);
        }
        let refused = refused.into_inner();
        if !refused.is_empty() {
            return Err(PushError::Refused {
                url: url.clone(),
                refused,
                taken: taken.into_inner(),
            });
        }
        pushed.map_err(|error| PushError::Remote(session.error(&error)))
    }
}

/// What the refs name here.
fn resolve(repo: &Repository, refs: &[PushRef]) -> Result<Vec<Resolved>, PushError> {
    let mut resolved: Vec<Resolved> = Vec::new();
    for wanted in refs {
        let name = wanted.target.clone();
        let invalid = !name.starts_with("refs/") || !git2::Reference::is_valid_name(&name);
        if invalid || resolved.iter().any(|other| other.name == name) {
            return Err(PushError::InvalidTarget { name });
        }
        let new = match &wanted.source {
            None => None,
            Some(source) => Some(find(repo, source).ok_or_else(|| PushError::SourceMissing {
                name: source.clone(),
            })?),
        };
        resolved.push(Resolved {
            name,
            new,
            force: wanted.force,
            expected: wanted.expected.clone(),
        });
    }
    Ok(resolved)
}

/// What a source names: a ref, or a commit by its full name.
fn find(repo: &Repository, source: &str) -> Option<Oid> {
    if source.starts_with("refs/") || source == "HEAD" {
        return repo.refname_to_id(source).ok();
    }
    if let Ok(id) = source.parse::<CommitId>() {
        return repo
            .find_object(id.oid(), None)
            .ok()
            .map(|found| found.id());
    }
    ["refs/heads/", "refs/tags/"]
        .iter()
        .find_map(|folder| repo.refname_to_id(&format!("{folder}{source}")).ok())
}

fn named(heads: &[RemoteRef], name: &str) -> Option<Oid> {
    let head = heads.iter().find(|head| head.name == name)?;
    Some(head.commit.oid())
}

/// A server's words without what could do something to a terminal.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
