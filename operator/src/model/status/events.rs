//! Which events tell of transitions: pure.

use hyprstream_api::{
    ModelStatus,
    condition::{SOURCE_RESOLVED, STALLED, reason},
};

use crate::reporting::events::Event;

/// What happened between two statuses, for `kubectl describe`.
pub fn events(before: &ModelStatus, after: &ModelStatus) -> Vec<Event> {
    let mut events = Vec::new();
    if after.latest_commit != before.latest_commit
        && let Some(commit) = &after.latest_commit
    {
        events.push(Event::normal(
            "NewCommit",
            "Resolve",
            &format!("the source is at commit {commit}"),
        ));
    }
    if after.last_known_good != before.last_known_good
        && let Some(commit) = &after.last_known_good
    {
        let note = format!("all workers run commit {commit}");
        events.push(Event::normal("Serving", "RollOut", &note));
    }
    if after.failed != before.failed
        && let Some(failed) = &after.failed
    {
        let then = match &after.last_known_good {
            Some(good) if *good != failed.commit => format!("; back to commit {good}"),
            Some(_) => "; back to workers as they were before".to_owned(),
            None => String::new(),
        };
        let note = format!(
            "commit {}: {}: {}{then}",
            failed.commit, failed.reason, failed.message
        );
        events.push(Event::warning(reason::COMMIT_FAILED, "RollOut", &note));
    }
    for kind in [SOURCE_RESOLVED, STALLED] {
        let bad = if kind == STALLED { "True" } else { "False" };
        let Some(now) = after.condition(kind).filter(|c| c.status == bad) else {
            continue;
        };
        // A failed commit has its event already.
        if now.reason == reason::FETCHING || kind == STALLED && after.failed.is_some() {
            continue;
        }
        // A source that stalls says so once.
        if kind == STALLED
            && after
                .condition(SOURCE_RESOLVED)
                .is_some_and(|c| c.reason == now.reason)
        {
            continue;
        }
        let known = before.condition(kind);
        if known.is_none_or(|k| k.status != bad || k.reason != now.reason) {
            events.push(Event::warning(&now.reason, "Reconcile", &now.message));
        }
    }
    events
}
