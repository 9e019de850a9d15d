//! What the worker pods of a Model are doing: pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hyprstream_api::condition::reason;
use hyprstream_contract::{
    label,
    worker::{CONTAINER, EXIT_MODEL_REFUSED, LastWords},
};
use k8s_openapi::{
    api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod},
    jiff::Timestamp,
};
use kube::ResourceExt;

use crate::model::build::REVISION;

/// From how many restarts on a worker that ends without saying why counts as failed.
const CRASHES: i32 = 3;
/// How long a pod may find no node before it counts as one that will find none, and which part of
/// the deadline at most: a cluster that grows needs time for it, and a pod that ends too.
const ROOM_PATIENCE: Duration = Duration::from_mins(2);
const ROOM_PART: u32 = 4;
/// Reason of containers that the node cannot start.
const CANNOT_START: &str = "ContainerCannotStart";
/// Reasons of ends of containers that never began: the runtime, or what it asks about a GPU, could
/// not start them. containerd and CRI-O say the first, Docker the second.
const NEVER_BEGAN: [&str; 2] = ["StartError", "ContainerCannotRun"];
/// How long a pod may wait for its volume before the kubelet's events are looked at.
const MOUNT_PATIENCE: Duration = Duration::from_secs(4);

/// Counts of pods and the worst that befell them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Pods that are not on their way out.
    pub replicas: i32,
    /// Those that answer requests.
    pub ready: i32,
    /// Those of the revision asked for.
    pub updated: i32,
    /// Those of the revision asked for that answer requests.
    pub updated_ready: i32,
    /// Ready pods by their commit.
    pub serving: BTreeMap<String, i32>,
    /// A pod of the revision has its volume.
    pub mounted: bool,
    /// UID of a pod of the revision that waits for its volume for longer than it should.
    pub waiting_for_volume: Option<String>,
    /// The worst that befell pods of the revision.
    pub problem: Option<WorkerProblem>,
    /// A pod of the revision has found no node for so long that it will hardly find one.
    pub lacks_room: bool,
    /// When to look again, if nothing happens before.
    pub look_again: Option<Duration>,
}

/// Why a worker does not become ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerProblem {
    /// CamelCase reason.
    pub reason: String,
    /// For the user of the Model.
    pub message: String,
    /// The attempt has failed, and waiting does not help.
    pub is_final: bool,
}

/// Counts `pods`; looks closer at those of `revision`. Workers of which none is ready for
/// `deadline`, though they run, are a final problem. What the cluster owes a pod, a node, an image,
/// a volume, is none, however long it takes: it says nothing of what the worker is made of. Nor is
/// what befalls some workers while others of the same revision serve.
pub fn census(pods: &[Arc<Pod>], revision: &str, deadline: Duration, now: Timestamp) -> Census {
    let mut census = Census::default();
    let mut unready_since: Option<Timestamp> = None;
    let mut last_progress: Option<Timestamp> = None;
    let mut last_end = None;
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if pod.metadata.deletion_timestamp.is_some()
            || matches!(phase, Some("Failed" | "Succeeded"))
        {
            continue;
        }
        let ready_since = ready_since(pod);
        census.replicas += 1;
        if ready_since.is_some() {
            census.ready += 1;
            if let Some(commit) = pod.labels().get(label::COMMIT) {
                *census.serving.entry(commit.clone()).or_default() += 1;
            }
        }
        if pod.labels().get(REVISION).is_none_or(|r| r != revision) {
            continue;
        }
        census.updated += 1;
        if let Some(since) = ready_since {
            census.updated_ready += 1;
            census.mounted = true;
            last_progress = last_progress.max(Some(since));
            continue;
        }
        let since = unready_from(pod).unwrap_or(now);
        look_at(&mut census, pod, since, now);
        look_for_room(&mut census, pod, deadline, now);
        if let Some(since) = begun(pod, since) {
            unready_since = Some(unready_since.map_or(since, |t| t.min(since)));
        }
        last_end = last_end.or_else(|| container(pod).and_then(ended));
    }
    if let Some(since) = unready_since {
        let since = last_progress.map_or(since, |progress| progress.max(since));
        let left = deadline.saturating_sub(elapsed(since, now));
        if !left.is_zero() {
            census.look_again = Some(census.look_again.map_or(left, |at| at.min(left)));
        } else if census.updated_ready == 0 {
            let (reason, message) = last_end.map_or_else(
                || {
                    (
                        reason::DEADLINE_EXCEEDED.to_owned(),
                        "no worker became ready within rollout.progressDeadlineSeconds".to_owned(),
                    )
                },
                obituary,
            );
            worsen(&mut census, &reason, message, true);
        }
    }
    if census.updated_ready > 0
        && let Some(problem) = &mut census.problem
    {
        problem.is_final = false;
    }
    census
}

