//! Each condition of a Model.

use hyprstream_api::{
    FailedCommit, Model,
    condition::{SOURCE_RESOLVED, reason},
};

use super::{Observed, is_complete, serving};
use crate::{
    apply::Help,
    kind::Kind,
    reporting::{
        conditions::{State, no, sentence, unknown, yes},
        source::source_state,
    },
};

pub(super) fn source(observed: &Observed<'_>) -> State {
    let Observed {
        findings,
        before,
        model,
        ..
    } = observed;
    if let Err(invalid) = observed.plan {
        return unknown(invalid.reason(), "the spec is not valid");
    }
    let reference = observed.plan.ok().map(|plan| &plan.source.reference);
    let known = before.condition(SOURCE_RESOLVED).filter(|known| {
        known.observed_generation == model.metadata.generation || model.spec.suspend
    });
    source_state(reference, findings, known, "all", "; see status.download")
}

pub(super) fn volume(observed: &Observed<'_>) -> State {
    let census = observed.census;
    let Some(target) = observed.target else {
        return unknown(reason::PENDING, "there is no commit to mount yet");
    };
    let commit = &target.commit;
    if let Some(message) = observed.mount_problem.filter(|_| !census.mounted) {
        return no(reason::MOUNT_FAILED, message);
    }
    if census.mounted {
        yes(
            reason::MOUNTED,
            format!("the volume of commit {commit} is mounted"),
        )
    } else if census.updated > 0 && census.waiting_for_volume.is_some() {
        no(
            reason::MOUNTING,
            format!("pods wait for the volume of commit {commit}"),
        )
    } else if observed.is_bound {
        yes(
            reason::BOUND,
            format!("the volume of commit {commit} can be mounted"),
        )
    } else {
        no(
            reason::PENDING,
            format!("the volume of commit {commit} is being bound"),
        )
    }
}

pub(super) fn workers(
    observed: &Observed<'_>,
    failed: Option<&FailedCommit>,
    is_complete: bool,
) -> State {
    let Observed { census, model, .. } = observed;
    let Some(target) = observed.target else {
        return unknown(reason::PENDING, "there is no commit to run yet");
    };
    let commit = target.commit.as_str();
    if let Some(failed) = failed {
        return no(
            &failed.reason,
            format!("commit {}: {}", failed.commit, failed.message),
        );
    }
    if let Some(error) = observed.apply_error {
        return no(error.reason(), error.message(Model::LABELS.kind));
    }
    if model.spec.replicas == 0 && census.replicas == 0 {
        return yes(reason::IDLE, "replicas is 0");
    }
    if is_complete {
        return yes(
            reason::ALL_READY,
            format!("all workers run commit {commit}"),
        );
    }
    if let Some(problem) = &census.problem {
        return no(&problem.reason, &problem.message);
    }
    if let Some(message) = observed.pods_refused {
        return no(reason::PODS_REFUSED, message);
    }
    if observed.before.last_known_good.as_deref() == Some(commit)
        && census.updated == census.replicas
    {
        return no(reason::REPLICAS_MISSING, "workers are starting");
    }
    no(
        reason::ROLLING_OUT,
        format!("workers of commit {commit} are starting"),
    )
}

