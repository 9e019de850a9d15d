//! A Model that our types cannot hold: its status says so, and nothing else is done for it.

use hyprstream_api::{
    Checked, DecodeError, Model,
    condition::{READY, STALLED, reason},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    chain,
    model::{Context, LAST_PAUSE, RESYNC},
};

/// Of its own, so that the rest of the status stays as the last reconciliation left it.
const MANAGER: &str = "hyprstream-operator-intake";

impl Context {
    /// Says in the conditions of a Model why it cannot be read, unless they say so already.
    pub(crate) async fn tell_malformed(
        &self,
        model: &Checked<Model>,
        error: &DecodeError,
    ) -> Action {
        self.sources.forget(&model.uid().unwrap_or_default());
        self.metrics
            .reconciles
            .with_label_values(&[reason::MALFORMED])
            .inc();
        let status = model.raw().map_or(&Value::Null, |raw| &raw["status"]);
        let generation = model.meta().generation;
        let Some(conditions) = conditions(status, error, generation, Timestamp::now()) else {
            return Action::requeue(RESYNC);
        };
        let name = model.name_any();
        let body = json!({
            "apiVersion": Model::api_version(&()),
            "kind": Model::kind(&()),
            "metadata": {"name": name, "uid": model.uid()},
            "status": {"conditions": conditions},
        });
        let api: Api<Checked<Model>> =
            Api::namespaced(self.client.clone(), &model.namespace().unwrap_or_default());
        let params = PatchParams::apply(MANAGER).force();
        self.metrics.writes.with_label_values(&["Model"]).inc();
        match api.patch_status(&name, &params, &Patch::Apply(&body)).await {
            Ok(_) => Action::requeue(RESYNC),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Action::await_change()
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot write the status");
                Action::requeue(LAST_PAUSE)
            }
        }
    }
}

/// What an event and a condition say of an object that cannot be read.
pub(crate) fn message(error: &DecodeError) -> String {
    format!(
        "the operator cannot read this object: {error}. Correct that field; if it belongs to a \
         newer version, upgrade the operator. Until then what runs is left as it is"
    )
}

/// The conditions; `None` if the status has them. Whether workers answer is not looked at, so
/// `Ready` is unknown.
fn conditions(
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
