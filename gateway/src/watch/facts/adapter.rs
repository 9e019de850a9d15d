//! What of an Adapter matters for routing.

use std::sync::Arc;

use hyprstream_api::condition::{self, reason};
use hyprstream_contract::ModelRef;
use kube::api::DynamicObject;

use super::{Conditions, Facts, Fields, count, created};
use crate::table::{AdapterFacts, Hope, ModelKey};

/// The facts of an Adapter; `None` for an object without a name, which the API server never sends.
/// One whose Model or served name cannot be read is an adapter of no Model.
pub(crate) fn adapter(object: &DynamicObject) -> Option<Facts<Arc<AdapterFacts>>> {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.as_deref()?;
    let name = metadata.name.as_deref()?;
    let mut fields = Fields::of(&object.data);
    let conditions = Conditions::read(&mut fields);
    let (reason, message) = conditions.told().unwrap_or_else(|| {
        (
            reason::PENDING.to_owned(),
            "no worker has it yet".to_owned(),
        )
    });
    let has_own = fields.has("/spec/servedName");
    let served = fields.get("/spec/servedName", |value| {
        value.as_str().filter(|text| is_served_name(text))
    });
    // The name of one that asks for another is nobody's.
    let served = served.or_else(|| (!has_own && is_served_name(name)).then_some(name));
    let model = fields.text("/spec/modelRef/name");
    let known = AdapterFacts {
        model: ModelKey::new(namespace, served.and(model).unwrap_or_default()),
        name: name.into(),
        served: served.unwrap_or_default().into(),
        commit: fields.get("/status/commit", |value| value.as_str()?.parse().ok()),
        digest: fields.text("/status/digest").map(str::to_owned),
        loaded: fields.get("/status/replicas/loaded", count).unwrap_or(0),
        hope: hope(&conditions),
        reason,
        message,
        created: created(metadata),
    };
    let mut unread = fields.unread;
    if model.is_none() && unread.iter().all(|path| path != "/spec/modelRef/name") {
        unread.push("/spec/modelRef/name".to_owned());
    }
    Some(Facts {
        known: Arc::new(known),
        unread,
    })
}

/// Whether workers that lack it can be expected to have it.
fn hope(conditions: &Conditions<'_>) -> Hope {
    let accepted = conditions.get(condition::ACCEPTED);
    if accepted.is_some_and(|accepted| accepted.status == "False") {
        Hope::None
    } else if conditions.is_true(condition::STALLED) || lacks_files(conditions) {
        Hope::Faint
    } else {
        Hope::Good
    }
}

/// Whether the registry cannot have its files as things are: a push or a credential is missing, or
/// an upstream does not answer.
fn lacks_files(conditions: &Conditions<'_>) -> bool {
    let source = conditions.get(condition::SOURCE_RESOLVED);
    source.is_some_and(|source| {
        source.status == "False" && source.reason != condition::reason::FETCHING
    })
}

/// Whether a request can name an adapter so.
fn is_served_name(name: &str) -> bool {
    format!("m+{name}")
        .parse::<ModelRef>()
        .is_ok_and(|reference| matches!(&reference.adapters[..], [one] if one.name == name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(spec: &Value, status: &Value) -> (Arc<AdapterFacts>, Vec<String>) {
        let object = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
            "metadata": {"name": "sql", "namespace": "a",
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec, "status": status,
        });
        let facts = adapter(&serde_json::from_value(object).unwrap()).unwrap();
        (facts.known, facts.unread)
    }

    fn condition(kind: &str, status: &str) -> Value {
        json!({"type": kind, "status": status, "reason": "Why", "message": "why"})
    }

    #[test]
    fn an_adapter_without_status_is_expected_by_its_own_name() {
        let (facts, unread) = facts(&json!({"modelRef": {"name": "m"}}), &Value::Null);
        assert_eq!(
            (facts.model.to_string().as_str(), &*facts.served),
            ("a/m", "sql")
        );
        assert_eq!((facts.hope, facts.created), (Hope::Good, 1_767_225_600));
        assert_eq!(facts.reason, "Pending");
        assert_eq!(unread, Vec::<String>::new());
    }

    #[test]
    fn what_its_status_says_is_known() {
        let spec = json!({"modelRef": {"name": "m"}, "servedName": "SQL_v2"});
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |conditions: &[Value]| {
            let status = json!({"commit": commit, "digest": "d", "conditions": conditions,
                                "replicas": {"desired": 2, "loaded": 1}});
            facts(&spec, &status).0
        };
        let facts = of(&[condition("Accepted", "True"), condition("Ready", "False")]);
        assert_eq!((&*facts.served, &*facts.name), ("SQL_v2", "sql"));
        assert_eq!((facts.loaded, facts.digest.as_deref()), (1, Some("d")));
        assert_eq!(facts.commit.as_ref().unwrap().as_str(), commit);
        assert_eq!((facts.hope, facts.reason.as_str()), (Hope::Good, "Why"));
        // Its reason is not that files are being fetched.
        let unresolved = condition("SourceResolved", "False");
        assert_eq!(of(&[unresolved]).hope, Hope::Faint);
        let mut fetching = condition("SourceResolved", "False");
        fetching["reason"] = json!("Fetching");
        assert_eq!(of(&[fetching]).hope, Hope::Good);
        let stalled = condition("Stalled", "True");
        assert_eq!(of(std::slice::from_ref(&stalled)).hope, Hope::Faint);
        assert_eq!(
            of(&[condition("Accepted", "False"), stalled]).hope,
            Hope::None
        );
    }

    #[test]
    fn one_that_cannot_be_read_is_told_of_and_is_no_models() {
        for (spec, path) in [
            (json!({}), "/spec/modelRef/name"),
            (json!(7), "/spec/modelRef/name"),
            (json!({"modelRef": "m"}), "/spec/modelRef/name"),
            (json!({"modelRef": {"name": 7}}), "/spec/modelRef/name"),
            (
                json!({"modelRef": {"name": "m"}, "servedName": 7}),
                "/spec/servedName",
            ),
            (
                json!({"modelRef": {"name": "m"}, "servedName": "a+b"}),
                "/spec/servedName",
            ),
        ] {
            let (facts, unread) = facts(&spec, &json!({"commit": 7}));
            assert_eq!(&*facts.model.name, "", "{spec}");
            assert!(unread.iter().any(|field| field == path), "{unread:?}");
            assert!(unread.iter().any(|field| field == "/status/commit"));
        }
    }
}
