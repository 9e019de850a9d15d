//! What of a Model, of an Adapter and of an EndpointSlice matters for routing.
//!
//! Only these fields are read, each by itself: one whose value has another form than we know is
//! reported and counts as absent, so that a Model of a later version of the CRD, or one with a
//! number that is too large, is served all the same.

mod adapter;

use std::net::IpAddr;

use hyprstream_api::condition::{self, reason};
use hyprstream_contract::{label, worker};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};
use kube::api::{DynamicObject, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

pub(super) use self::adapter::adapter;
use crate::table::{Hope, ModelFacts, ModelKey, Reference};

/// What is known of an object, and the fields of it that could not be read.
#[derive(Debug)]
pub(super) struct Facts<T> {
    pub(super) known: T,
    pub(super) unread: Vec<String>,
}

/// The ready workers that one EndpointSlice names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceFacts {
    /// Name of the slice; its namespace is the Model's.
    pub(super) name: String,
    /// The Model.
    pub(super) model: ModelKey,
    /// Its workers.
    pub(super) workers: Vec<SliceWorker>,
}

/// A ready worker as a slice has it. Slices are by pods that name the same ports, so that what one
/// pod speaks is never taken for what another does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceWorker {
    /// UID of the pod, or nothing for endpoints made by hand.
    pub(super) uid: String,
    /// Its address.
    pub(super) address: IpAddr,
    /// Where it speaks HTTP.
    pub(super) plain: Option<u16>,
    /// Where it speaks it over TLS.
    pub(super) tls: Option<u16>,
}

/// The facts of a Model; `None` for an object without a name, which the API server never sends.
pub(super) fn model(object: &DynamicObject) -> Option<Facts<ModelFacts>> {
    let metadata = &object.metadata;
    let key = ModelKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    let mut fields = Fields::of(&object.data);
    let conditions = Conditions::read(&mut fields);
    let (reason, message) = conditions.why_not_ready();
    let wanted = fields.get("/spec/replicas", count).unwrap_or(1);
    // A suspended Model keeps the workers that it had, whatever its spec asks for.
    let existing = fields.get("/status/replicas", count).unwrap_or(0);
    let suspend = fields.get("/spec/suspend", Value::as_bool).unwrap_or(false);
    let known = ModelFacts {
        key,
        reference: reference(&mut fields),
        commit: fields.get("/status/commit", |value| value.as_str()?.parse().ok()),
        replicas: if suspend { existing } else { wanted },
        suspended: suspend && existing == 0,
        hope: conditions.hope(),
        reason,
        message,
        created: created(metadata),
    };
    Some(Facts {
        known,
        unread: fields.unread,
    })
}

/// The facts of an EndpointSlice; `None` without the label of a Model.
pub(super) fn slice(object: &DynamicObject) -> Option<Facts<SliceFacts>> {
    let metadata = &object.metadata;
    let model = metadata.labels.as_ref()?.get(label::MODEL)?;
    let name = metadata.name.clone()?;
    let model = ModelKey::new(metadata.namespace.as_deref()?, model);
    let mut fields = Fields::of(&object.data);
    let ports: Vec<EndpointPort> = fields.list("/ports");
    let named = |name: &str| {
        let port = ports.iter().find(|port| {
            port.name.as_deref() == Some(name)
                && port
                    .protocol
                    .as_deref()
                    .is_none_or(|protocol| protocol == "TCP")
        });
        port.and_then(|port| u16::try_from(port.port?).ok())
    };
    let (plain, tls) = (named(worker::PORT_NAME), named(worker::TLS_PORT_NAME));
    let endpoints: Vec<Endpoint> = fields.list("/endpoints");
    let ready = endpoints.iter().filter(|endpoint| is_ready(endpoint));
    let workers = ready.filter_map(|endpoint| {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let uid = endpoint
            .target_ref
            .as_ref()
            .and_then(|target| target.uid.clone());
        let worker = SliceWorker {
            uid: uid.unwrap_or_default(),
            address,
            plain,
            tls,
        };
        (plain.is_some() || tls.is_some()).then_some(worker)
    });
    let known = SliceFacts {
        name,
        model,
        workers: workers.collect(),
    };
    Some(Facts {
        known,
        unread: fields.unread,
    })
}

/// In seconds since 1970.
fn created(metadata: &ObjectMeta) -> i64 {
    let time = metadata.creation_timestamp.as_ref();
    time.map_or(0, |time| time.0.as_second())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| {
        conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false)
    })
}

