//! What is told of a TrainingJob: pure, but for the time of transitions, which comes in.

mod disk;
mod events;
mod figures;
mod kills;
mod pod;
mod states;

use std::{sync::Arc, time::Duration};

use hyprstream_api::{
    GateVerdict, TrainingCheckpointStatus, TrainingInputs, TrainingJob, TrainingJobStatus,
    TrainingOutputStatus,
    condition::{COMPLETE, FAILED, GATE_PASSED, RUNNING, SOURCE_RESOLVED, SUSPENDED},
};
use hyprstream_contract::training::{self, LastWords, Output, Progress, Verdict};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::ResourceExt;

pub use self::{
    events::events,
    pod::waits_for_volume,
    states::{ADAPTER_EXISTS, QUEUED, is_over},
};
use self::{
    figures::{curve, decimal, figures},
    states::States,
};
use super::{
    fork::Forked,
    refusals::Refusal,
    validate::{Invalid, Plan},
};
use crate::{apply::ApplyError, reporting::conditions::condition, source::Findings};

/// Everything that the status of a job follows from that is not over.
pub struct Observed<'a> {
    /// The job.
    pub job: &'a TrainingJob,
    /// The status before.
    pub before: &'a TrainingJobStatus,
    /// The spec, if it can work.
    pub plan: Result<&'a Plan, &'a Invalid>,
    /// What is known of the Model's repository.
    pub model: &'a Findings,
    /// What is known of the dataset's, if it has one.
    pub dataset: Option<&'a Findings>,
    /// What the job begins with, once that is known.
    pub inputs: Option<TrainingInputs>,
    /// How far the repository is that gets the commits.
    pub forked: &'a Forked,
    /// The Job.
    pub batch: Option<&'a Job>,
    /// Its pods, oldest first.
    pub pods: &'a [Arc<Pod>],
    /// What the pod said last.
    pub progress: Option<&'a Progress>,
    /// Why its volume is not mounted.
    pub mount_problem: Option<&'a str>,
    /// Why it has no pod.
    pub refusal: Option<&'a Refusal>,
    /// Why something could not be made.
    pub apply_error: Option<&'a ApplyError>,
    /// The time.
    pub now: Timestamp,
}

impl Observed<'_> {
    /// Whether the Job has a condition.
    fn batch_is(&self, kind: &str) -> Option<(&str, &str)> {
        batch_is(self.batch?, kind)
    }

    /// What the last pod said that ended.
    fn words(&self) -> Option<LastWords> {
        self.pods.iter().rev().find_map(|pod| pod::last_words(pod))
    }
}

/// Reason and message of a condition of a Job, if that is True.
fn batch_is<'a>(batch: &'a Job, kind: &str) -> Option<(&'a str, &'a str)> {
    let mut conditions = batch.status.as_ref()?.conditions.iter().flatten();
    let found = conditions.find(|c| c.type_ == kind && c.status == "True")?;
    Some((
        found.reason.as_deref().unwrap_or_default(),
        found.message.as_deref().unwrap_or_default(),
    ))
}

/// The status.
pub fn status(observed: &Observed<'_>) -> TrainingJobStatus {
    let Observed {
        job, before, now, ..
    } = observed;
    let words = observed.words();
    let states = States::of(observed, words.as_ref());
    let generation = job.metadata.generation;
    let all = [
        (SOURCE_RESOLVED, states.source),
        (RUNNING, states.running),
        (SUSPENDED, states.suspended),
        (GATE_PASSED, states.gates),
        (COMPLETE, states.complete),
        (FAILED, states.failed),
    ];
    let conditions = all.into_iter().map(|(kind, state)| {
        let known = before.condition(kind);
        condition(known, kind, state, generation, *now)
    });
    let mut after = TrainingJobStatus {
        observed_generation: generation,
        state: Some(states.state.to_owned()),
        message: Some(states.message.chars().take(1000).collect()),
        inputs: before.inputs.clone().or_else(|| observed.inputs.clone()),
        failures: observed
            .batch
            .and_then(|batch| batch.status.as_ref()?.failed)
            .unwrap_or(before.failures),
        conditions: conditions.collect(),
        ..(*before).clone()
    };
    told(&mut after, observed.progress, words.as_ref(), *now);
    after.start_time = before.start_time.clone().or_else(|| {
        let began = observed.pods.iter().filter_map(|pod| pod::began(pod)).min();
        began.map(Time)
    });
    if after.is_finished() {
        after.estimated_remaining_seconds = None;
        let now = Timestamp::from_second(now.as_second()).unwrap_or(*now);
        after.completion_time = before.completion_time.clone().or(Some(Time(now)));
    }
    if let (Some(words), true) = (&words, after.is_true(COMPLETE)) {
        ended(job, &mut after, words);
    }
    after
}

