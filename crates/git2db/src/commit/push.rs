//! Pushing a branch with its LFS objects.

use std::path::Path;

use git2::{FileMode, Oid, Repository};

use super::{CommitError, branch_ref};
use crate::{
    CommitId, Credentials, Observer, PushError, PushRef, RemoteUrl, RepoError, RepositoryHandle,
    lfs::{Client, MAX_POINTER_BYTES, Options, Pointer, Transfer},
    remote::RemoteRef,
    repo,
    store::ObjectStore,
    tree,
};

/// Pushes `branch` to the remote: first the LFS objects of those of its commits that the remote
/// does not have, out of `store`, then the branch. Never forces; a branch that has other commits
/// there is `Rejected`. For several refs at once there is [`RepositoryHandle::push`].
pub fn push(
    bare: &Path,
    branch: &str,
    url: &RemoteUrl,
    credentials: &Credentials,
    store: &ObjectStore,
    observer: &dyn Observer,
) -> Result<Transfer, CommitError> {
    let name = branch_ref(branch)?;
    let rejected = |detail: String| CommitError::Rejected {
        url: url.clone(),
        branch: branch.to_owned(),
        detail,
    };
    let repository = RepositoryHandle::open(bare, store.clone()).map_err(CommitError::Repo)?;
    let pushed = repository.push(url, &[PushRef::branch(branch)], credentials, observer);
    pushed
        .map(|pushed| pushed.objects)
        .map_err(|error| match error {
            PushError::Repo(error) => CommitError::Repo(error),
            PushError::Objects(error) => error,
            PushError::Remote(error) => CommitError::Remote(error),
            PushError::SourceMissing { .. } | PushError::InvalidTarget { .. } => {
                CommitError::Repo(RepoError::InvalidReference { name })
            }
            PushError::Rejected { why, .. } => rejected(why),
            PushError::Refused { refused, .. } => {
                let said = refused.into_iter().map(|(_, why)| why);
                rejected(said.collect::<Vec<_>>().join(", "))
            }
        })
}

/// Uploads the LFS objects that `tips` bring and that no commit of the remote has. The server is
/// told of the ref `hint`.
pub(crate) fn upload_new_objects(
    handle: &RepositoryHandle,
    tips: &[Oid],
    heads: &[RemoteRef],
    url: &RemoteUrl,
    credentials: &Credentials,
    hint: Option<&str>,
    observer: &dyn Observer,
) -> Result<Transfer, CommitError> {
    let repo = handle.repo().map_err(CommitError::Repo)?;
    let objects = new_objects(&repo, handle.path(), tips, heads, handle.store())?;
    upload(&objects, url, credentials, handle.store(), hint, observer)
}

fn upload(
    objects: &[Pointer],
    url: &RemoteUrl,
    credentials: &Credentials,
    store: &ObjectStore,
    hint: Option<&str>,
    observer: &dyn Observer,
) -> Result<Transfer, CommitError> {
    if objects.is_empty() {
        return Ok(Transfer::default());
    }
    Client::new(url, credentials, Options::default())
        .and_then(|client| client.upload(objects, store, hint, observer))
        .map_err(CommitError::Lfs)
}

/// The LFS objects that commits of `tips` bring and that no commit of the remote has.
pub(crate) fn new_objects(
    repo: &Repository,
    bare: &Path,
    tips: &[Oid],
    heads: &[RemoteRef],
    store: &ObjectStore,
) -> Result<Vec<Pointer>, CommitError> {
    let access = |e| CommitError::Repo(repo::access(bare)(e));
    let mut walk = repo.revwalk().map_err(access)?;
    for tip in tips {
        // A tag may name something else than a commit, which brings no LFS objects.
        if let Ok(commit) = repo
            .find_object(*tip, None)
            .and_then(|object| object.peel_to_commit())
        {
            walk.push(commit.id()).map_err(access)?;
        }
    }
    for head in heads {
        if repo.find_commit(head.commit.oid()).is_ok() {
            walk.hide(head.commit.oid()).map_err(access)?;
        }
    }
    let mut objects = Vec::new();
    for id in walk {
        changed_pointers(repo, bare, id.map_err(access)?, store, &mut objects)?;
    }
    Ok(objects)
}

/// Adds the LFS objects of the files that a commit changed. Those that attributes give to LFS
/// must be somewhere; others only go along if they are in `store`.
fn changed_pointers(
    repo: &Repository,
    bare: &Path,
    id: Oid,
    store: &ObjectStore,
    objects: &mut Vec<Pointer>,
) -> Result<(), CommitError> {
    let access = |e| CommitError::Repo(repo::access(bare)(e));
    let commit = repo.find_commit(id).map_err(access)?;
    let tree = commit.tree().map_err(access)?;
    // Without its parent, as at the end of a shallow history, all of it counts as changed.
    let parent = commit.parent(0).and_then(|parent| parent.tree()).ok();
    let diff = repo
        .diff_tree_to_tree(parent.as_ref(), Some(&tree), None)
        .map_err(access)?;
    let odb = repo.odb().map_err(access)?;
    let rules = tree::attributes(repo, bare, tree.id(), &CommitId::from_oid(id))
        .map_err(CommitError::Tree)?;
    for delta in diff.deltas() {
        let file = delta.new_file();
        let path = file.path().and_then(Path::to_str).unwrap_or_default();
        let is_file = matches!(file.mode(), FileMode::Blob | FileMode::BlobExecutable);
        if file.id().is_zero() || !is_file {
            continue;
        }
        let (size, _) = odb.read_header(file.id()).map_err(access)?;
        if size >= MAX_POINTER_BYTES {
            continue;
        }
        let Ok(pointer) = Pointer::parse(odb.read(file.id()).map_err(access)?.data()) else {
            continue;
        };
        let is_lfs = rules.is_lfs(path).map_err(|why| CommitError::InvalidPath {
            path: ".gitattributes".to_owned(),
            why: why.to_string(),
        })?;
        // As git-lfs does, what the attributes do not name goes along if it is here: others may
        // need it. An object without bytes is nowhere.
        if pointer.size > 0 && (is_lfs || store.contains(&pointer.oid)) {
            objects.push(pointer);
        }
    }
    Ok(())
}
