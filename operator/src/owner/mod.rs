//! For whom objects are made.
//!
//! What lives in the namespace of its owner has an owner reference, so that the garbage collector
//! takes it with its owner. What cannot have one, as a PersistentVolume, and what others make, as
//! pods, is found by labels; [`crate::sweep`] takes such volumes away.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt, api::ObjectMeta};

use crate::kind::{Kind, OwnerLabels};

/// An object that others are made for.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Its kind, and the labels on what is made for it.
    pub labels: OwnerLabels,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Makes it the owner of another object.
    pub reference: &'a OwnerReference,
}

impl<'a> Owner<'a> {
    /// An object of the kind `K`.
    pub fn new<K: Kind>(
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
        reference: &'a OwnerReference,
    ) -> Self {
        Self {
            labels: K::LABELS,
            namespace,
            name,
            uid,
            reference,
        }
    }

    /// Metadata of an object that it owns.
    pub fn metadata(&self, name: &str, labels: BTreeMap<String, String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(labels),
            owner_references: Some(vec![self.reference.clone()]),
            ..ObjectMeta::default()
        }
    }

    /// Metadata of an object of no namespace, which it cannot own.
    pub fn cluster_metadata(&self, name: &str, labels: BTreeMap<String, String>) -> ObjectMeta {
        let mut labels = labels;
        labels.insert(self.labels.namespace.to_owned(), self.namespace.to_owned());
        labels.insert(self.labels.uid.to_owned(), self.uid.to_owned());
        ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        }
    }

    /// Whether it owns that object.
    pub fn owns(&self, object: &impl Resource) -> bool {
        is_owned_by(object.meta(), self.uid)
    }

    /// Whether an object of no namespace was made for it.
    pub fn made(&self, object: &impl Resource) -> bool {
        object.labels().get(self.labels.uid).map(String::as_str) == Some(self.uid)
    }

    /// Whether the owner of that object is one of the same kind and name, be it another one that
    /// was deleted.
    pub fn is_namesake(&self, object: &impl Resource) -> bool {
        object
            .owner_references()
            .iter()
            .any(|o| o.kind == self.reference.kind && o.name == self.reference.name)
    }
}

/// Whether the object with that UID is an owner of the one with that metadata.
pub fn is_owned_by(meta: &ObjectMeta, uid: &str) -> bool {
    let owners = meta.owner_references.iter().flatten();
    owners.into_iter().any(|o| o.uid == uid)
}
