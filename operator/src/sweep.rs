//! Takes away what nothing owns.
//!
//! A PersistentVolume cannot be owned by a Model, which lives in a namespace, and a finalizer on
//! Models would make an uninstall hang. So volumes whose Model or claim is gone are looked for, at
//! the start, when a volume changes, and now and then.
//!
//! Pods that the kubelet cannot end, because the node plugin was removed before them and nothing
//! can unmount their volume, are deleted by force once their time is long over.

use std::{sync::Arc, time::Duration};

use hyprstream_api::{Checked, Model, condition};
use hyprstream_contract::{label, volume::DRIVER_NAME};
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, Pod},
        storage::v1::CSINode,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::reflector::Store,
};
use tokio::sync::Notify;

use crate::{
    apply::Applier,
    cache::{Cache, Caches, Synced},
    chain,
    metrics::Metrics,
    model::{Memory, fetch::mount::Mounts},
    reporting::Statuses,
    source::Sources,
};

/// How often everything is looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long after the end of its grace period a pod is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// What is swept.
pub struct Sweep {
    /// The API server.
    pub client: Client,
    /// Models and the other objects, of every scope.
    pub scopes: Vec<Scope>,
    /// Volumes.
    pub volumes: Cache<PersistentVolume>,
    /// Asks for a sweep.
    pub wake: Arc<Notify>,
    /// Forgets Models.
    pub sources: Arc<Sources>,
    /// Forgets Models and deletes.
    pub applier: Arc<Applier>,
    /// Forgets Models.
    pub memory: Arc<Memory>,
    /// Forgets Models.
    pub statuses: Arc<Statuses<Model>>,
    /// Forgets Models.
    pub mounts: Arc<Mounts>,
    /// Counts Models.
    pub metrics: Metrics,
}

/// A namespace, or all of them.
#[derive(Clone)]
pub struct Scope {
    /// The namespace; `None` for all.
    pub namespace: Option<String>,
    /// Its Models.
    pub models: Models,
    /// Its other objects.
    pub caches: Caches,
}

/// The Models of a scope.
#[derive(Clone)]
pub struct Models {
    /// All of them.
    pub store: Store<Checked<Model>>,
    /// Whether it is filled.
    pub synced: Synced,
}

impl Sweep {
    /// Sweeps again and again. Never ends by itself.
    pub async fn run(self) {
        for scope in &self.scopes {
            scope.models.synced.wait().await;
            scope.caches.ready().await;
        }
        loop {
            self.forget();
            for volume in self.volumes.all() {
                if let Err(error) = self.volume(&volume).await {
                    tracing::warn!(error = chain(&*error), "cannot sweep a volume");
                }
            }
            for scope in &self.scopes {
                for pod in scope.caches.pods.all() {
                    if let Err(error) = self.pod(&pod).await {
                        let error = chain(&error);
                        tracing::warn!(error, pod = pod.name_any(), "cannot delete a stuck pod");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.wake.notified() => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    fn forget(&self) {
        let models: Vec<_> = self
            .scopes
            .iter()
            .flat_map(|s| s.models.store.state())
            .collect();
        let uids: std::collections::HashSet<String> =
            models.iter().filter_map(|m| m.uid()).collect();
        self.sources.retain(|uid| uids.contains(uid));
        self.applier.retain(|uid| uids.contains(uid));
        self.memory.retain(|uid| uids.contains(uid));
        self.statuses.retain(|uid| uids.contains(uid));
        self.mounts.retain(|uid| uids.contains(uid));
        let ready = models
            .iter()
            .filter(|m| {
                m.get()
                    .ok()
                    .and_then(|m| m.status.as_ref())
                    .is_some_and(|s| s.is_true(condition::READY))
            })
            .count();
        let gauge = |label: &str, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.models.with_label_values(&[label]).set(count);
        };
        gauge("true", ready);
        gauge("false", models.len() - ready);
    }

    async fn volume(
        &self,
        volume: &PersistentVolume,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let labels = volume.labels();
        let (Some(namespace), Some(model), Some(uid)) = (
            labels.get(label::MODEL_NAMESPACE),
            labels.get(label::MODEL),
            labels.get(label::MODEL_UID),
        ) else {
            return Ok(());
        };
        if volume.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let is_in = |s: &&Scope| s.namespace.as_ref().is_none_or(|n| n == namespace);
        let Some(scope) = self.scopes.iter().find(is_in) else {
            return Ok(());
        };
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        let key = kube::runtime::reflector::ObjectRef::new(model).within(namespace);
        let is_known = scope
            .models
            .store
            .get(&key)
            .is_some_and(|m| m.uid().as_ref() == Some(uid));
        if !matches!(phase, Some("Released" | "Failed")) {
            if is_known {
                return Ok(());
            }
            // The cache may lag behind.
            let models: Api<Checked<Model>> = Api::namespaced(self.client.clone(), namespace);
            if models
                .get_opt(model)
                .await?
                .is_some_and(|m| m.uid().as_ref() == Some(uid))
            {
                return Ok(());
            }
        }
        tracing::info!(
            volume = volume.name_any(),
            "delete a volume that nothing uses"
        );
        self.applier
            .delete(&Api::all(self.client.clone()), volume)
            .await?;
        Ok(())
    }

    async fn pod(&self, pod: &Pod) -> Result<(), kube::Error> {
        // The time by which it should have ended, its grace period included.
        let Some(due) = pod.metadata.deletion_timestamp.as_ref() else {
            return Ok(());
        };
        let overdue = Duration::try_from(Timestamp::now().duration_since(due.0));
        if overdue.unwrap_or_default() < STUCK {
            return Ok(());
        }
        let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) else {
            return Ok(());
        };
        let nodes: Api<CSINode> = Api::all(self.client.clone());
        let has_driver = nodes
            .get_opt(node)
            .await?
            .is_none_or(|n| n.spec.drivers.iter().any(|d| d.name == DRIVER_NAME));
        if has_driver {
            return Ok(());
        }
        tracing::warn!(
            pod = pod.name_any(),
            node,
            "delete a pod by force: its node has no node plugin any more that could unmount it"
        );
        self.metrics.writes.with_label_values(&["Pod"]).inc();
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: pod.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match pods.delete(&pod.name_any(), &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
