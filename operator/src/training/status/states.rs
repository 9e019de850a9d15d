//! Each condition of a TrainingJob.

use std::sync::Arc;

use hyprstream_api::condition::{SOURCE_RESOLVED, reason};
use hyprstream_contract::training::{self, LastWords, Phase};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};

use super::{
    Observed, batch_is, disk,
    kills::Kills,
    pod::{Stage, last_words, obituary, stage},
};
use crate::{
    reporting::{
        conditions::{State, no, sentence, unknown, yes},
        source::source_state,
    },
    training::{
        fetch::{disruption, has_ended},
        fork::Forked,
        kueue,
        refusals::{QUOTA_EXCEEDED, Refusal},
    },
};

/// Reason of `GatePassed`: an Adapter of the name is there that no job made.
pub const ADAPTER_EXISTS: &str = "AdapterExists";
/// Reason of `Suspended` and `Running`: Kueue has no room for it yet.
pub const QUEUED: &str = "Queued";
/// The Job's own conditions.
const BATCH_COMPLETE: &str = "Complete";
const BATCH_FAILED: &str = "Failed";
const BATCH_SUSPENDED: &str = "Suspended";

/// Whether a Job has ended, well or not.
pub fn is_over(batch: &Job) -> bool {
    batch_is(batch, BATCH_COMPLETE)
        .or_else(|| batch_is(batch, BATCH_FAILED))
        .is_some()
}

/// All of them, and one word and one sentence for people.
pub(super) struct States {
    pub(super) source: State,
    pub(super) running: State,
    pub(super) suspended: State,
    pub(super) gates: State,
    pub(super) complete: State,
    pub(super) failed: State,
    pub(super) state: &'static str,
    pub(super) message: String,
}

