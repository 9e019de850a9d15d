//! Takes away what nothing owns.
//!
//! A PersistentVolume cannot be owned by what lives in a namespace, and a finalizer on owners would
//! make an uninstall hang. So volumes whose owner or claim is gone are looked for, at the start, when
//! a volume changes, and now and then. With the volume of a Model's adapters goes its list; a list
//! that outlived the volume, since the registry was down or the volume was removed by hand, is found
//! by asking the registry which Models it keeps lists of.
//!
//! What volumes open on the registry is compared with the volumes that there are ([`crate::grants`]).
//!
//! Pods that the kubelet cannot end, because the node plugin was removed before them and nothing
//! can unmount their volume, are deleted by force once their time is long over.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::volume::DRIVER_NAME;
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::CSINode,
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::{
    adapter::apply::Rosters,
    apply::Applier,
    cache::{Cache, Caches},
    chain,
    controller::Objects,
    grants::{self, Grants, Wanted},
    lost_nodes,
    metrics::Metrics,
    registry::Registry,
    source::Sources,
    training::DATASET,
    volume::shows_adapters,
};

/// How often everything is looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long the sweep waits for the registry: the volume of a Model's adapters for their list to go
/// before it.
const LIST: Duration = Duration::from_secs(2);
/// How often the registry is asked for the lists that it keeps.
const LISTS: Duration = Duration::from_mins(5);
/// How often the registry is asked for the grants that it keeps, if no volume is gone or new to it.
const GRANTS: Duration = Duration::from_mins(1);
/// How long after the end of its grace period a pod is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// What is swept.
pub struct Sweep {
    /// The API server.
    pub client: Client,
    /// Objects that others are made for, by kind.
    pub kinds: Vec<Arc<dyn Objects>>,
    /// The other objects, of every scope.
    pub scopes: Vec<Caches>,
    /// Volumes.
    pub volumes: Cache<PersistentVolume>,
    /// Asks for a sweep.
    pub wake: Arc<Notify>,
    /// Keep the lists of adapters, of every scope.
    pub rosters: Vec<Arc<Rosters>>,
    /// Says which lists there are.
    pub registry: Registry,
    /// Forgets objects.
    pub sources: Arc<Sources>,
    /// Forgets objects and deletes.
    pub applier: Arc<Applier>,
    /// Keeps the words of volumes.
    pub grants: Arc<Grants>,
    /// Counts.
    pub metrics: Metrics,
}

/// When grants are looked at next, and the volumes that there were.
struct Granted {
    due: Instant,
    handles: BTreeSet<String>,
}

impl grants::Cluster for Sweep {
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.all()
    }

    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let mut scopes = self.scopes.iter();
        scopes.find_map(|scope| scope.claims.get(Some(namespace), name))
    }
}

impl Sweep {
    /// Sweeps again and again. Never ends by itself.
    pub async fn run(self) {
        for kind in &self.kinds {
            kind.ready().await;
        }
        for scope in &self.scopes {
            scope.ready().await;
        }
        let mut lists_due = Instant::now();
        let mut granted = Granted {
            due: Instant::now(),
            handles: BTreeSet::new(),
        };
        loop {
            self.forget();
            self.grants(&mut granted).await;
            if Instant::now() >= lists_due {
                let pause = if self.lists().await { LISTS } else { INTERVAL };
                lists_due = Instant::now() + pause;
            }
            for volume in self.volumes.all() {
                if let Err(error) = self.volume(&volume).await {
                    tracing::warn!(error = chain(&*error), "cannot sweep a volume");
                }
            }
            for scope in &self.scopes {
                for pod in scope.pods.all() {
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

    /// Compares what the registry lets volumes open with the volumes that there are, now and then,
    /// when one is gone, and when it has yet to be told of one.
    async fn grants(&self, granted: &mut Granted) {
        let volumes = self.volumes.all();
        let without = volumes.iter().filter(|v| Wanted::of(v).is_none()).count();
        let without = i64::try_from(without).unwrap_or(i64::MAX);
        self.metrics.volumes_without_grant.set(without);
        let handles: BTreeSet<String> = volumes.iter().filter_map(|v| grants::handle(v)).collect();
        let is_gone = granted
            .handles
            .iter()
            .any(|handle| !handles.contains(handle));
        granted.handles = handles;
        if is_gone || self.grants.is_behind() || Instant::now() >= granted.due {
            let pause = if self.grants.sweep(self).await {
                GRANTS
            } else {
                INTERVAL
            };
            granted.due = Instant::now() + pause;
        }
    }

    fn forget(&self) {
        let uids: HashSet<String> = self.kinds.iter().flat_map(|kind| kind.uids()).collect();
        // The datasets of jobs have sources beside those of their Models.
        self.sources
            .retain(|uid| uids.contains(uid.strip_suffix(DATASET).unwrap_or(uid)));
        self.applier.retain(|uid| uids.contains(uid));
        for kind in &self.kinds {
            kind.take_stock();
        }
    }

    /// Has the lists go whose Model is gone. Returns whether the registry said which there are.
    async fn lists(&self) -> bool {
        let listed = match timeout(LIST, self.registry.listed_models()).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => {
                tracing::debug!(
                    error = chain(&error),
                    "the lists of adapters are swept later"
                );
                return false;
            }
            Err(_) => return false,
        };
        for model in listed.models {
            let Some(rosters) = self.rosters_of(model.namespace()) else {
                continue;
            };
            // Those of Models that are there are looked after.
            if !rosters.view().model(&model).is_there() {
                tracing::info!(%model, "remove a list of adapters whose Model is gone");
                rosters.doubt(&model);
            }
        }
        true
    }

    fn rosters_of(&self, namespace: &str) -> Option<&Arc<Rosters>> {
        let covers = |r: &&Arc<Rosters>| r.view().models.covers(namespace);
        self.rosters.iter().find(covers)
    }

    async fn volume(
        &self,
        volume: &PersistentVolume,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let made_for = |kind: &Arc<dyn Objects>| {
            let labels = kind.labels();
            let uid = volume.labels().get(labels.uid)?.clone();
            Some((kind.clone(), labels.subject(volume)?, uid))
        };
        let Some((kind, owner, uid)) = self.kinds.iter().find_map(made_for) else {
            return Ok(());
        };
        if volume.metadata.deletion_timestamp.is_some() || !kind.covers(&owner.namespace) {
            return Ok(());
        }
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if !matches!(phase, Some("Released" | "Failed")) && kind.exists(&owner, &uid).await? {
            return Ok(());
        }
        if shows_adapters(volume) {
            // The last trace of a Model that went while nobody looked: its list goes first, if the
            // registry is there. If not, its desk goes on trying, and no deletion waits for that.
            let model = format!("{}/{}", owner.namespace, owner.name).parse()?;
            if let Some(rosters) = self.rosters_of(&owner.namespace) {
                match timeout(LIST, rosters.settle(&model)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(error = chain(&error), %model, "its list goes later");
                    }
                    Err(_) => tracing::warn!(%model, "the registry is slow: its list goes later"),
                }
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
        lost_nodes::delete_by_force(&self.client, pod).await
    }
}
