//! Pushing to a repository on this machine, all refs or none.

use std::path::Path;

use git2::{ErrorCode, Oid, Repository};

use super::{
    RepositoryHandle,
    push::Pushed,
    push_error::PushError,
    push_ref::{Resolved, check},
    update::is_checked_out,
};
use crate::{
    CommitError, CommitId, Limits, Observer, RemoteError, RemoteUrl,
    commit::new_objects,
    libgit::remote_error,
    remote::RemoteRef,
    repo,
    transport::{self, GitSource as _, LocalSource},
};

pub(super) fn push(
    handle: &RepositoryHandle,
    repo: &Repository,
    path: &Path,
    url: &RemoteUrl,
    refs: &[Resolved],
    observer: &dyn Observer,
) -> Result<Pushed, PushError> {
    let target = LocalSource::open(path).map_err(PushError::Remote)?;
    let remote = if path.join(".git").exists() {
        repo::open_worktree(path)
    } else {
        repo::open(path)
    }
    .map_err(PushError::Repo)?;
    let failed = |e: git2::Error| PushError::Remote(remote_error(url, &e));
    let now = |name: &str| remote.refname_to_id(name).ok();
    let changed = check(repo, refs, now, url)?;
    for wanted in &changed {
        if is_checked_out(&remote, &wanted.name) {
            return Err(PushError::Rejected {
                url: url.clone(),
                name: wanted.name.clone(),
                why: "a working folder of the remote shows it".to_owned(),
            });
        }
    }
    let tips: Vec<Oid> = changed.iter().filter_map(|r| r.new).collect();
    let heads: Vec<RemoteRef> = target.refs(observer).map_err(PushError::Remote)?;
    let objects = new_objects(repo, handle.path(), &tips, &heads, handle.store())
        .map_err(PushError::Objects)?;
    let objects = transport::store_objects(&objects, handle.store(), &target, observer)
        .map_err(|e| PushError::Objects(CommitError::Lfs(e)))?;
    let commits: Vec<_> = tips.iter().copied().map(CommitId::from_oid).collect();
    if !commits.is_empty() && transport::ensure_whole(&remote, &commits, url, observer).is_err() {
        let source = LocalSource::open(&absolute(handle.path())?).map_err(PushError::Remote)?;
        let want = transport::want_new(&remote, commits).map_err(failed)?;
        let limits = Limits::default();
        transport::receive(&remote, &source, &want, url, &limits, observer)
            .map_err(PushError::Remote)?;
    }
    let mut transaction = remote.transaction().map_err(failed)?;
    for wanted in &changed {
        transaction
            .lock_ref(&wanted.name)
            .map_err(|error| match error.code() {
                ErrorCode::Locked => PushError::Rejected {
                    url: url.clone(),
                    name: wanted.name.clone(),
                    why: "another is changing it".to_owned(),
                },
                _ => failed(error),
            })?;
    }
    // Nobody else changes them from here on.
    check(repo, &changed, now, url)?;
    for wanted in &changed {
        match wanted.new {
            Some(new) => transaction.set_target(&wanted.name, new, None, "push"),
            None => transaction.remove(&wanted.name),
        }
        .map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(Pushed {
        objects,
        changed: changed.into_iter().map(|r| r.name).collect(),
    })
}

fn absolute(path: &Path) -> Result<std::path::PathBuf, PushError> {
    std::fs::canonicalize(path).map_err(|e| {
        PushError::Remote(RemoteError::Local {
            detail: format!("{} cannot be found: {e}", path.display()),
        })
    })
}