/// The fields of an object, and which of them could not be read.
struct Fields<'a> {
    data: &'a Value,
    unread: Vec<String>,
}

impl<'a> Fields<'a> {
    fn of(data: &'a Value) -> Self {
        Self {
            data,
            unread: Vec::new(),
        }
    }

    /// The value at a path as `read` takes it; `None` where there is none.
    fn get<T>(&mut self, path: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.data.pointer(path).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.unread.push(path.to_owned());
        }
        read
    }

    /// Whether there is a value at a path.
    fn has(&self, path: &str) -> bool {
        self.data
            .pointer(path)
            .is_some_and(|value| !value.is_null())
    }

    fn text(&mut self, path: &str) -> Option<&'a str> {
        self.get(path, Value::as_str)
    }

    /// The elements of a list that can be read.
    fn list<T: Deserialize<'a>>(&mut self, path: &str) -> Vec<T> {
        let items = self
            .get(path, Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let mut read = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match T::deserialize(item) {
                Ok(item) => read.push(item),
                Err(_) => self.unread.push(format!("{path}/{index}")),
            }
        }
        read
    }
}

/// A number of pods; those that nobody can have are as many as there can be.
fn count(value: &Value) -> Option<u32> {
    match (value.as_u64(), value.as_i64()) {
        (Some(number), _) => Some(u32::try_from(number).unwrap_or(u32::MAX)),
        (None, Some(_negative)) => Some(0),
        (None, None) => None,
    }
}

fn reference(fields: &mut Fields<'_>) -> Reference {
    let mut named = |kind: &str| {
        let path = format!("/spec/source/ref/{kind}");
        fields.text(&path).map(str::to_owned)
    };
    match (named("branch"), named("tag"), named("commit")) {
        (Some(branch), _, _) => Reference::Branch(branch),
        (_, Some(tag), _) => Reference::Tag(tag),
        (_, _, Some(commit)) => Reference::Commit(commit),
        (None, None, None) => Reference::Head,
    }
}

/// The conditions of an object.
struct Conditions<'a>(Vec<Condition<'a>>);

#[derive(Deserialize)]
struct Condition<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    status: &'a str,
    #[serde(default)]
    reason: &'a str,
    #[serde(default)]
    message: &'a str,
}

impl<'a> Conditions<'a> {
    fn read(fields: &mut Fields<'a>) -> Self {
        Self(fields.list("/status/conditions"))
    }

