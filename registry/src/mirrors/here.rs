//! Repositories that were pushed here.

use std::sync::Arc;

use hyprstream_contract::registry::{MirrorState, MirrorStatus, reason};
use hyprstream_git2db::{
    CommitId, Digest, Include, Reference, repo,
    tree::{self, Entry, EntryKind, Limits},
};

use super::failure::Failure;
use crate::{layout::make_folder, let_go, names::Repository, pins, scrub, state::State};

/// The commit that `reference` names now.
pub(super) fn resolve(
    state: &Arc<State>,
    repository: &Repository,
    reference: &Reference,
) -> Result<CommitId, Failure> {
    find(state, repository, reference).map_err(|mut failure| {
        explain(state, repository, &mut failure);
        failure
    })
}

fn find(
    state: &State,
    repository: &Repository,
    reference: &Reference,
) -> Result<CommitId, Failure> {
    require(state, repository)?;
    let path = state.layout.repository(repository);
    let missing = || {
        let message = format!("{reference} does not exist in {repository}: push it");
        Failure::lasting(reason::REFERENCE_NOT_FOUND, message)
    };
    if let Reference::Commit(commit) = reference {
        return if repo::has_commit(&path, commit)? {
            Ok(commit.clone())
        } else {
            Err(missing())
        };
    }
    repo::resolve_local(&path, reference)?.ok_or_else(missing)
}

/// Whether the commit and the objects of its included files are here.
pub(super) fn status(
    state: &Arc<State>,
    repository: &Repository,
    commit: &CommitId,
    include: &Include,
) -> MirrorStatus {
    let mut status = MirrorStatus {
        repository: repository.to_string(),
        state: MirrorState::Ready,
        bytes_done: 0,
        bytes_total: 0,
        error: None,
    };
    if let Err(mut failure) = check(state, repository, commit, include, &mut status) {
        explain(state, repository, &mut failure);
        status.state = MirrorState::Failed;
        status.error = Some(failure.api_error());
    }
    status
}

fn check(
    state: &Arc<State>,
    repository: &Repository,
    commit: &CommitId,
    include: &Include,
    status: &mut MirrorStatus,
) -> Result<(), Failure> {
    require(state, repository)?;
    let path = state.layout.repository(repository);
    if !repo::has_commit(&path, commit)? {
        let message = format!("commit {commit} is not in {repository}: push it");
        return Err(Failure::lasting(reason::REFERENCE_NOT_FOUND, message));
    }
    let entries = tree::walk(&path, commit, include, &Limits::default())?;
    status.bytes_total = tree::pointers(&entries)
        .iter()
        .map(|pointer| pointer.size)
        .sum();
    let mut missing = None;
    let mut counted = std::collections::HashSet::new();
    for Entry { path, kind } in &entries {
        let EntryKind::Lfs { pointer, .. } = kind else {
            continue;
        };
        let size = state
            .layout
            .member_size(repository, &pointer.oid)
            .map_err(|error| Failure::internal("looking for an object", &error))?;
        let size = match size {
            Some(size) if size != pointer.size => {
                // The pointer is wrong, or the disk has lost the end.
                scrub::suspect(state, &pointer.oid);
                None
            }
            None if was_lost(state, repository, &pointer.oid) => {
                // Somebody has brought the bytes again.
                let again = state.layout.add_member(repository, &pointer.oid);
                again.is_ok().then_some(pointer.size)
            }
            other => other,
        };
        if size == Some(pointer.size) {
            if counted.insert(&pointer.oid) {
                status.bytes_done += pointer.size;
            }
        } else if missing.is_none() {
            missing = Some((path, pointer));
        }
    }
    if let Some((path, pointer)) = missing {
        if let Some(why) = let_go::why(&state.layout, repository, &pointer.oid) {
            let message = format!("file {path:?}: {why}");
            return Err(Failure::lasting(reason::MISSING_OBJECT, message));
        }
        if was_lost(state, repository, &pointer.oid) {
            let message = format!(
                "the bytes of LFS object {oid} of file {path:?} went bad on the registry's disk: \
                 push them again with `git lfs push --object-id REMOTE {oid}` for {repository}",
                oid = pointer.oid
            );
            return Err(Failure::passing(reason::MISSING_OBJECT, message));
        }
        let message = format!(
            "LFS object {} of file {path:?} was not pushed: run `git lfs push --all` for {repository}",
            pointer.oid
        );
        return Err(Failure::passing(reason::MISSING_OBJECT, message));
    }
    keep(&path, commit)
}

fn was_lost(state: &State, repository: &Repository, oid: &Digest) -> bool {
    state.layout.lost(repository, oid).exists()
}

/// Says so where the failure comes of a disk that lost git objects: libgit2 takes what it cannot
/// read in a pack for something that is not there.
fn explain(state: &Arc<State>, repository: &Repository, failure: &mut Failure) {
    if !matches!(
        failure.reason,
        reason::INTERNAL | reason::REFERENCE_NOT_FOUND
    ) || !state.layout.exists(repository)
    {
        return;
    }
    if scrub::note(&state.layout.repository(repository)).exists() {
        *failure = damaged(repository);
    } else {
        scrub::suspect_repository(state, repository);
    }
}

fn damaged(repository: &Repository) -> Failure {
    let message = format!(
        "git objects of {repository} went bad on the registry's disk: remove the repository with \
         DELETE and push all of it again"
    );
    Failure::passing(reason::DIGEST_MISMATCH, message)
}

/// Keeps the commit when its branch moves on, see [`pins`].
fn keep(path: &std::path::Path, commit: &CommitId) -> Result<(), Failure> {
    pins::touch(path, commit);
    let name = path.join("refs/hyprstream/commits").join(commit.as_str());
    if name.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| Failure::disk("keeping a commit", &error);
    let Some(folder) = name.parent() else {
        return Ok(());
    };
    // Not `refs` itself: a repository that was just removed must not come back as half of one.
    for folder in [folder.parent().unwrap_or(folder), folder] {
        make_folder(folder).map_err(failed)?;
    }
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut file, format!("{commit}\n").as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&name)
        .map_err(|error| failed(error.error))
        .map(drop)
}

fn require(state: &State, repository: &Repository) -> Result<(), Failure> {
    if state.layout.exists(repository) {
        return Ok(());
    }
    let message = format!("there is no repository {repository}: push to it first");
    Err(Failure::lasting(reason::REPOSITORY_NOT_FOUND, message))
}