/// Where a job is.
enum Place {
    /// It has not begun, for that reason.
    Pending(String, String),
    /// Its pod runs.
    Running(&'static str, String),
    /// Its pod ended and another one follows, for that reason.
    Restarting(&'static str, String),
    /// It stops, or has stopped.
    Suspended { by: Holder, is_over: bool },
    /// It is complete, with what it said.
    Complete(Box<LastWords>),
    /// It is given up.
    Failed(String, String),
}

/// Who stops a job.
enum Holder {
    /// `spec.suspend`.
    Spec,
    /// Kueue, until that queue has room.
    Queue(String),
    /// Somebody else, who lets it go on.
    Other,
}

impl States {
    pub(super) fn of(observed: &Observed<'_>, words: Option<&LastWords>) -> Self {
        let source = source(observed);
        let place = place(observed, words, &source);
        let mut states = Self {
            source,
            running: no(reason::PENDING, "it has not begun"),
            suspended: no("NotSuspended", ""),
            gates: unknown(reason::PENDING, "nothing is judged before its end"),
            complete: no(reason::PENDING, "it is not over"),
            failed: no("NotFailed", ""),
            state: "Pending",
            message: String::new(),
        };
        match place {
            Place::Pending(reason, message) => {
                states.running = no(&reason, &message);
                states.message = message;
            }
            Place::Running(phase, message) => {
                states.running = yes(phase, &message);
                states.state = "Running";
                states.message = message;
            }
            Place::Restarting(reason, message) => {
                states.running = no(reason, &message);
                states.state = "Running";
                states.message = message;
            }
            Place::Suspended { by, is_over } => states.suspend(&by, is_over),
            Place::Complete(words) => states.end(&words),
            Place::Failed(reason, message) => {
                states.running = no(&reason, "it is over");
                states.complete = no(&reason, &message);
                states.failed = yes(&reason, &message);
                states.gates = no(&reason, "it did not come to an end");
                states.state = "Failed";
                states.message = message;
            }
        }
        states
    }

    fn suspend(&mut self, by: &Holder, is_over: bool) {
        let (reason, message) = match by {
            _ if !is_over => (
                "Stopping",
                "its pod ends the step that it is at, and pushes a checkpoint".to_owned(),
            ),
            Holder::Spec => (
                reason::SUSPENDED,
                "stopped behind its last checkpoint, until spec.suspend is false".to_owned(),
            ),
            Holder::Queue(queue) => (
                QUEUED,
                format!(
                    "waits until Kueue has room for it in the queue {queue}; `kubectl describe \
                     workloads` says for what"
                ),
            ),
            Holder::Other => (
                reason::SUSPENDED,
                "its Job is suspended, and not by spec.suspend: whoever did lets it go on, as Kueue \
                 does"
                    .to_owned(),
            ),
        };
        self.running = if is_over {
            no(reason, &message)
        } else {
            yes(reason, &message)
        };
        self.suspended = if is_over {
            yes(reason, &message)
        } else {
            no(reason, &message)
        };
        self.state = if is_over { "Suspended" } else { "Running" };
        self.message = message;
    }

    fn end(&mut self, words: &LastWords) {
        let failed: Vec<&str> = words
            .gates
            .iter()
            .filter(|gate| !gate.passed)
            .map(|gate| gate.message.as_str())
            .collect();
        self.running = no(training::reason::COMPLETE, "it is over");
        self.complete = yes(training::reason::COMPLETE, &words.message);
        self.state = "Complete";
        if failed.is_empty() {
            let count = words.gates.len();
            self.gates = yes("GatesPassed", format!("{count} of {count} are passed"));
            self.message.clone_from(&words.message);
        } else {
            let message = format!(
                "nothing is published, and the adapter stays on its branch: {}",
                failed.join("; ")
            );
            self.message.clone_from(&message);
            self.gates = no("GateFailed", message);
        }
    }
}

fn place(observed: &Observed<'_>, words: Option<&LastWords>, source: &State) -> Place {
    if observed.batch_is(BATCH_COMPLETE).is_some() {
        return match words.filter(|words| words.reason == training::reason::COMPLETE) {
            Some(words) => Place::Complete(Box::new(words.clone())),
            None => Place::Failed(
                "LastWordsLost".to_owned(),
                format!(
                    "its pod ended well, and was deleted before it was heard: the branch {} has what \
                     it made",
                    training::branch(observed.job.metadata.name.as_deref().unwrap_or_default())
                ),
            ),
        };
    }
    if let Some((reason, message)) = observed.batch_is(BATCH_FAILED) {
        return given_up(observed, words, reason, message);
    }
    if let Err(invalid) = observed.plan
        && observed.batch.is_none()
    {
        let (reason, message) = (invalid.reason().to_owned(), invalid.to_string());
        return if invalid.is_final() {
            Place::Failed(reason, message)
        } else {
            Place::Pending(reason, message)
        };
    }
    let active = observed.pods.iter().rev().find(|pod| !has_ended(pod));
    if let Some(by) = holder(observed) {
        let is_over = active.is_none();
        return Place::Suspended { by, is_over };
    }
    if let Some(error) = observed.apply_error {
        return Place::Pending(error.reason().to_owned(), error.message("TrainingJob"));
    }
    if let Some(pod) = active {
        // Whoever has it go, its node may not hear of it, and it says nothing any more.
        return if pod.metadata.deletion_timestamp.is_some() {
            Place::Restarting("Restarting", leaves(pod))
        } else {
            runs(observed, pod)
        };
    }
    if observed.batch.is_some() {
        if let Some(refusal) = observed.refusal {
            return Place::Pending(refusal.reason.to_owned(), refused(refusal));
        }
        if disk::in_a_row(observed.pods) >= disk::MOST {
            return full(words);
        }
        let checkpoint = observed.before.checkpoint.as_ref();
        let heard = checkpoint.and_then(|known| known.time.as_ref());
        let kills = Kills::of(observed.pods, heard.map(|time| time.0));
        if kills.are_too_many(observed.job.spec.backoff_limit) {
            return killed(observed.pods, kills);
        }
        return match observed.pods.last() {
            Some(pod) => restart(pod, words),
            None => Place::Pending(
                reason::PENDING.to_owned(),
                "its pod is about to be made; if it stays so, `kubectl describe job` of the same \
                 name says why"
                    .to_owned(),
            ),
        };
    }
    if source.status == "True" {
        let message = "its pod is about to be made".to_owned();
        return Place::Pending(reason::PENDING.to_owned(), message);
    }
    Place::Pending(source.reason.clone(), source.message.clone())
}

/// Who stops the job, if anybody does.
fn holder(observed: &Observed<'_>) -> Option<Holder> {
    if observed.job.spec.suspend {
        return Some(Holder::Spec);
    }
    let batch = observed.batch?;
    let is_stopped = batch.spec.as_ref().and_then(|spec| spec.suspend);
    let is_told = observed.batch_is(BATCH_SUSPENDED).is_some();
    if !is_stopped.unwrap_or(is_told) || kueue::is_ours(batch) {
        return None;
    }
    Some(match kueue::queue(batch) {
        Some(queue) => Holder::Queue(queue.to_owned()),
        None => Holder::Other,
    })
}

fn refused(refusal: &Refusal) -> String {
    let what_to_do = if refusal.reason == QUOTA_EXCEEDED {
        "It is made when the quota has room: end what holds it, raise it, or make another \
         TrainingJob with other resources."
    } else {
        "It is tried again until it is taken."
    };
    format!(
        "the API server does not take its pod: {} {what_to_do}",
        sentence(&refusal.said)
    )
}

fn given_up(
    observed: &Observed<'_>,
    words: Option<&LastWords>,
    reason: &str,
    message: &str,
) -> Place {
    if reason == "DeadlineExceeded" {
        return Place::Failed(
            reason.to_owned(),
            "it ran longer than spec.activeDeadlineSeconds; its branch has its last checkpoint"
                .to_owned(),
        );
    }
    // What the last pod said is why; that there were too many of them is not.
    let last = words
        .map(|words| (words.reason.clone(), words.message.clone()))
        .or_else(|| observed.pods.iter().rev().find_map(|pod| obituary(pod)));
    match last {
        Some((last, said)) if reason == "BackoffLimitExceeded" => Place::Failed(
            last,
            format!(
                "{} It failed more often than spec.backoffLimit allows.",
                sentence(&said)
            ),
        ),
        Some((last, said)) => Place::Failed(last, said),
        None => Place::Failed(reason.to_owned(), message.to_owned()),
    }
}

fn runs(observed: &Observed<'_>, pod: &Arc<Pod>) -> Place {
    match stage(pod) {
        Stage::Waits(reason, message) => match observed.mount_problem {
            Some(problem) => Place::Pending(reason::MOUNT_FAILED.to_owned(), problem.to_owned()),
            None => Place::Pending(reason, message),
        },
        // The Job says a moment later what became of it.
        Stage::Ended => match last_words(pod) {
            Some(words) if words.reason == training::reason::COMPLETE => {
                Place::Running("Publishing", "its pod has ended well".to_owned())
            }
            words => restart(pod, words.as_ref()),
        },
        Stage::Runs => {
            let Some(progress) = observed.progress else {
                return Place::Running("Preparing", "its pod has begun".to_owned());
            };
            let (phase, what) = match progress.phase {
                Phase::Preparing => ("Preparing", "reads model, dataset and checkpoint"),
                Phase::Training => ("Training", "trains"),
                Phase::Judging => ("Judging", "measures what the gates ask for"),
                Phase::Publishing => ("Publishing", "commits and pushes the adapter"),
            };
            // Without figures, which change with each status and stand in fields of their own.
            let notices = progress.notices.join("; ");
            let message = if notices.is_empty() {
                what.to_owned()
            } else {
                format!("{what}; {notices}")
            };
            Place::Running(phase, message)
        }
    }
}

fn restart(pod: &Pod, words: Option<&LastWords>) -> Place {
    if let Some(words) = words.filter(|words| words.reason == training::reason::DISK_FULL) {
        let message = format!(
            "{} Another pod goes on from the last checkpoint, until {} in a row end so without a \
             new one.",
            disk::advice(&words.message),
            disk::MOST
        );
        return Place::Restarting(training::reason::DISK_FULL, message);
    }
    let said = words.map(|words| words.message.clone());
    let said = said.or_else(|| obituary(pod).map(|(_, message)| message));
    let said = said.unwrap_or_else(|| "its pod is gone".to_owned());
    let message = format!(
        "{} Another pod goes on from the last checkpoint.",
        sentence(&said)
    );
    Place::Restarting("Restarting", message)
}

/// It is given up, whatever the Job would do.
fn full(words: Option<&LastWords>) -> Place {
    let said = words.map(|words| words.message.as_str());
    let message = format!(
        "{} {} pods in a row ended so without a new checkpoint; its branch has the last one.",
        disk::advice(said.unwrap_or("the disk of its pod is full")),
        disk::MOST
    );
    Place::Failed(training::reason::DISK_FULL.to_owned(), message)
}

/// It is given up, as one whose disk is too small.
fn killed(pods: &[Arc<Pod>], kills: Kills) -> Place {
    let last = pods.iter().rev().find_map(|pod| obituary(pod));
    let (reason, said) = last.unwrap_or_else(|| ("PodFailed".to_owned(), "it is gone".to_owned()));
    Place::Failed(reason, format!("{} {}", sentence(&said), kills.verdict()))
}

fn leaves(pod: &Pod) -> String {
    let why = disruption(pod).and_then(|c| c.message.as_deref());
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    let said = format!("its pod is to leave its node{why}");
    format!(
        "{} Another goes on from the last checkpoint that the branch has.",
        sentence(&said)
    )
}

/// `SourceResolved`: model, dataset and repository, the first that is not there.
fn source(observed: &Observed<'_>) -> State {
    let plan = match observed.plan {
        Ok(plan) => plan,
        Err(invalid) => return unknown(invalid.reason(), invalid.to_string()),
    };
    let known = observed.before.condition(SOURCE_RESOLVED);
    // Once the job is pinned, what is known of it does not change while it is asked for again.
    let pinned = known.filter(|known| known.status == "True" && observed.batch.is_some());
    if let Some(known) = pinned {
        return crate::reporting::conditions::repeated(known);
    }
    let reference = Some(&plan.model.reference);
    let model = source_state(reference, observed.model, None, "the model", "");
    if model.status != "True" {
        return State {
            message: format!("model: {}", model.message),
            ..model
        };
    }
    if let (Some(findings), Some(source)) = (observed.dataset, plan.dataset_source()) {
        let reference = Some(&source.reference);
        let dataset = source_state(reference, findings, None, "the dataset", "");
        if dataset.status != "True" {
            return State {
                message: format!("dataset: {}", dataset.message),
                ..dataset
            };
        }
    }
    match observed.forked {
        Forked::Pending => unknown(
            reason::PENDING,
            format!(
                "the repository {} is being prepared",
                plan.full_repository()
            ),
        ),
        Forked::Failed { reason, message } => no(
            reason,
            format!("the repository {}: {message}", plan.full_repository()),
        ),
        Forked::There => yes(
            reason::SUCCEEDED,
            format!(
                "the registry has model and dataset, and {}",
                plan.full_repository()
            ),
        ),
    }
}
