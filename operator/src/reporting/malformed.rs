//! What is told of an object that our types cannot hold: pure.

use hyprstream_api::{
    DecodeError,
    condition::{READY, STALLED, reason},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde::Deserialize;
use serde_json::Value;

/// Field manager of such statuses. Of its own, so that the rest of the status stays as the last reconciliation left it.
pub(super) const MANAGER: &str = "hyprstream-operator-intake";

/// What an event and a condition say of an object that cannot be read.
pub(super) fn message(error: &DecodeError) -> String {
    format!(
        "the operator cannot read this object: {error}. Correct that field; if it belongs to a \
         newer version, upgrade the operator. Until then what runs is left as it is"
    )
}

/// The conditions; `None` if the status has them. Whether workers answer is not looked at, so
/// `Ready` is unknown.
pub(super) fn conditions(
    status: &Value,
    error: &DecodeError,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let known: Vec<Condition> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| Condition::deserialize(c).ok())
        .collect();
    let wanted = [(READY, "Unknown"), (STALLED, "True")].map(|(kind, status)| {
        let since = known
            .iter()
            .find(|c| c.type_ == kind && c.status == status)
            .map_or(Time(now), |c| c.last_transition_time.clone());
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason::MALFORMED.to_owned(),
            message: message(error),
            observed_generation: generation,
            last_transition_time: since,
        }
    });
    (!wanted.iter().all(|c| known.contains(c))).then(|| wanted.into())
}

#[cfg(test)]
mod tests {
    use hyprstream_api::{Checked, Model};
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_written_once_and_again_for_another_generation() {
        let model: Checked<Model> = serde_json::from_value(json!({"spec": 1})).unwrap();
        let error = model.get().unwrap_err();
        let (then, now) = (Timestamp::UNIX_EPOCH, Timestamp::now());
        let first = conditions(&Value::Null, error, Some(1), then).unwrap();
        assert_eq!(first[0].status, "Unknown");
        let status = json!({"conditions": first});
        assert_eq!(conditions(&status, error, Some(1), now), None);
        let second = conditions(&status, error, Some(2), now).unwrap();
        assert_eq!(second[1].last_transition_time, Time(then));
        // Beside what cannot be read itself.
        let status = json!({"conditions": [7, {"type": "Ready"}], "replicas": "many"});
        assert!(conditions(&status, error, Some(1), now).is_some());
    }
}