/// What pods said of their progress: the one that runs, else the last that ended. What was known stays
/// where neither says more.
fn told(
    after: &mut TrainingJobStatus,
    progress: Option<&Progress>,
    words: Option<&LastWords>,
    now: Timestamp,
) {
    let (step, steps, metrics, digest, checkpoint) = match (progress, words) {
        (Some(p), _) => (
            p.step,
            p.steps,
            &p.metrics,
            &p.dataset_digest,
            &p.checkpoint,
        ),
        (None, Some(w)) => (
            w.step,
            w.steps,
            &w.metrics,
            &w.dataset_digest,
            &w.checkpoint,
        ),
        (None, None) => return,
    };
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    // One that has just begun has not read yet how far the last one was.
    if steps > 0 {
        after.step = Some(whole(step));
        after.steps = Some(whole(steps));
        let percent = (step.saturating_mul(100) / steps).min(100);
        after.progress_percentage = i32::try_from(percent).ok();
    }
    if !metrics.is_empty() {
        after.metrics = figures(metrics);
    }
    if let (Some(inputs), Some(digest)) = (&mut after.inputs, digest) {
        inputs.dataset_digest.get_or_insert_with(|| digest.clone());
    }
    if let Some(checkpoint) = checkpoint {
        let commit = checkpoint.commit.to_string();
        let known = after
            .checkpoint
            .take()
            .filter(|known| known.commit == commit);
        let heard = || Timestamp::from_second(now.as_second()).unwrap_or(now);
        after.checkpoint = Some(TrainingCheckpointStatus {
            step: whole(checkpoint.step),
            commit,
            time: known.map_or_else(|| Some(Time(heard())), |known| known.time),
        });
    }
    if let Some(progress) = progress {
        after.estimated_remaining_seconds = progress.remaining_seconds.map(whole);
        if steps > 0 {
            after.epoch = Some(decimal(progress.epoch));
        }
        if !progress.curve.is_empty() {
            after.curve = curve(&progress.curve);
        }
    }
}

/// What stands in the status of a job that is complete.
fn ended(job: &TrainingJob, after: &mut TrainingJobStatus, words: &LastWords) {
    after.gates = words.gates.iter().map(verdict).collect();
    let namespace = job.namespace().unwrap_or_default();
    let repository = after
        .inputs
        .as_ref()
        .map(|inputs| inputs.repository.clone());
    let repository = repository.unwrap_or(namespace);
    after.output = words.output.as_ref().map(|output| {
        let Output {
            commit,
            path,
            digest,
            sha256,
            merged,
        } = output;
        TrainingOutputStatus {
            repository,
            branch: training::branch(&job.name_any()),
            commit: commit.to_string(),
            path: path.clone(),
            digest: digest.clone(),
            sha256: sha256.clone(),
            merged: merged.as_ref().map(ToString::to_string),
            adapter: None,
        }
    });
}

fn verdict(verdict: &Verdict) -> GateVerdict {
    let Verdict {
        metric,
        value,
        baseline,
        passed,
        message,
    } = verdict;
    GateVerdict {
        metric: format!("{metric:?}"),
        value: value.filter(|v| v.is_finite()).map(decimal),
        baseline: baseline.filter(|v| v.is_finite()).map(decimal),
        passed: *passed,
        message: message.clone(),
    }
}

/// How long a job that is over still stays; `None` for good.
pub fn left_to_live(
    job: &TrainingJob,
    status: &TrainingJobStatus,
    now: Timestamp,
) -> Option<Duration> {
    let seconds = u64::try_from(job.spec.ttl_seconds_after_finished?).ok()?;
    let ended = status.completion_time.as_ref()?.0;
    let since = Duration::try_from(now.duration_since(ended)).unwrap_or_default();
    Some(Duration::from_secs(seconds).saturating_sub(since))
}

#[cfg(test)]
mod tests;
