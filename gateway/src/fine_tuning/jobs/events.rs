//! What happened to a job.

use std::cmp::Reverse;

use hyprstream_api::{TrainingJob, condition};
use hyprstream_openai::fine_tuning::Event;
use k8s_openapi::{
    api::core::v1::Event as ClusterEvent, apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{super::ids, view};

/// The events of a job, the latest first: that it was made, what its conditions say now, that it
/// was cancelled, and what the cluster reported of it, which it forgets after an hour.
pub(super) fn events(job: &TrainingJob, of_cluster: &[ClusterEvent]) -> Vec<Event> {
    let uid = job.uid().unwrap_or_default();
    let made = Event {
        id: ids::of("ftevent-", &[&uid, "made"]),
        message: format!("Created fine-tuning job: {}", job.name_any()),
        ..event(view::created_at(job), "info")
    };
    let mut all = vec![made];
    let conditions = job.status.iter().flat_map(|status| &status.conditions);
    all.extend(conditions.filter_map(|condition| of_condition(&uid, condition)));
    all.extend(view::cancelled_at(job).map(|at| Event {
        id: ids::of("ftevent-", &[&uid, "cancelled"]),
        message: "The job was cancelled".to_owned(),
        ..event(at, "warn")
    }));
    all.extend(of_cluster.iter().map(|own| Event {
        id: ids::of("ftevent-", &[&own.uid().unwrap_or_default()]),
        message: own.message.clone().unwrap_or_default(),
        ..event(
            time(own),
            if own.type_.as_deref() == Some("Warning") {
                "warn"
            } else {
                "info"
            },
        )
    }));
    // Of those of one second the one that was noted last comes first.
    all.reverse();
    all.sort_by_key(|event| Reverse(event.created_at));
    all
}

fn event(created_at: i64, level: &str) -> Event {
    Event {
        id: String::new(),
        object: "fine_tuning.job.event".to_owned(),
        created_at,
        level: level.to_owned(),
        message: String::new(),
        kind: "message".to_owned(),
        data: serde_json::Map::new(),
    }
}

/// A condition that says that something happened.
fn of_condition(uid: &str, own: &Condition) -> Option<Event> {
    let level = match (own.type_.as_str(), own.status.as_str()) {
        (condition::FAILED, "True") | (condition::GATE_PASSED, "False") => "error",
        (condition::SOURCE_RESOLVED, "False") => "warn",
        (_, "True") => "info",
        _ => return None,
    };
    let at = own.last_transition_time.0.as_second();
    Some(Event {
        id: ids::of("ftevent-", &[uid, &own.type_, &own.status, &at.to_string()]),
        message: format!("{}: {}", own.reason, own.message),
        ..event(at, level)
    })
}

fn time(event: &ClusterEvent) -> i64 {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let exact = series.or(event.event_time.as_ref()).map(|time| time.0);
    let made = event
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0);
    last.or(exact).or(made).map_or(0, Timestamp::as_second)
}
