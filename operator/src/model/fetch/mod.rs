//! What there is.

pub mod mount;
pub mod pods;

use std::sync::Arc;

use hyprstream_api::Model;
use hyprstream_contract::{CommitId, label};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service},
};
use kube::{ResourceExt, api::ObjectMeta};

use super::{
    build::{ASKED, CLAIM, CONTENT, GOOD, REPLACING, REVISION, UPGRADE, Workers},
    validate::Plan,
};
use crate::{
    cache::Caches,
    owner::is_owned_by,
    source::Serving,
    volume::{Revision, adapters_volume_name, volume_name},
};

/// The objects of a Model.
pub struct Existing {
    /// UID of the Model.
    pub uid: String,
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
        let mut claims = caches.claims.of::<Model>(&namespace, &name);
        claims.retain(|c| is_own(&c.metadata));
        claims.sort_by_key(|c| std::cmp::Reverse(c.metadata.creation_timestamp.clone()));
        Self {
            uid: uid.unwrap_or_default().to_owned(),
            deployment: caches
                .deployments
                .get(Some(&namespace), &name)
                .filter(|d| is_own(&d.metadata) && d.metadata.deletion_timestamp.is_none()),
            service: caches
                .services
                .get(Some(&namespace), &name)
                .filter(|s| is_own(&s.metadata)),
            claims,
            volumes: caches.volumes.of::<Model>(&namespace, &name),
            pods: caches.pods.of::<Model>(&namespace, &name),
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

    /// What the workers are made of, and those that were last good, as far as it is known.
    pub fn serving(&self) -> Vec<Serving> {
        let workers = [self.current(), self.noted_good()].into_iter().flatten();
        let mut serving = Vec::new();
        for content in workers.filter_map(|workers| workers.content) {
            let attributes = content.attributes;
            let one = Serving {
                url: attributes.source,
                secret: content.secret,
                commit: attributes.commit,
                include: attributes.include,
            };
            if !serving.contains(&one) {
                serving.push(one);
            }
        }
        serving
    }

    /// What the Model asked for, as the Deployment notes it.
    pub fn asked(&self) -> Option<&str> {
        self.note(ASKED)
    }

    /// The revision that another release of the operator was the cause of.
    pub fn upgrade(&self) -> Option<&str> {
        self.note(UPGRADE)
    }

    /// The revision whose workers take the place of others, for want of room.
    pub fn replacing(&self) -> Option<&str> {
        self.note(REPLACING)
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
        let names = [
            volume_name(namespace, claim),
            adapters_volume_name(namespace, claim, &self.uid),
        ];
        self.volumes
            .iter()
            .find(|v| names.contains(&v.name_any()))
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

    /// The plan, with the claim that its adapters can be mounted from.
    pub fn place(&self, plan: Plan) -> Plan {
        let adapters_claim = self.claim_for(&plan.namespace, &plan.adapters_claim);
        Plan {
            adapters_claim,
            ..plan
        }
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