fn look_at(census: &mut Census, pod: &Pod, since: Timestamp, now: Timestamp) {
    if let Some(message) = unschedulable(pod) {
        worsen(census, reason::UNSCHEDULABLE, message, false);
        return;
    }
    let Some(status) = container(pod) else { return };
    let state = status.state.clone().unwrap_or_default();
    let is_starting = state
        .waiting
        .as_ref()
        .is_some_and(|w| matches!(w.reason.as_deref(), Some("ContainerCreating")));
    if is_starting
        && status
            .last_state
            .as_ref()
            .is_none_or(|s| s.terminated.is_none())
    {
        let waited = elapsed(since, now);
        if waited >= MOUNT_PATIENCE {
            census.waiting_for_volume = census.waiting_for_volume.take().or_else(|| pod.uid());
        }
        // Mounts are tried again by the kubelet without a sign in the pod.
        let again = MOUNT_PATIENCE
            .saturating_sub(waited)
            .max(Duration::from_secs(2));
        census.look_again = Some(census.look_again.map_or(again, |at| at.min(again)));
        return;
    }
    if let Some((reason, message)) = cannot_start(status) {
        let waiting = state.waiting.as_ref().and_then(|w| w.reason.as_deref());
        // No registry has an image of such a name, whatever happens.
        worsen(census, reason, message, waiting == Some("InvalidImageName"));
        return;
    }
    census.mounted = true;
    if let Some(ended) = ended(status) {
        let (reason, message) = obituary(ended);
        let is_final = ended.exit_code == EXIT_MODEL_REFUSED || status.restart_count >= CRASHES;
        worsen(census, &reason, message, is_final);
    }
}

fn look_for_room(census: &mut Census, pod: &Pod, deadline: Duration, now: Timestamp) {
    // Claims are bound a moment after they are made.
    let is_homeless = unschedulable(pod).is_some_and(|why| !why.contains("unbound immediate"));
    let since = condition(pod, "PodScheduled").and_then(|c| c.last_transition_time.as_ref());
    let since = since.or(pod.metadata.creation_timestamp.as_ref());
    let Some(since) = since.filter(|_| is_homeless) else {
        return;
    };
    let patience = ROOM_PATIENCE.min(deadline / ROOM_PART);
    let left = patience.saturating_sub(elapsed(since.0, now));
    if left.is_zero() {
        census.lacks_room = true;
    } else {
        census.look_again = Some(census.look_again.map_or(left, |at| at.min(left)));
    }
}

/// Why a container does not start, if the kubelet says so: a reason and a message.
pub fn cannot_start(status: &ContainerStatus) -> Option<(&'static str, String)> {
    let runs = status.state.as_ref().is_some_and(|s| s.running.is_some());
    if let Some(end) = last_end(status).filter(|end| !runs && !has_begun(end)) {
        let said = end.message.as_deref().unwrap_or_default().trim();
        let message = format!("the node cannot start the container of a worker: {said}");
        return Some((CANNOT_START, message));
    }
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let why = waiting.reason.as_deref()?;
    let image = status.image.as_str();
    let message = match why {
        // Its own message only says that it waits.
        "ImagePullBackOff" | "ErrImagePull" => format!("image {image} cannot be pulled"),
        "ErrImageNeverPull" => {
            format!("image {image} is not on the node, and may not be pulled")
        }
        "InvalidImageName" => format!("image name {image:?} is invalid"),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            waiting.message.clone().unwrap_or_else(|| why.to_owned())
        }
        _ => return None,
    };
    let reason = if why.contains("Image") {
        reason::IMAGE_PULL_FAILED
    } else {
        CANNOT_START
    };
    Some((reason, message))
}

