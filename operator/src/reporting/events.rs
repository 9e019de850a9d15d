//! Events on transitions: which ones is pure.

use hyprstream_api::{
    DecodeError, ModelStatus,
    condition::{SOURCE_RESOLVED, STALLED, reason},
};
use hyprstream_contract::label;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as EventObject},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::malformed;

/// Something that happened to a Model or to an object made for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    is_warning: bool,
    /// CamelCase reason.
    pub reason: String,
    action: &'static str,
    /// For the user of the Model.
    pub note: String,
}

/// Who writes events.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    instance: String,
}

impl Recorder {
    /// Writes events as the process `instance`.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Writes an event. Each is an object of its own: events of the same reason tell of different
    /// commits, so they are not counted as one.
    ///
    /// # Errors
    /// The API server refused or failed.
    pub async fn publish(
        &self,
        regarding: ObjectReference,
        event: &Event,
    ) -> Result<(), kube::Error> {
        // What has no namespace has its events in this one.
        let namespace = regarding.namespace.clone().unwrap_or("default".to_owned());
        let name = regarding.name.clone().unwrap_or_default();
        let now = Timestamp::now();
        let object = EventObject {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(event.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(event.note.clone()),
            reason: Some(event.reason.clone()),
            regarding: Some(regarding),
            reporting_controller: Some(label::MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(
                if event.is_warning {
                    "Warning"
                } else {
                    "Normal"
                }
                .to_owned(),
            ),
            ..EventObject::default()
        };
        let api: Api<EventObject> = Api::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &object)
            .await
            .map(|_| ())
    }
}

impl Event {
    /// An object cannot be read.
    pub fn malformed(error: &DecodeError) -> Self {
        warning(reason::MALFORMED, "Read", &malformed::message(error))
    }
}

/// What happened between two statuses, for `kubectl describe`.
pub fn events(before: &ModelStatus, after: &ModelStatus) -> Vec<Event> {
    let mut events = Vec::new();
    if after.latest_commit != before.latest_commit
        && let Some(commit) = &after.latest_commit
    {
        events.push(normal(
            "NewCommit",
            "Resolve",
            &format!("the source is at commit {commit}"),
        ));
    }
    if after.last_known_good != before.last_known_good
        && let Some(commit) = &after.last_known_good
    {
        let note = format!("all workers run commit {commit}");
        events.push(normal("Serving", "RollOut", &note));
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
        events.push(warning(reason::COMMIT_FAILED, "RollOut", &note));
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
            events.push(warning(&now.reason, "Reconcile", &now.message));
        }
    }
    events
}

fn normal(reason: &str, action: &'static str, note: &str) -> Event {
    event(false, reason, action, note)
}

fn warning(reason: &str, action: &'static str, note: &str) -> Event {
    event(true, reason, action, note)
}

fn event(is_warning: bool, reason: &str, action: &'static str, note: &str) -> Event {
    // The API server takes 1 kB, and a character up to 4 bytes.
    let note = note.chars().take(250).collect();
    Event {
        is_warning,
        reason: reason.to_owned(),
        action,
        note,
    }
}
