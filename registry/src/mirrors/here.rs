//! Repositories that were pushed here.

use hyprstream_contract::registry::{MirrorState, MirrorStatus, reason};
use hyprstream_git2db::{
    CommitId, Include, Reference, repo,
    tree::{self, Entry, EntryKind, Limits},
};

use super::failure::Failure;
use crate::{names::Repository, state::State};

/// The commit that `reference` names now.
pub(super) fn resolve(
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
    state: &State,
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
    if let Err(failure) = check(state, repository, commit, include, &mut status) {
        status.state = MirrorState::Failed;
        status.error = Some(failure.api_error());
    }
    status
}

fn check(
    state: &State,
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
        if size == Some(pointer.size) {
            if counted.insert(&pointer.oid) {
                status.bytes_done += pointer.size;
            }
        } else if missing.is_none() {
            missing = Some((path, pointer));
        }
    }
    if let Some((path, pointer)) = missing {
        let message = format!(
            "LFS object {} of file {path:?} was not pushed: run `git lfs push --all` for {repository}",
            pointer.oid
        );
        return Err(Failure::passing(reason::MISSING_OBJECT, message));
    }
    keep(&path, commit)
}

/// Keeps the commit when its branch moves on, for as long as the repository lives.
fn keep(path: &std::path::Path, commit: &CommitId) -> Result<(), Failure> {
    let name = path.join("refs/hyprstream/commits").join(commit.as_str());
    if name.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| Failure::disk("keeping a commit", &error);
    let Some(folder) = name.parent() else {
        return Ok(());
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
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