fn worsen(census: &mut Census, reason: &str, message: String, is_final: bool) {
    if census
        .problem
        .as_ref()
        .is_none_or(|known| is_final && !known.is_final)
    {
        census.problem = Some(WorkerProblem {
            reason: reason.to_owned(),
            message,
            is_final,
        });
    }
}

/// Reason and message of a worker's end, in words for the user of the Model.
fn obituary(ended: &ContainerStateTerminated) -> (String, String) {
    let message = ended.message.as_deref().unwrap_or_default().trim();
    if let Some(words) = message
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<LastWords>(line).ok())
    {
        return (words.reason, words.message);
    }
    if ended.reason.as_deref() == Some("OOMKilled") {
        return (
            "OutOfMemory".to_owned(),
            "a worker needed more memory than it may have and was killed: raise \
             spec.resources.limits.memory"
                .to_owned(),
        );
    }
    let how = match (ended.signal, ended.exit_code) {
        (Some(signal), _) if signal != 0 => format!("was ended by signal {signal}"),
        (_, code @ 129..=165) => format!("was ended by signal {}", code - 128),
        (_, code) => format!("ended with status {code}"),
    };
    let last = message.lines().last().unwrap_or_default();
    let last: String = last.chars().take(300).collect();
    let colon = if last.is_empty() { "" } else { ": " };
    (
        reason::CRASH_LOOP.to_owned(),
        format!("a worker {how}{colon}{last}"),
    )
}

/// The end of a worker, if that is how its container ended last.
fn ended(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    last_end(status).filter(|end| has_begun(end))
}

/// How the container ended last.
fn last_end(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let states = [&status.state, &status.last_state];
    states
        .into_iter()
        .flatten()
        .find_map(|s| s.terminated.as_ref())
}

/// Whether there was anything that could end: a runtime that cannot start a container says nothing
/// of what is in it.
fn has_begun(end: &ContainerStateTerminated) -> bool {
    let reason = end.reason.as_deref();
    !reason.is_some_and(|reason| NEVER_BEGAN.contains(&reason))
}

/// Since when workers of a pod run or ran that is not ready since `unready`, as far back as is
/// known; `None` if none ever ran.
fn begun(pod: &Pod, unready: Timestamp) -> Option<Timestamp> {
    let status = container(pod)?;
    let states = [&status.last_state, &status.state];
    states.into_iter().flatten().find_map(|state| {
        let begun = match (&state.terminated, &state.running) {
            (Some(end), _) if !has_begun(end) => return None,
            (Some(ended), _) => &ended.started_at,
            (None, Some(running)) => &running.started_at,
            (None, None) => return None,
        };
        Some(begun.as_ref().map_or(unready, |begun| begun.0.max(unready)))
    })
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find(|c| c.name == CONTAINER)
}

/// Why the scheduler places a pod nowhere, if it does not.
pub fn unschedulable(pod: &Pod) -> Option<String> {
    let condition = condition(pod, "PodScheduled")?;
    (condition.status == "False").then(|| {
        let why = condition.message.clone().unwrap_or_default();
        format!("no node can take a worker: {why}")
    })
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready")?;
    let since = ready.last_transition_time.as_ref().map(|t| t.0);
    (ready.status == "True").then(|| since.unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Since when a pod is not ready.
fn unready_from(pod: &Pod) -> Option<Timestamp> {
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let turned = condition(pod, "Ready")
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|t| t.0);
    created.max(turned)
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