    fn get(&self, kind: &str) -> Option<&Condition<'a>> {
        self.0.iter().find(|condition| condition.kind == kind)
    }

    fn is_true(&self, kind: &str) -> bool {
        self.get(kind).is_some_and(|c| c.status == "True")
    }

    /// Whether workers can be expected while there are none.
    fn hope(&self) -> Hope {
        if self.is_true(condition::STALLED) {
            return if self.is_true(condition::PROGRESSING) {
                // The last good commit is being restored.
                Hope::Good
            } else {
                Hope::None
            };
        }
        // The operator goes on trying until its deadline, which is far longer than anybody waits.
        let fails = [
            reason::CRASH_LOOP,
            reason::IMAGE_PULL_FAILED,
            reason::PODS_REFUSED,
        ];
        match self.get(condition::WORKERS_READY) {
            Some(workers) if workers.status != "True" && fails.contains(&workers.reason) => {
                Hope::Faint
            }
            _ => Hope::Good,
        }
    }

    /// The reason and message of the condition that tells most of why a Model is not ready.
    fn why_not_ready(&self) -> (String, String) {
        self.told().unwrap_or_else(|| {
            (
                reason::NO_WORKERS.to_owned(),
                "none of its workers is ready".to_owned(),
            )
        })
    }

    /// The reason and message of the condition that tells most of why an object is not ready.
    fn told(&self) -> Option<(String, String)> {
        let stalled = self
            .get(condition::STALLED)
            .filter(|condition| condition.status == "True");
        let told = stalled.or_else(|| {
            self.get(condition::READY)
                .filter(|condition| condition.status != "True")
        });
        told.map(|condition| (condition.reason.to_owned(), condition.message.to_owned()))
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
        let facts = model(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(facts.unread, Vec::<String>::new());
        facts.known
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
            (facts.replicas, facts.suspended, facts.hope),
            (1, false, Hope::Good)
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
        assert_eq!(facts.hope, Hope::None);
        assert_eq!(facts.reason, "InvalidWeights");
    }

    #[test]
    fn there_is_hope_while_something_is_being_done_that_may_help() {
        let hope =
            |conditions: &[Value]| model_of(&json!({}), &json!({"conditions": conditions})).hope;
        let stalled = condition("Stalled", "True", "InvalidWeights");
        let restoring = condition("Progressing", "True", "RollingBack");
        assert_eq!(hope(&[stalled.clone(), restoring]), Hope::Good);
        let given_up = condition("Progressing", "False", "InvalidWeights");
        assert_eq!(hope(&[stalled, given_up]), Hope::None);
        for (reason, expected) in [
            ("RollingOut", Hope::Good),
            ("Unschedulable", Hope::Good),
            ("CrashLoop", Hope::Faint),
            ("ImagePullFailed", Hope::Faint),
            ("PodsRefused", Hope::Faint),
        ] {
            let workers = condition("WorkersReady", "False", reason);
            assert_eq!(hope(&[workers]), expected, "{reason}");
        }
    }

    #[test]
    fn a_model_that_our_types_cannot_hold_is_served_all_the_same() {
        let object = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": "m", "namespace": "a"},
            "spec": {
                "source": {"url": ["new", "form"], "ref": {"branch": "main"}},
                "rollout": {"maxSurge": 3_000_000_000_u32, "maxUnavailable": null},
                "engine": {"device": "quantum"},
                "replicas": 5_000_000_000_u64,
            },
            "status": {"commit": "x", "replicas": "many", "conditions": [
                {"type": 1}, {"type": "Ready", "status": "False", "reason": "New", "message": "m"},
            ]},
        });
        let facts = model(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(facts.known.key.to_string(), "a/m");
        assert_eq!(facts.known.reference, Reference::Branch("main".to_owned()));
        assert_eq!(
            (facts.known.replicas, facts.known.commit, facts.known.reason),
            (u32::MAX, None, "New".to_owned())
        );
        let unread = ["/status/conditions/0", "/status/replicas", "/status/commit"];
        assert_eq!(facts.unread, unread, "and only what is needed is looked at");
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

    fn slice_of(endpoints: &Value, ports: &Value) -> Option<SliceFacts> {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "m-x", "namespace": "a", "labels": {"hyprstream.io/model": "m"}},
            "endpoints": endpoints, "ports": ports,
        });
        slice(&serde_json::from_value(object).unwrap()).map(|facts| facts.known)
    }

    #[test]
    fn only_ready_endpoints_on_the_named_ports_are_workers() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"uid": "u1"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "terminating": true}},
            {"addresses": ["10.0.0.4"]},
        ]);
        let ports = json!([{"name": "metrics", "port": 9}, {"name": "http", "port": 8000}]);
        let facts = slice_of(&endpoints, &ports).unwrap();
        let expected = |plain, tls| {
            [("u1", "10.0.0.1"), ("", "10.0.0.4")].map(|(uid, address)| SliceWorker {
                uid: uid.to_owned(),
                address: address.parse().unwrap(),
                plain,
                tls,
            })
        };
        assert_eq!(facts.workers, expected(Some(8000), None));
        let ports = json!([{"name": "https", "port": 8443}, {"name": "http", "port": 8000}]);
        let facts = slice_of(&endpoints, &ports).unwrap();
        assert_eq!(facts.workers, expected(Some(8000), Some(8443)));
        let facts = slice_of(&endpoints, &json!([{"name": "https", "port": 8443}])).unwrap();
        assert_eq!(facts.workers, expected(None, Some(8443)));
        assert!(
            slice_of(&endpoints, &json!([{"name": "x", "port": 1}]))
                .unwrap()
                .workers
                .is_empty()
        );
    }

    #[test]
    fn an_endpoint_that_cannot_be_read_costs_no_other() {
        let object = json!({
            "metadata": {"name": "m-x", "namespace": "a", "labels": {"hyprstream.io/model": "m"}},
            "endpoints": [{"addresses": 7}, {"addresses": ["10.0.0.4"]}],
            "ports": [{"name": "far", "port": 3_000_000_000_u32}, {"name": "http", "port": 8000}],
        });
        let facts = slice(&serde_json::from_value(object).unwrap()).unwrap();
        let expected = SliceWorker {
            uid: String::new(),
            address: "10.0.0.4".parse().unwrap(),
            plain: Some(8000),
            tls: None,
        };
        assert_eq!(facts.known.workers, [expected]);
        assert_eq!(facts.unread, ["/ports/0", "/endpoints/0"]);
    }
}
