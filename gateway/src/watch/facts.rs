//! What of a Model and of an EndpointSlice matters for routing.

use std::net::{IpAddr, SocketAddr};

use hyprstream_api::{Model, ModelStatus, condition};
use hyprstream_contract::{label, worker};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::table::{ModelFacts, ModelKey, Reference};

/// The ready workers that one EndpointSlice names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceFacts {
    /// Name of the slice; its namespace is the Model's.
    pub(super) name: String,
    /// The Model.
    pub(super) model: ModelKey,
    /// UID of the pod, or nothing for endpoints made by hand, and where it listens.
    pub(super) workers: Vec<(String, SocketAddr)>,
}

/// The facts of a Model; `None` for an object without a name, which the API server never sends.
pub(super) fn model(model: &Model) -> Option<ModelFacts> {
    let metadata = &model.metadata;
    let status = model.status.as_ref();
    let source = &model.spec.source;
    let (reason, message) = why_not_ready(status);
    let wanted = u32::try_from(model.spec.replicas).unwrap_or(0);
    // A suspended Model keeps the workers that it had, whatever its spec asks for.
    let existing = status.map_or(0, |status| u32::try_from(status.replicas).unwrap_or(0));
    Some(ModelFacts {
        key: ModelKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?),
        repository: without_credentials(&source.url),
        reference: reference(model),
        commit: status.and_then(|status| status.commit.as_ref()?.parse().ok()),
        replicas: if model.spec.suspend { existing } else { wanted },
        suspended: model.spec.suspend && existing == 0,
        stalled: status.is_some_and(|status| status.is_true(condition::STALLED)),
        reason,
        message,
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
    })
}

/// The facts of an EndpointSlice; `None` without the label of a Model.
pub(super) fn slice(slice: &EndpointSlice) -> Option<SliceFacts> {
    let metadata = &slice.metadata;
    let model = metadata.labels.as_ref()?.get(label::MODEL)?;
    let port = slice.ports.iter().flatten().find(|port| {
        port.name.as_deref() == Some(worker::PORT_NAME)
            && port
                .protocol
                .as_deref()
                .is_none_or(|protocol| protocol == "TCP")
    });
    let port = port.and_then(|port| u16::try_from(port.port?).ok());
    let ready = slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| is_ready(endpoint));
    let workers = ready.filter_map(|endpoint| {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let uid = endpoint
            .target_ref
            .as_ref()
            .and_then(|target| target.uid.clone());
        Some((uid.unwrap_or_default(), SocketAddr::new(address, port?)))
    });
    Some(SliceFacts {
        name: metadata.name.clone()?,
        model: ModelKey::new(metadata.namespace.as_deref()?, model),
        workers: workers.collect(),
    })
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| {
        conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false)
    })
}

fn reference(model: &Model) -> Reference {
    let Some(reference) = &model.spec.source.reference else {
        return Reference::Head;
    };
    match (&reference.branch, &reference.tag, &reference.commit) {
        (Some(branch), _, _) => Reference::Branch(branch.clone()),
        (_, Some(tag), _) => Reference::Tag(tag.clone()),
        (_, _, Some(commit)) => Reference::Commit(commit.clone()),
        (None, None, None) => Reference::Head,
    }
}

/// The reason and message of the condition that tells most.
fn why_not_ready(status: Option<&ModelStatus>) -> (String, String) {
    let told = status.and_then(|status| {
        let stalled = status
            .condition(condition::STALLED)
            .filter(|c| c.status == "True");
        stalled.or_else(|| {
            status
                .condition(condition::READY)
                .filter(|c| c.status != "True")
        })
    });
    match told {
        Some(condition) => (condition.reason.clone(), condition.message.clone()),
        None => (
            condition::reason::NO_WORKERS.to_owned(),
            "none of its workers is ready".to_owned(),
        ),
    }
}

/// The URL without a user and password. The API server refuses them in `http` URLs already.
fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn model_of(spec: &Value, status: &Value) -> ModelFacts {
        let mut object = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": "m", "namespace": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"source": {"url": "https://example.org/m"}},
            "status": status,
        });
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        model(&serde_json::from_value(object).unwrap()).unwrap()
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "why",
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn a_model_without_status_is_expected_to_start() {
        let facts = model_of(&json!({}), &json!(null));
        assert_eq!(facts.key.to_string(), "a/m");
        assert_eq!(
            (facts.replicas, facts.suspended, facts.stalled),
            (1, false, false)
        );
        assert_eq!(facts.commit, None);
        assert_eq!(facts.created, 1_767_225_600);
    }

    #[test]
    fn the_reason_of_a_stalled_model_is_told() {
        let conditions = [
            condition("Ready", "False", "NoWorkers"),
            condition("Stalled", "True", "InvalidWeights"),
        ];
        let facts = model_of(&json!({}), &json!({"conditions": conditions}));
        assert!(facts.stalled);
        assert_eq!(facts.reason, "InvalidWeights");
    }

    #[test]
    fn a_suspended_model_is_expected_only_as_long_as_it_has_workers() {
        let with = model_of(
            &json!({"suspend": true, "replicas": 0}),
            &json!({"replicas": 2}),
        );
        assert_eq!((with.suspended, with.replicas), (false, 2));
        let without = model_of(&json!({"suspend": true}), &json!({"replicas": 0}));
        assert!(without.suspended);
    }

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        assert_eq!(
            without_credentials("ssh://git:pw@h:22/a@b/c"),
            "ssh://h:22/a@b/c"
        );
        assert_eq!(without_credentials("https://h/a"), "https://h/a");
        assert_eq!(without_credentials("git@h:a/b"), "git@h:a/b");
    }

    fn slice_of(endpoints: &Value, ports: &Value) -> Option<SliceFacts> {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "m-x", "namespace": "a", "labels": {"hyprstream.io/model": "m"}},
            "endpoints": endpoints, "ports": ports,
        });
        slice(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn only_ready_endpoints_on_the_named_port_are_workers() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"uid": "u1"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "terminating": true}},
            {"addresses": ["10.0.0.4"]},
        ]);
        let ports = json!([{"name": "metrics", "port": 9}, {"name": "http", "port": 8000}]);
        let facts = slice_of(&endpoints, &ports).unwrap();
        let expected = [("u1", "10.0.0.1:8000"), ("", "10.0.0.4:8000")];
        let expected = expected.map(|(uid, at)| (uid.to_owned(), at.parse().unwrap()));
        assert_eq!(facts.workers, expected);
        assert!(
            slice_of(&endpoints, &json!([{"name": "x", "port": 1}]))
                .unwrap()
                .workers
                .is_empty()
        );
    }
}
