//! Which events tell of transitions: pure.

use hyprstream_api::{
    AdapterStatus,
    condition::{ACCEPTED, LOADED, SOURCE_RESOLVED, reason},
};

use crate::reporting::events::Event;

/// What is on its way, and no trouble.
const USUAL: [&str; 5] = [
    reason::FETCHING,
    reason::LOADING,
    reason::NO_WORKERS,
    reason::MODEL_NOT_FOUND,
    reason::PENDING,
];

/// What happened between two statuses, for `kubectl describe`.
pub fn events(before: &AdapterStatus, after: &AdapterStatus) -> Vec<Event> {
    let mut events = Vec::new();
    let is_new = |kind: &str| {
        let now = after.condition(kind)?;
        let known = before.condition(kind);
        known
            .is_none_or(|known| (&known.status, &known.reason) != (&now.status, &now.reason))
            .then_some(now)
    };
    // Not each time that a worker is started or replaced.
    let is_other = (&before.commit, &before.digest) != (&after.commit, &after.digest);
    let was_refused = before
        .condition(ACCEPTED)
        .is_some_and(|c| c.status == "False");
    let loaded = after.condition(LOADED);
    if let Some(loaded) = loaded.filter(|c| c.reason == reason::ALL_LOADED)
        && (is_other || was_refused)
    {
        events.push(Event::normal("Loaded", "Load", &loaded.message));
    }
    let mut told = None;
    for kind in [SOURCE_RESOLVED, ACCEPTED, LOADED] {
        let Some(now) = is_new(kind).filter(|c| c.status == "False") else {
            continue;
        };
        // What is refused is not loaded for the same reason.
        if USUAL.contains(&now.reason.as_str()) || told == Some(&now.reason) {
            continue;
        }
        told = Some(&now.reason);
        events.push(Event::warning(&now.reason, "Reconcile", &now.message));
    }
    events
}
