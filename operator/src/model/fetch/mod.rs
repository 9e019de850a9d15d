//! What there is.

pub mod pods;

use std::sync::Arc;

use hyprstream_api::{Checked, Model};
use hyprstream_contract::{CommitId, label};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod, Service},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta},
};

use super::build::{ASKED, CLAIM, CONTENT, GOOD, REVISION, UPGRADE, Workers};
use crate::{
    cache::Caches,
    owner::is_owned_by,
    volume::{Revision, volume_name},
};

/// The objects of a Model.
pub struct Existing {
    /// Its Deployment, if it is ours.
    pub deployment: Option<Arc<Deployment>>,
    /// Its Service, if it is ours.
    pub service: Option<Arc<Service>>,
    /// Its claims, newest first.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// The volumes of its claims.
    pub volumes: Vec<Arc<PersistentVolume>>,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

impl Existing {
    /// Reads the caches.
    pub fn of(model: &Model, caches: &Caches) -> Self {
        let name = model.name_any();
        let namespace = model.namespace().unwrap_or_default();
        let uid = model.metadata.uid.as_deref();
        let is_own = |meta: &ObjectMeta| uid.is_some_and(|uid| is_owned_by(meta, uid));
        let mut claims = caches.claims.of_model(&namespace, &name);
        claims.retain(|c| is_own(&c.metadata));
        claims.sort_by_key(|c| std::cmp::Reverse(c.metadata.creation_timestamp.clone()));
        Self {
            deployment: caches
                .deployments
                .get(Some(&namespace), &name)
                .filter(|d| is_own(&d.metadata) && d.metadata.deletion_timestamp.is_none()),
            service: caches
                .services
                .get(Some(&namespace), &name)
                .filter(|s| is_own(&s.metadata)),
            claims,
            volumes: caches.volumes.of_model(&namespace, &name),
            pods: caches.pods.of_model(&namespace, &name),
        }
    }

    /// What the Deployment makes.
    pub fn current(&self) -> Option<Workers> {
        let deployment = self.deployment.as_ref()?;
        Some(Workers {
            revision: Revision {
                commit: commit(&deployment.metadata)?,
                claim: self.note(CLAIM)?.to_owned(),
            },
            content: self
                .note(CONTENT)
                .and_then(|c| serde_json::from_str(c).ok()),
            template: deployment.spec.template.clone(),
        })
    }

    /// How many workers the Deployment makes.
    pub fn current_replicas(&self) -> Option<i32> {
        self.deployment.as_ref()?.spec.replicas
    }

    /// The workers that Deployment and Service note as good.
    pub fn noted_good(&self) -> Option<Workers> {
        let service = || self.service.as_ref()?.annotations().get(GOOD);
        let note = self.note(GOOD).or_else(|| service().map(String::as_str));
        serde_json::from_str(note?).ok()
    }

    /// What the Model asked for, as the Deployment notes it.
    pub fn asked(&self) -> Option<&str> {
        self.note(ASKED)
    }

    /// The revision that another release of the operator was the cause of.
    pub fn upgrade(&self) -> Option<&str> {
        self.note(UPGRADE)
    }

    fn note(&self, name: &str) -> Option<&str> {
        let annotations = self.deployment.as_ref()?.annotations();
        annotations.get(name).map(String::as_str)
    }

    /// Digest of the Deployment's pods.
    pub fn current_revision(&self) -> Option<&str> {
        self.deployment
            .as_ref()?
            .labels()
            .get(REVISION)
            .map(String::as_str)
    }

    /// The claims that can be used with their commits, newest first.
    pub fn revisions(&self) -> Vec<Revision> {
        self.claims
            .iter()
            .filter(|c| self.is_usable(&c.name_any()))
            .filter_map(|c| {
                Some(Revision {
                    commit: commit(&c.metadata)?,
                    claim: c.name_any(),
                })
            })
            .collect()
    }

    /// Whether new pods can mount that claim: it is there, it has not lost its volume, and nobody
    /// has deleted either. What is deleted stays for as long as pods mount it, for good if they
    /// serve.
    pub fn is_usable(&self, claim: &str) -> bool {
        let Some(found) = self.claims.iter().find(|c| c.name_any() == claim) else {
            return false;
        };
        let phase = found.status.as_ref().and_then(|s| s.phase.as_deref());
        found.metadata.deletion_timestamp.is_none()
            && phase != Some("Lost")
            && self.volume_is_free(found.namespace().unwrap_or_default().as_str(), claim)
    }

    /// Whether a volume of that claim is usable, or can be made.
    fn volume_is_free(&self, namespace: &str, claim: &str) -> bool {
        let name = volume_name(namespace, claim);
        self.volumes
            .iter()
            .find(|v| v.name_any() == name)
            .is_none_or(|v| {
                let phase = v.status.as_ref().and_then(|s| s.phase.as_deref());
                v.metadata.deletion_timestamp.is_none()
                    && !matches!(phase, Some("Released" | "Failed"))
            })
    }

    /// The claim to use for the content whose claims are called `name`, or `name` and a number:
    /// one that is there, or the first name that is free.
    pub fn claim_for(&self, namespace: &str, name: &str) -> String {
        let nth = |n: usize| match n {
            0 => name.to_owned(),
            n => format!("{name}-{n}"),
        };
        let is_taken = |claim: &String| self.claims.iter().any(|c| c.name_any() == *claim);
        let names = || (0..=self.claims.len() + self.volumes.len()).map(nth);
        names()
            .find(|claim| self.is_usable(claim))
            .or_else(|| {
                names().find(|claim| !is_taken(claim) && self.volume_is_free(namespace, claim))
            })
            .unwrap_or_else(|| name.to_owned())
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
    let api: Api<Checked<Event>> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default()
        .fields(&format!("involvedObject.uid={pod_uid},reason=FailedMount"))
        .limit(20);
    let events = api.list(&params).await?.items.into_iter();
    let mut events: Vec<Event> = events.filter_map(|e| e.into_inner().ok()).collect();
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
