//! What is told of a Model: pure, but for the time of transitions, which comes in.

use hyprstream_api::{
    Download, FailedCommit, Model, ModelStatus,
    condition::{
        PROGRESSING, READY, SOURCE_RESOLVED, STALLED, VOLUME_READY, WORKERS_READY, reason,
    },
};
use hyprstream_contract::registry::Reference;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    apply::{ApplyError, Help},
    build::{Revision, selector_text, url},
    census::Census,
    validate::{Invalid, Plan},
};
use crate::source::Findings;

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

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    status: &'static str,
    reason: String,
    message: String,
}

fn yes(reason: &str, message: impl Into<String>) -> State {
    State {
        status: "True",
        reason: reason.to_owned(),
        message: message.into(),
    }
}

fn no(reason: &str, message: impl Into<String>) -> State {
    State {
        status: "False",
        reason: reason.to_owned(),
        message: message.into(),
    }
}

fn unknown(reason: &str, message: impl Into<String>) -> State {
    State {
        status: "Unknown",
        reason: reason.to_owned(),
        message: message.into(),
    }
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
        (Some(failed), Some(target)) if is_complete && failed.commit == target => None,
        (failed, _) => failed.clone(),
    };
    let last_known_good = match target {
        Some(target) if is_complete && replicas > 0 => Some(target.to_owned()),
        _ => before.last_known_good.clone(),
    };
    let source = source_state(observed);
    let volume = volume_state(observed);
    let workers = workers_state(observed, failed.as_ref(), is_complete);
    let ready = ready_state(observed, failed.as_ref(), [&source, &volume, &workers]);
    let stalled = stalled_state(observed, failed.as_ref());
    let progressing = progressing_state(observed, &stalled, is_complete);
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
            .map(|(kind, state)| condition(before, kind, state, generation, observed.now))
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

fn source_state(observed: &Observed<'_>) -> State {
    let Observed {
        findings,
        before,
        model,
        ..
    } = observed;
    if let Err(invalid) = observed.plan {
        return unknown(invalid.reason(), "the spec is not valid");
    }
    if let Some(problem) = &findings.problem {
        return no(&problem.reason, &problem.message);
    }
    let what = match observed.plan.map(|p| &p.source.reference) {
        Ok(Reference::Branch(name)) => format!("branch {name} is at commit"),
        Ok(Reference::Tag(name)) => format!("tag {name} is commit"),
        Ok(Reference::Head) => "the default branch is at commit".to_owned(),
        Ok(Reference::Commit(_)) | Err(_) => "commit".to_owned(),
    };
    match (&findings.latest, &findings.mirrored) {
        (Some(latest), Some(_)) => yes(
            reason::SUCCEEDED,
            format!("{what} {latest}, and the registry has all of it"),
        ),
        (Some(latest), None) => no(
            reason::FETCHING,
            format!("{what} {latest}, which the registry is fetching; see status.download"),
        ),
        (None, _) => match before.condition(SOURCE_RESOLVED) {
            // After a start of the operator nothing is known for a moment.
            Some(known)
                if (known.observed_generation == model.metadata.generation
                    || model.spec.suspend)
                    && known.reason != reason::PENDING =>
            {
                State {
                    status: match known.status.as_str() {
                        "True" => "True",
                        "False" => "False",
                        _ => "Unknown",
                    },
                    reason: known.reason.clone(),
                    message: known.message.clone(),
                }
            }
            _ => unknown(reason::PENDING, "the source is being looked up"),
        },
    }
}

fn volume_state(observed: &Observed<'_>) -> State {
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

fn workers_state(
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
        return no(error.reason(), error.message());
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

fn ready_state(
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
            _ => yes(reason::SERVING, format!("commit {commit} answers requests")),
        };
    }
    if let Err(invalid) = observed.plan {
        return no(invalid.reason(), invalid.to_string());
    }
    if let Some(error) = observed.apply_error {
        return no(error.reason(), error.message());
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

fn stalled_state(observed: &Observed<'_>, failed: Option<&FailedCommit>) -> State {
    if let Err(invalid) = observed.plan {
        return yes(invalid.reason(), invalid.to_string());
    }
    if let Some(error) = observed.apply_error.filter(|e| e.action() == Help::Edit) {
        return yes(error.reason(), error.message());
    }
    if let Some(failed) = failed {
        return yes(
            &failed.reason,
            format!(
                "commit {}: {} It is tried again when the ref moves, the spec changes, or the \
                 annotation hyprstream.io/reconcile-at gets a new value.",
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

fn progressing_state(observed: &Observed<'_>, stalled: &State, is_complete: bool) -> State {
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
        let is_rolling_back = !is_complete
            && observed
                .failed
                .as_ref()
                .zip(*target)
                .is_some_and(|(f, t)| f.commit != t.commit.as_str());
        return if is_rolling_back {
            yes(
                reason::ROLLING_BACK,
                "the last good commit is being restored",
            )
        } else {
            no(&stalled.reason, &stalled.message)
        };
    }
    if let Some(error) = observed.apply_error {
        return yes(reason::RETRYING, error.message());
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
    match target {
        None => yes(reason::PENDING, "the source is being looked up"),
        Some(_) if is_complete => no(reason::UP_TO_DATE, "nothing is left to do"),
        Some(target) => yes(
            reason::ROLLING_OUT,
            format!("workers of commit {} are starting", target.commit),
        ),
    }
}

fn condition(
    before: &ModelStatus,
    kind: &str,
    state: State,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let since = before
        .condition(kind)
        .filter(|known| known.status == state.status)
        .map_or(Time(truncate(now)), |known| {
            known.last_transition_time.clone()
        });
    Condition {
        type_: kind.to_owned(),
        status: state.status.to_owned(),
        reason: state.reason,
        // The API server's limit is 32 KiB.
        message: state.message.chars().take(2000).collect(),
        observed_generation: generation,
        last_transition_time: since,
    }
}

/// The API server keeps whole seconds; a fraction would look like a change.
fn truncate(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn sentence(message: &str) -> String {
    let trimmed = message.trim_end();
    if trimmed.ends_with(['.', '!', '?']) {
        trimmed.to_owned()
    } else {
        format!("{trimmed}.")
    }
}

#[cfg(test)]
mod tests;
