//! What is told of a Model: pure, but for the time of transitions, which comes in.

mod events;
mod states;

use hyprstream_api::{
    Download, FailedCommit, Model, ModelStatus,
    condition::{PROGRESSING, READY, SOURCE_RESOLVED, STALLED, VOLUME_READY, WORKERS_READY},
};
use k8s_openapi::jiff::Timestamp;

pub use self::events::events;
use super::{
    build::{Revision, selector_text, url},
    fetch::pods::Census,
    validate::{Invalid, Plan},
};
use crate::{apply::ApplyError, reporting::conditions::condition, source::Findings};

/// Everything that the status follows from.
pub struct Observed<'a> {
    /// The Model with its newest known status.
    pub model: &'a Model,
    /// The status before.
    pub before: &'a ModelStatus,
    /// The spec, if it can work.
    pub plan: Result<&'a Plan, &'a Invalid>,
    /// What is known of the source.
    pub findings: &'a Findings,
    /// What the Deployment names.
    pub target: Option<&'a Revision>,
    /// What was given up.
    pub failed: Option<FailedCommit>,
    /// The target runs in place of what was given up.
    pub is_rolled_back: bool,
    /// A release's change of the workers waits for other Models.
    pub is_waiting: bool,
    /// The target's workers take the place of others one by one, for want of room.
    pub is_replacing: bool,
    /// The pods.
    pub census: &'a Census,
    /// Why the volume is not mounted, as the kubelet says.
    pub mount_problem: Option<&'a str>,
    /// The target's claim is bound.
    pub is_bound: bool,
    /// Why the API server refuses pods.
    pub pods_refused: Option<&'a str>,
    /// Why something could not be made.
    pub apply_error: Option<&'a ApplyError>,
    /// The annotation that asked for this reconciliation, or for an earlier one.
    pub handled: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// The status.
pub fn status(observed: &Observed<'_>) -> ModelStatus {
    let Observed {
        model,
        before,
        findings,
        census,
        ..
    } = observed;
    let replicas = model.spec.replicas;
    let is_complete = is_complete(observed);
    let target = observed.target.map(|t| t.commit.as_str());
    let failed = match (&observed.failed, target) {
        (Some(failed), Some(target))
            if is_complete && failed.commit == target && !observed.is_rolled_back =>
        {
            None
        }
        (failed, _) => failed.clone(),
    };
    let last_known_good = match target {
        Some(target) if is_complete && replicas > 0 => Some(target.to_owned()),
        _ => before.last_known_good.clone(),
    };
    let source = states::source(observed);
    let volume = states::volume(observed);
    let workers = states::workers(observed, failed.as_ref(), is_complete);
    let ready = states::ready(observed, failed.as_ref(), [&source, &volume, &workers]);
    let stalled = states::stalled(observed, failed.as_ref());
    let progressing = states::progressing(observed, &stalled, is_complete);
    let states = [
        (READY, ready),
        (SOURCE_RESOLVED, source),
        (VOLUME_READY, volume),
        (WORKERS_READY, workers),
        (PROGRESSING, progressing),
        (STALLED, stalled),
    ];
    let generation = model.metadata.generation;
    ModelStatus {
        observed_generation: generation,
        commit: serving(observed, is_complete),
        latest_commit: findings
            .latest
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| before.latest_commit.clone()),
        last_known_good,
        failed,
        download: download(observed),
        replicas: census.replicas,
        ready_replicas: census.ready,
        updated_replicas: census.updated,
        selector: Some(selector_text(
            model.metadata.name.as_deref().unwrap_or_default(),
        )),
        url: observed.plan.ok().map(url).or_else(|| before.url.clone()),
        last_handled_reconcile_at: observed.handled.map(str::to_owned),
        conditions: states
            .into_iter()
            .map(|(kind, state)| {
                condition(
                    before.condition(kind),
                    kind,
                    state,
                    generation,
                    observed.now,
                )
            })
            .collect(),
    }
}

/// All workers that are wanted run what is wanted.
fn is_complete(observed: &Observed<'_>) -> bool {
    let Observed {
        census,
        target,
        model,
        ..
    } = observed;
    target.is_some()
        && observed.apply_error.is_none()
        && census.updated == model.spec.replicas
        && census.updated_ready == model.spec.replicas
}

/// The commit that serves: the one before for as long as it does.
fn serving(observed: &Observed<'_>, is_complete: bool) -> Option<String> {
    let target = observed.target.map(|t| t.commit.to_string());
    if is_complete {
        return target;
    }
    let before = &observed.before.commit;
    let serving = &observed.census.serving;
    if before.as_ref().is_some_and(|b| serving.contains_key(b)) || serving.is_empty() {
        return before.clone();
    }
    serving
        .iter()
        .max_by_key(|(_, count)| **count)
        .map(|(commit, _)| commit.clone())
}

fn download(observed: &Observed<'_>) -> Option<Download> {
    let Some(progress) = observed.findings.download else {
        // Nothing new of the same commit is known, as after a start of the operator.
        let latest = observed.findings.latest.as_ref().map(ToString::to_string);
        let same = latest.is_none() || latest == observed.before.latest_commit;
        return observed.before.download.clone().filter(|_| same);
    };
    Some(Download {
        bytes_done: i64::try_from(progress.done_bytes).unwrap_or(i64::MAX),
        bytes_total: i64::try_from(progress.total_bytes).unwrap_or(i64::MAX),
    })
}

#[cfg(test)]
mod tests;
