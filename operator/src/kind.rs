//! What the operator has controllers for.

use std::fmt::{Debug, Display, Formatter};

use hyprstream_api::Checked;
use kube::{
    Resource, ResourceExt, api::ObjectMeta, core::NamespaceResourceScope,
    runtime::reflector::ObjectRef,
};
use prometheus::IntGaugeVec;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// A kind that the operator has a controller for.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// What is told of an object.
    type Status: Clone + Debug + Default + PartialEq + Serialize + Send + Sync + 'static;

    /// Name of the kind, and the labels on what is made for its objects.
    const LABELS: OwnerLabels;

    /// What was last told of the object.
    fn status(&self) -> Option<&Self::Status>;

    /// Whether that is that it is ready.
    fn is_ready(&self) -> bool;

    /// Where objects of the kind are counted, by whether they are ready.
    fn gauge(metrics: &Metrics) -> &IntGaugeVec;
}

/// Where triggers of reconciliations go.
pub type Trigger = mpsc::Sender<Subject>;

/// A kind, and the labels that say for which of its objects another was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerLabels {
    /// Name of the kind.
    pub kind: &'static str,
    /// Label with the name of the owner, on everything.
    pub name: &'static str,
    /// Label with its namespace, on what has none.
    pub namespace: &'static str,
    /// Label with its UID, on what has no namespace.
    pub uid: &'static str,
}

impl OwnerLabels {
    /// Whether another object was made for the one of that name.
    pub fn is_of(&self, object: &impl Resource, namespace: &str, name: &str) -> bool {
        let label = |label: &str| object.labels().get(label).map(String::as_str);
        let own = object.meta().namespace.as_deref();
        label(self.name) == Some(name) && own.or_else(|| label(self.namespace)) == Some(namespace)
    }

    /// The object of the kind that another was made for, if it was made for one.
    pub fn subject(&self, object: &impl Resource) -> Option<Subject> {
        let name = object.labels().get(self.name)?;
        let namespace = object
            .namespace()
            .or_else(|| object.labels().get(self.namespace).cloned())?;
        Some(Subject {
            kind: self.kind,
            namespace,
            name: name.clone(),
        })
    }
}

/// Names an object of one of the kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Name of the kind.
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

impl Subject {
    /// Names the object of the kind `K` that has this metadata.
    pub fn of<K: Kind>(meta: &ObjectMeta) -> Self {
        Self {
            kind: K::LABELS.kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// The same for what watches the kind, which is to be `K`.
    pub fn to_ref<K: Kind>(&self) -> ObjectRef<Checked<K>> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl Display for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use hyprstream_api::Model;
    use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_lead_to_the_object_that_another_was_made_for() {
        let labels = Model::LABELS;
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"hyprstream.io/model": "m"}},
        }))
        .unwrap();
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "v", "labels": {
                "hyprstream.io/model": "m", "hyprstream.io/model-namespace": "ns",
            }},
        }))
        .unwrap();
        let m = Subject {
            kind: "Model",
            namespace: "ns".into(),
            name: "m".into(),
        };
        assert_eq!(labels.subject(&pod), Some(m.clone()));
        assert_eq!(labels.subject(&volume), Some(m));
        assert!(labels.is_of(&pod, "ns", "m") && labels.is_of(&volume, "ns", "m"));
        assert!(!labels.is_of(&pod, "ns", "n") && !labels.is_of(&volume, "other", "m"));
        assert_eq!(labels.subject(&Pod::default()), None);
    }
}
