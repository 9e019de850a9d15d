//! Conditions of any kind: pure, but for the time, which comes in.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// True, False or Unknown.
    pub status: &'static str,
    /// CamelCase reason.
    pub reason: String,
    /// For the user of the object.
    pub message: String,
}

/// It is so.
pub fn yes(reason: &str, message: impl Into<String>) -> State {
    state("True", reason, message)
}

/// It is not.
pub fn no(reason: &str, message: impl Into<String>) -> State {
    state("False", reason, message)
}

/// It is not known.
pub fn unknown(reason: &str, message: impl Into<String>) -> State {
    state("Unknown", reason, message)
}

/// It is as it was told before.
pub fn repeated(known: &Condition) -> State {
    let status = match known.status.as_str() {
        "True" => "True",
        "False" => "False",
        _ => "Unknown",
    };
    state(status, &known.reason, &known.message)
}

fn state(status: &'static str, reason: &str, message: impl Into<String>) -> State {
    State {
        status,
        reason: reason.to_owned(),
        message: message.into(),
    }
}

/// A message that ends as a sentence does.
pub fn sentence(message: &str) -> String {
    let trimmed = message.trim_end();
    if trimmed.ends_with(['.', '!', '?']) {
        trimmed.to_owned()
    } else {
        format!("{trimmed}.")
    }
}

/// The condition of a type. Its time is that of `known`, which it had before, as long as its status
/// is the same.
pub fn condition(
    known: Option<&Condition>,
    kind: &str,
    state: State,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let since = known
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
