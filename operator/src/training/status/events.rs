//! Which events tell of transitions: pure.

use hyprstream_api::{
    TrainingJobStatus,
    condition::{COMPLETE, FAILED, GATE_PASSED, RUNNING, SOURCE_RESOLVED, SUSPENDED, reason},
};

use super::QUEUED;
use crate::reporting::events::Event;

/// What is on its way, and no trouble.
const USUAL: [&str; 3] = [reason::FETCHING, reason::PENDING, reason::MOUNTING];

/// What happened between two statuses, for `kubectl describe`.
pub fn events(before: &TrainingJobStatus, after: &TrainingJobStatus) -> Vec<Event> {
    let mut events = Vec::new();
    let is_new = |kind: &str| {
        let now = after.condition(kind)?;
        let known = before.condition(kind);
        let is_other =
            known.is_none_or(|known| (&known.status, &known.reason) != (&now.status, &now.reason));
        is_other.then_some(now)
    };
    let became = |kind: &str, status: &str| {
        let now = is_new(kind).filter(|now| now.status == status)?;
        let was = before.condition(kind).map(|known| known.status.as_str());
        (was != Some(status)).then_some(now)
    };
    if let Some(running) = became(RUNNING, "True") {
        let was_stopped = before.is_true(SUSPENDED);
        let reason = match (was_stopped, before.start_time.is_some()) {
            (_, false) => "Started",
            (true, true) => "Resumed",
            (false, true) => "Continued",
        };
        events.push(Event::normal(reason, "Train", &running.message));
    }
    if let Some(stopped) = became(SUSPENDED, "True") {
        events.push(Event::normal(&stopped.reason, "Train", &stopped.message));
    }
    for kind in [SOURCE_RESOLVED, RUNNING] {
        let Some(now) = is_new(kind).filter(|now| now.status == "False") else {
            continue;
        };
        let is_trouble = !USUAL.contains(&now.reason.as_str())
            && !after.is_finished()
            && ![reason::SUSPENDED, QUEUED].contains(&now.reason.as_str());
        if is_trouble {
            events.push(Event::warning(&now.reason, "Train", &now.message));
        }
    }
    // The first one, and not each.
    if let (None, Some(checkpoint)) = (&before.checkpoint, &after.checkpoint) {
        let note = format!("step {} is commit {}", checkpoint.step, checkpoint.commit);
        events.push(Event::normal("CheckpointPushed", "Train", &note));
    }
    if let Some(gates) = is_new(GATE_PASSED).filter(|_| after.is_true(COMPLETE)) {
        let event = match gates.status.as_str() {
            "True" if gates.reason == "GatesPassed" => Event::normal,
            _ => Event::warning,
        };
        events.push(event(&gates.reason, "Judge", &gates.message));
    }
    if let Some(complete) = became(COMPLETE, "True") {
        events.push(Event::normal("Completed", "Train", &complete.message));
    }
    if let Some(failed) = became(FAILED, "True") {
        events.push(Event::warning(&failed.reason, "Train", &failed.message));
    }
    let adapter = |status: &TrainingJobStatus| status.output.as_ref()?.adapter.clone();
    if let (None, Some(name)) = (adapter(before), adapter(after)) {
        let note = format!("the Adapter {name} serves it");
        events.push(Event::normal("Published", "Publish", &note));
    }
    events
}
