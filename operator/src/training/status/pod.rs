//! What the pod of a job is doing, as the kubelet says.

use hyprstream_api::condition::reason;
use hyprstream_contract::training::{CONTAINER, LastWords, exit};
use k8s_openapi::{
    api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod},
    jiff::Timestamp,
};

use crate::model::fetch::pods::{cannot_start, unschedulable};

/// The reason of an end for want of memory.
const OOM_KILLED: &str = "OOMKilled";

/// Where a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It does not run yet, with a reason and a message.
    Waits(String, String),
    /// It runs.
    Runs,
    /// It ended.
    Ended,
}

pub(super) fn stage(pod: &Pod) -> Stage {
    // Claims are bound a moment after they are made.
    let is_unbound = |message: &String| message.contains("unbound immediate");
    if let Some(message) = unschedulable(pod).filter(|message| !is_unbound(message)) {
        return Stage::Waits(reason::UNSCHEDULABLE.to_owned(), message);
    }
    let Some(status) = container(pod) else {
        return Stage::Waits(reason::PENDING.to_owned(), "its pod is being placed".into());
    };
    let state = status.state.clone().unwrap_or_default();
    if state.terminated.is_some() {
        return Stage::Ended;
    }
    if state.running.is_some() {
        return Stage::Runs;
    }
    match cannot_start(status) {
        Some((reason, message)) => Stage::Waits(reason.to_owned(), message),
        None => Stage::Waits(
            reason::MOUNTING.to_owned(),
            "its pod waits for its volumes and its image".to_owned(),
        ),
    }
}

/// Whether a pod waits for volumes, as far as can be seen.
pub fn waits_for_volume(pod: &Pod) -> bool {
    matches!(stage(pod), Stage::Waits(reason, _) if reason == reason::MOUNTING)
}

/// When its process began.
pub(super) fn began(pod: &Pod) -> Option<Timestamp> {
    let state = container(pod)?.state.as_ref()?;
    let running = state.running.as_ref().and_then(|s| s.started_at.as_ref());
    let ended = state
        .terminated
        .as_ref()
        .and_then(|s| s.started_at.as_ref());
    running.or(ended).map(|time| time.0)
}

/// What the pod said when it ended.
pub(super) fn last_words(pod: &Pod) -> Option<LastWords> {
    let message = ended(pod)?.message.as_deref()?;
    let whole = serde_json::from_str(message.trim()).ok();
    whole.or_else(|| {
        let mut lines = message.lines().rev();
        lines.find_map(|line| serde_json::from_str(line).ok())
    })
}

/// How a process ended that said nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was killed, then.
    Killed {
        at: Option<Timestamp>,
        is_out_of_memory: bool,
    },
    /// In another way.
    Other,
}

/// How its process ended; `None` if that is not known, as of a pod that was evicted.
pub(super) fn end(pod: &Pod) -> Option<End> {
    let ended = ended(pod)?;
    if ended.exit_code != i32::from(exit::KILLED) || last_words(pod).is_some() {
        return Some(End::Other);
    }
    Some(End::Killed {
        at: ended.finished_at.as_ref().map(|time| time.0),
        is_out_of_memory: ended.reason.as_deref() == Some(OOM_KILLED),
    })
}

/// Reason and message of a pod that ended and said nothing that is understood.
pub(super) fn obituary(pod: &Pod) -> Option<(String, String)> {
    let ended = ended(pod)?;
    if ended.reason.as_deref() == Some(OOM_KILLED) {
        return Some((
            "OutOfMemory".to_owned(),
            "the pod needed more memory than it may have and was killed: raise \
             spec.resources.limits.memory, or lower spec.method.microBatchTokens"
                .to_owned(),
        ));
    }
    let how = match (ended.signal, ended.exit_code) {
        (Some(signal), _) if signal != 0 => format!("was ended by signal {signal}"),
        (_, code @ 129..=165) => format!("was ended by signal {}", code - 128),
        (_, code) => format!("ended with status {code}"),
    };
    let message = ended.message.as_deref().unwrap_or_default().trim();
    let last: String = message
        .lines()
        .last()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect();
    let colon = if last.is_empty() { "" } else { ": " };
    Some((
        "PodFailed".to_owned(),
        format!("the pod {how}{colon}{last}"),
    ))
}

fn ended(pod: &Pod) -> Option<&ContainerStateTerminated> {
    container(pod)?.state.as_ref()?.terminated.as_ref()
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == CONTAINER)
}
