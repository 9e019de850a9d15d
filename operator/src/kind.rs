//! What the operator has controllers for.

use std::fmt::{Debug, Display, Formatter};

use hyprstream_api::Checked;
use kube::{
    Resource, ResourceExt, api::ObjectMeta, core::NamespaceResourceScope,
    runtime::reflector::ObjectRef,
};
use prometheus::IntGaugeVec;
use serde::{Serialize, de::DeserializeOwned};

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
