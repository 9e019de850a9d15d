//! One commit of one upstream.

use std::sync::atomic::Ordering;

use hyprstream_contract::registry::reason;
use hyprstream_git2db::{
    CommitId, Credentials, Include, Observer as _, Reference, RemoteUrl,
    repo::{self, Fetch, History},
    tree::{self, Limits},
};

use super::{
    Job,
    failure::Failure,
    objects,
    run::{Run, Stage},
    source,
};
use crate::{names::Repository, scrub, state::State};

/// What is to be brought here.
pub(super) struct Order {
    pub(super) repository: Repository,
    pub(super) url: RemoteUrl,
    pub(super) reference: Reference,
    pub(super) commit: CommitId,
    pub(super) include: Include,
    pub(super) credentials: Credentials,
}

/// Brings here what is missing of the commit. Everything that came in stays after a failure.
pub(super) fn run(state: &State, job: &Job, run: &Run, order: &Order) -> Result<(), Failure> {
    let result = bring(state, job, run, order);
    // What fails on our side may be a disk that lost something, and the upstream has it all.
    let ours = matches!(&result, Err(failure) if failure.reason == reason::INTERNAL);
    if !ours || run.is_cancelled() {
        return result;
    }
    run.enter(Stage::Here);
    if !scrub::is_damaged(&state.layout.repository(&order.repository)) {
        return result;
    }
    scrub::set_mirror_aside(state, &order.repository)
        .map_err(|error| Failure::disk("setting a damaged mirror aside", &error))?;
    run.begin_again();
    bring(state, job, run, order)
}

fn bring(state: &State, job: &Job, run: &Run, order: &Order) -> Result<(), Failure> {
    let repository = &order.repository;
    let path = state
        .layout
        .create(repository)
        .map_err(|error| Failure::internal("making the mirror", &error))?;
    state.touch(repository);
    if !repo::has_commit(&path, &order.commit)? {
        let fetch = Fetch {
            url: &order.url,
            reference: &order.reference,
            commit: &order.commit,
            // Nodes fetch from here through libgit2, which cannot read shallow repositories.
            history: History::Whole,
            credentials: &order.credentials,
        };
        source::ask(state, &order.url, || repo::fetch_commit(&path, &fetch, run))?;
    }
    run.enter(Stage::Here);
    // A repository whose HEAD names nothing cannot be cloned.
    if matches!(
        order.reference,
        Reference::Head | Reference::Branch(_) | Reference::Tag(_)
    ) {
        repo::set_reference(&path, &order.reference, &order.commit)?;
    }
    let entries = tree::walk(&path, &order.commit, &order.include, &Limits::default())?;
    let pointers = tree::pointers(&entries);
    let total = pointers.iter().map(|pointer| pointer.size).sum();
    job.bytes_total.store(total, Ordering::Relaxed);
    objects::bring(state, job, run, order, pointers).map_err(|failure| name_file(failure, &entries))
}

/// Says which file an object belongs to, since users know files and not objects.
fn name_file(mut failure: Failure, entries: &[tree::Entry]) -> Failure {
    let file = entries.iter().find_map(|entry| match &entry.kind {
        tree::EntryKind::Lfs { pointer, .. } if failure.message.contains(pointer.oid.as_str()) => {
            Some(&entry.path)
        }
        _ => None,
    });
    if let Some(path) = file {
        failure.message = format!("file {path:?}: {}", failure.message);
    }
    failure
}
