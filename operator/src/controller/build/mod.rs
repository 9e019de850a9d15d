//! What there should be: pure, and never fails.

mod deployment;
mod service;
mod volume;

use std::collections::BTreeMap;

use hyprstream_contract::{CommitId, VolumeAttributes, label};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use deployment::{attempt, deployment, revision_of};
pub use service::{service, url};
pub use volume::{new_volume, persistent_volume, persistent_volume_claim};

use super::validate::Plan;

/// Label on pods: digest of the template that they were made from.
pub const REVISION: &str = "hyprstream.io/revision";
/// Annotation on a Deployment: the claim that its pods mount.
pub const CLAIM: &str = "hyprstream.io/claim";
/// Value of `app.kubernetes.io/name` on everything that belongs to workers.
pub const WORKER: &str = "hyprstream-worker";

/// A commit and the claim that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The commit.
    pub commit: CommitId,
    /// Name of the claim.
    pub claim: String,
}

/// A revision whose volume can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// The commit and its claim.
    pub revision: Revision,
    /// Name of the PersistentVolume.
    pub volume: String,
    /// Identifies the volume to the node plugin, at most 128 bytes.
    pub handle: String,
    /// What the node plugin is told.
    pub attributes: VolumeAttributes,
    /// Size of the content, as far as known.
    pub size_bytes: u64,
}

/// Labels that select the workers of a Model.
pub fn selector(model: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (label::MODEL.to_owned(), model.to_owned()),
        ("app.kubernetes.io/name".to_owned(), WORKER.to_owned()),
    ])
}

/// The same as text, for the scale subresource.
pub fn selector_text(model: &str) -> String {
    format!("{}={model},app.kubernetes.io/name={WORKER}", label::MODEL)
}

fn labels(plan: &Plan) -> BTreeMap<String, String> {
    let mut labels = selector(&plan.name);
    labels.insert(label::MANAGED_BY.to_owned(), label::MANAGER.to_owned());
    labels
}

fn metadata(plan: &Plan, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(plan.namespace.clone()),
        labels: Some(labels(plan)),
        owner_references: Some(vec![plan.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