pub(super) fn ready(
    observed: &Observed<'_>,
    failed: Option<&FailedCommit>,
    [source, volume, workers]: [&State; 3],
) -> State {
    let Observed { census, model, .. } = observed;
    if census.ready > 0 && (model.spec.replicas > 0 || model.spec.suspend) {
        let commit = serving(observed, is_complete(observed)).unwrap_or_default();
        return match failed {
            Some(failed) if failed.commit != commit => yes(
                reason::SERVING,
                format!(
                    "commit {commit} answers requests; commit {} was given up: {}",
                    failed.commit, failed.message
                ),
            ),
            Some(failed) if observed.is_rolled_back => yes(
                reason::SERVING,
                format!(
                    "commit {commit} answers requests, by workers as they were before; what the \
                     spec or the installation makes of it now was given up: {}",
                    failed.message
                ),
            ),
            _ => yes(reason::SERVING, format!("commit {commit} answers requests")),
        };
    }
    if let Err(invalid) = observed.plan {
        return no(invalid.reason(), invalid.to_string());
    }
    if let Some(error) = observed.apply_error {
        return no(error.reason(), error.message(Model::LABELS.kind));
    }
    if observed.target.is_none() {
        return no(&source.reason, &source.message);
    }
    if model.spec.replicas == 0 {
        return yes(
            reason::IDLE,
            "replicas is 0: no worker runs, and none is wanted",
        );
    }
    if volume.reason == reason::MOUNT_FAILED {
        return no(&volume.reason, &volume.message);
    }
    if workers.status == "False" {
        return no(&workers.reason, &workers.message);
    }
    no(reason::NO_WORKERS, "no worker answers requests")
}

pub(super) fn stalled(observed: &Observed<'_>, failed: Option<&FailedCommit>) -> State {
    if let Err(invalid) = observed.plan {
        return yes(invalid.reason(), invalid.to_string());
    }
    if let Some(error) = observed.apply_error.filter(|e| e.action() == Help::Edit) {
        return yes(error.reason(), error.message(Model::LABELS.kind));
    }
    if let Some(failed) = failed {
        return yes(
            &failed.reason,
            format!(
                "commit {}: {} It is tried again when the ref moves, the spec or the workers' \
                 image changes, or the annotation hyprstream.io/reconcile-at gets a new value.",
                failed.commit,
                sentence(&failed.message)
            ),
        );
    }
    if let Some(problem) = observed.findings.problem.as_ref().filter(|p| !p.retriable) {
        return yes(&problem.reason, &problem.message);
    }
    if let Some(problem) = observed.census.problem.as_ref().filter(|p| p.is_final) {
        return yes(&problem.reason, &problem.message);
    }
    no(reason::NOT_STALLED, "")
}

pub(super) fn progressing(observed: &Observed<'_>, stalled: &State, is_complete: bool) -> State {
    let Observed {
        findings, target, ..
    } = observed;
    if observed.model.spec.suspend {
        return no(
            reason::SUSPENDED,
            "spec.suspend is set: changes are not acted on",
        );
    }
    if stalled.status == "True" {
        return if !is_complete && observed.is_rolled_back {
            yes(
                reason::ROLLING_BACK,
                "the last good workers are being restored",
            )
        } else {
            no(&stalled.reason, &stalled.message)
        };
    }
    if let Some(error) = observed.apply_error {
        return yes(reason::RETRYING, error.message(Model::LABELS.kind));
    }
    if let Some(problem) = &findings.problem {
        return yes(reason::RETRYING, &problem.message);
    }
    if findings.latest.is_some() && findings.mirrored.is_none() {
        return yes(
            reason::FETCHING,
            "the registry is fetching the latest commit",
        );
    }
    if observed.is_waiting {
        return yes(
            reason::WAITING_FOR_TURN,
            "the workers of another release of the operator wait until other Models have theirs",
        );
    }
    match target {
        None => yes(reason::PENDING, "the source is being looked up"),
        Some(_) if is_complete => no(reason::UP_TO_DATE, "nothing is left to do"),
        Some(target) if observed.is_replacing => yes(
            reason::ROLLING_OUT,
            format!(
                "workers of commit {} take the place of the others one by one, since no node has \
                 room for them beside those",
                target.commit
            ),
        ),
        Some(target) if observed.census.lacks_room && observed.census.ready > 0 => yes(
            reason::ROLLING_OUT,
            format!(
                "workers of commit {} wait for room beside the others, which serve on; with \
                 rollout.noRoom: Replace those would go to make it",
                target.commit
            ),
        ),
        Some(target) => yes(
            reason::ROLLING_OUT,
            format!("workers of commit {} are starting", target.commit),
        ),
    }
}
