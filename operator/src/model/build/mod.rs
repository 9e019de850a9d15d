//! What there should be: pure, and never fails.

mod budget;
mod deployment;
mod desired;
mod key;
mod service;
pub mod target;
pub mod tls;
mod volume;
mod workers;

use std::collections::BTreeMap;

use hyprstream_contract::label;
use kube::api::ObjectMeta;

pub use budget::disruption_budget;
pub use deployment::{Notes, asked, asked_spec, attempt, deployment, revision_of};
pub use desired::{Desired, desired};
pub use key::worker_key;
pub use service::{service, url};
pub use volume::{
    adapters_volume, bound_volume, claim_name, content, new_volume, persistent_volume,
    persistent_volume_claim,
};
pub use workers::{Workers, workers};

use super::validate::Plan;
pub use crate::volume::{Content, NewVolume, Revision};

/// Label on pods: digest of the template that they were made from.
pub const REVISION: &str = "hyprstream.io/revision";
/// Annotation on a Deployment: the claim that its pods mount.
pub const CLAIM: &str = "hyprstream.io/claim";
/// Annotation on a Deployment: what the volume of [`CLAIM`] shows, a [`Content`].
pub const CONTENT: &str = "hyprstream.io/content";
/// Annotation on a Deployment and on the Service, so that either may be deleted: the last
/// [`Workers`] that were all ready.
pub const GOOD: &str = "hyprstream.io/last-good";
/// Annotation on a Deployment: what the Model asked for, whatever runs, see [`asked`].
pub const ASKED: &str = "hyprstream.io/asked";
/// Annotation on a Deployment: the revision that another release of the operator, and not the
/// Model, is the cause of.
pub const UPGRADE: &str = "hyprstream.io/upgrade";
/// Annotation on a Deployment: the revision whose workers take the place of others one by one, since
/// no node has room for them beside those.
pub const REPLACING: &str = "hyprstream.io/replacing";
/// Value of `app.kubernetes.io/name` on everything that belongs to workers.
pub const WORKER: &str = "hyprstream-worker";
/// Name of the volume in a pod that mounts the claim.
const MODEL_VOLUME: &str = "model";
/// Name of the volume in a pod that mounts the claim of the Model's adapters.
const ADAPTERS_VOLUME: &str = "adapters";

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
    plan.owner().metadata(name, labels(plan))
}

#[cfg(test)]
mod tests;
