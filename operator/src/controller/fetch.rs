//! What there is.

use std::sync::Arc;

use hyprstream_api::Model;
use hyprstream_contract::{CommitId, label};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Event, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta},
};

use super::build::{CLAIM, REVISION, Revision};
use crate::cache::Caches;

/// The objects of a Model.
pub struct Existing {
    /// Its Deployment, if it is ours.
    pub deployment: Option<Arc<Deployment>>,
    /// Its claims, newest first, without those on their way out.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

impl Existing {
    /// Reads the caches.
    pub fn of(model: &Model, caches: &Caches) -> Self {
        let name = model.name_any();
        let namespace = model.namespace().unwrap_or_default();
        let is_own = |meta: &ObjectMeta| {
            meta.owner_references
                .iter()
                .flatten()
                .any(|o| Some(&o.uid) == model.metadata.uid.as_ref())
        };
        let mut claims = caches.claims.of_model(&namespace, &name);
        claims.retain(|c| is_own(&c.metadata) && c.metadata.deletion_timestamp.is_none());
        claims.sort_by_key(|c| std::cmp::Reverse(c.metadata.creation_timestamp.clone()));
        Self {
            deployment: caches
                .deployments
                .get(Some(&namespace), &name)
                .filter(|d| is_own(&d.metadata) && d.metadata.deletion_timestamp.is_none()),
            claims,
            pods: caches.pods.of_model(&namespace, &name),
        }
    }

    /// What the Deployment names.
    pub fn current(&self) -> Option<Revision> {
        let deployment = self.deployment.as_ref()?;
        Some(Revision {
            commit: commit(&deployment.metadata)?,
            claim: deployment.annotations().get(CLAIM)?.clone(),
        })
    }

    /// Digest of the Deployment's pods.
    pub fn current_revision(&self) -> Option<&str> {
        self.deployment
            .as_ref()?
            .labels()
            .get(REVISION)
            .map(String::as_str)
    }

    /// The claims with their commits, newest first.
    pub fn revisions(&self) -> Vec<Revision> {
        self.claims
            .iter()
            .filter_map(|c| {
                Some(Revision {
                    commit: commit(&c.metadata)?,
                    claim: c.name_any(),
                })
            })
            .collect()
    }

    /// Whether that claim is bound.
    pub fn is_bound(&self, claim: &str) -> bool {
        self.claims.iter().any(|c| {
            c.name_any() == claim
                && c.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
        })
    }

    /// Why the API server refuses the Deployment's pods.
    pub fn pods_refused(&self) -> Option<String> {
        let status = self.deployment.as_ref()?.status.as_ref()?;
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_.as_deref() == Some("ReplicaFailure"))?;
        (condition.status.as_deref() == Some("True"))
            .then(|| condition.message.clone().unwrap_or_default())
    }
}

fn commit(meta: &ObjectMeta) -> Option<CommitId> {
    meta.labels.as_ref()?.get(label::COMMIT)?.parse().ok()
}

/// Why the kubelet cannot mount the volume of a pod, as of its newest event; `None` if it says
/// nothing.
///
/// # Errors
/// The API server failed.
pub async fn mount_problem(
    client: &Client,
    namespace: &str,
    pod_uid: &str,
) -> Result<Option<String>, kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default()
        .fields(&format!("involvedObject.uid={pod_uid},reason=FailedMount"))
        .limit(20);
    let mut events = api.list(&params).await?.items;
    events.sort_by_key(|e| {
        e.last_timestamp
            .clone()
            .map(|t| t.0)
            .or(e.event_time.clone().map(|t| t.0))
    });
    // The kubelet adds now and then that it "timed out waiting", which says nothing.
    let newest = events
        .iter()
        .rev()
        .filter_map(|e| e.message.as_deref())
        .find(|m| m.starts_with("MountVolume."));
    Ok(newest.map(plain))
}

/// A kubelet's message without what only a developer of Kubernetes wants.
fn plain(message: &str) -> String {
    if message.contains("not found in the list of registered CSI drivers") {
        return "the hyprstream node plugin is not running on the pod's node (yet); the mount is \
                tried again"
            .to_owned();
    }
    match message.split_once(" desc = ") {
        Some((_, text)) => text.to_owned(),
        None => message
            .split_once(" : ")
            .map_or(message, |(_, text)| text)
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn mount_messages_lose_their_wrapping() {
        assert_eq!(
            plain(
                "MountVolume.SetUp failed for volume \"pv\" : rpc error: code = Unavailable desc \
                 = the registry does not answer"
            ),
            "the registry does not answer"
        );
        let missing = "MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: \
                       driver name csi.hyprstream.io not found in the list of registered CSI \
                       drivers";
        assert!(plain(missing).contains("node plugin is not running"));
    }
}
