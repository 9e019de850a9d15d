//! What there is of a job.

use std::sync::Arc;

use hyprstream_api::TrainingJob;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod, PodCondition},
};
use kube::ResourceExt;

use crate::{cache::Caches, owner::is_owned_by};

/// The objects of a job.
pub struct Existing {
    /// Its Job, if it is ours.
    pub batch: Option<Arc<Job>>,
    /// Its pods, oldest first.
    pub pods: Vec<Arc<Pod>>,
    /// Its claims.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

impl Existing {
    /// Reads the caches.
    pub fn of(job: &TrainingJob, caches: &Caches) -> Self {
        let name = job.name_any();
        let namespace = job.namespace().unwrap_or_default();
        let uid = job.uid().unwrap_or_default();
        let batch = caches.jobs.get(Some(&namespace), &name);
        let mut pods = caches.pods.of::<TrainingJob>(&namespace, &name);
        pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, pod.name_any())
        });
        let mut claims = caches.claims.of::<TrainingJob>(&namespace, &name);
        claims.retain(|claim| is_owned_by(&claim.metadata, &uid));
        let batch = batch.filter(|batch| is_owned_by(&batch.metadata, &uid));
        // Those of a job of the same name that was deleted are not this one's.
        let batch_uid = batch.as_ref().and_then(|batch| batch.uid());
        pods.retain(|pod| {
            let own = batch_uid.as_ref();
            own.is_some_and(|batch| is_owned_by(&pod.metadata, batch))
        });
        Self {
            batch,
            pods,
            claims,
        }
    }

    /// The pod that runs or is about to.
    pub fn active(&self) -> Option<&Arc<Pod>> {
        self.unfinished()
            .find(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    /// The pod that should end, and has not.
    pub fn ending(&self) -> Option<&Arc<Pod>> {
        self.unfinished()
            .find(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    fn unfinished(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().rev().filter(|pod| !has_ended(pod))
    }
}

/// Whether all of a pod has ended, as its node or whoever gave it up says.
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Why the cluster has a pod go, if that is not its own doing.
pub fn disruption(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let mut all = conditions.iter();
    all.find(|c| c.type_ == "DisruptionTarget" && c.status == "True")
}
