//! What the operator sees of the cluster: its own objects, cut down to what it looks at.
//!
//! Every watch is narrowed to our label by the API server. Objects that our types cannot hold are as
//! good as absent; [`Intake`] tells of them. What is kept in memory of an object is
//! its metadata, its status where we read it, and a digest of its spec ([`fingerprint`]), by which
//! a change made by somebody else is noticed.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::{Stream, StreamExt, stream::BoxStream};
use hyprstream_api::Checked;
use hyprstream_contract::label;
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentSpec},
    batch::v1::{Job, JobSpec},
    core::v1::{
        ConfigMap, Container, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
        PodSpec, Secret, Service, ServiceAccount,
    },
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::{
    chain,
    kind::{Kind, OwnerLabels, Subject, Trigger},
    reporting::intake::Intake,
};

/// Annotation in memory only: digest of the spec, labels and owners of an object.
const FINGERPRINT: &str = "memory.hyprstream.io/fingerprint";

/// What a stream of changes yields: objects to look at.
pub type Touched = BoxStream<'static, Subject>;

/// An object of a kind that the operator makes and watches.
pub trait Watched:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug + Send + Sync + 'static
{
    /// Drops what nobody looks at.
    fn trim(&mut self);
}

impl Watched for Deployment {
    fn trim(&mut self) {
        // What workers are made of is what a rollout that fails goes back to.
        let spec = std::mem::take(&mut self.spec);
        self.spec = DeploymentSpec {
            replicas: spec.replicas,
            template: spec.template,
            ..DeploymentSpec::default()
        };
    }
}

impl Watched for Service {
    fn trim(&mut self) {
        self.spec = None;
        self.status = None;
    }
}

impl Watched for PodDisruptionBudget {
    fn trim(&mut self) {
        self.spec = None;
        self.status = None;
    }
}

/// Written, and never watched: the operator sees no Secret that it need not.
impl Watched for Secret {
    fn trim(&mut self) {
        self.data = None;
        self.string_data = None;
    }
}

impl Watched for Job {
    fn trim(&mut self) {
        if let Some(spec) = self.spec.take() {
            self.spec = Some(JobSpec {
                suspend: spec.suspend,
                ..JobSpec::default()
            });
        }
    }
}

/// Written, and never watched: they are small, and there are many of others.
impl Watched for ConfigMap {
    fn trim(&mut self) {
        self.data = None;
        self.binary_data = None;
    }
}

/// Written, and never watched.
impl Watched for ServiceAccount {
    fn trim(&mut self) {}
}

/// Written, and never watched.
impl Watched for Role {
    fn trim(&mut self) {
        self.rules = None;
    }
}

/// Written, and never watched.
impl Watched for RoleBinding {
    fn trim(&mut self) {
        self.subjects = None;
    }
}

impl Watched for PersistentVolumeClaim {
    fn trim(&mut self) {
        self.spec = None;
    }
}

/// What it opens on the registry is compared with what that keeps.
impl Watched for PersistentVolume {
    fn trim(&mut self) {
        if let Some(spec) = self.spec.take() {
            self.spec = Some(PersistentVolumeSpec {
                csi: spec.csi,
                claim_ref: spec.claim_ref,
                ..PersistentVolumeSpec::default()
            });
        }
    }
}

impl Watched for Pod {
    fn trim(&mut self) {
        if let Some(spec) = self.spec.take() {
            // What they speak.
            let ports = |container: Container| Container {
                name: container.name,
                ports: container.ports,
                ..Container::default()
            };
            self.spec = Some(PodSpec {
                containers: spec.containers.into_iter().map(ports).collect(),
                node_name: spec.node_name,
                termination_grace_period_seconds: spec.termination_grace_period_seconds,
                volumes: spec.volumes.map(|mut volumes| {
                    volumes.retain(|v| v.persistent_volume_claim.is_some());
                    volumes
                }),
                ..PodSpec::default()
            });
        }
        if let Some(status) = &mut self.status {
            *status = k8s_openapi::api::core::v1::PodStatus {
                conditions: status.conditions.take(),
                container_statuses: status.container_statuses.take(),
                phase: status.phase.take(),
                pod_ip: status.pod_ip.take(),
                reason: status.reason.take(),
                message: status.message.take(),
                ..Default::default()
            };
        }
    }
}

/// Digest of what makes an object: spec or data, labels and owners. Equal for an object as an answer to a
/// request and as it comes out of a [`Cache`].
pub fn fingerprint<K: Watched>(object: &K) -> String {
    if let Some(known) = object.annotations().get(FINGERPRINT) {
        return known.clone();
    }
    let value = serde_json::to_value(object).unwrap_or_default();
    let parts = [
        &value["spec"],
        &value["data"],
        &value["metadata"]["labels"],
        &value["metadata"]["ownerReferences"],
    ];
    digest(&parts)
}

/// The first 16 hexadecimal digits of the SHA-256 of a value's JSON.
pub fn digest(value: &impl Serialize) -> String {
    // Values that come from JSON have a JSON form.
    let text = serde_json::to_vec(value).unwrap_or_default();
    hex::encode(&Sha256::digest(text)[..8])
}

/// The objects of one kind.
pub struct Cache<K: Resource<DynamicType = ()> + Clone + 'static>
where
    K::DynamicType: Hash + Eq,
{
    store: Store<Checked<K>>,
    synced: Synced,
}

/// Whether a watch has its first list. Many may wait for it; of those that wait for the store of
/// kube-runtime itself only the last one would be woken.
#[derive(Clone)]
pub struct Synced(watch::Receiver<bool>);

impl Synced {
    /// Notes in a watch's stream, behind its `reflect`, when the first list is in the store.
    pub fn note<K, S>(stream: S) -> (Self, impl Stream<Item = watcher::Result<watcher::Event<K>>>)
    where
        S: Stream<Item = watcher::Result<watcher::Event<K>>>,
    {
        let (sender, receiver) = watch::channel(false);
        let stream = stream.inspect(move |event| {
            if matches!(event, Ok(watcher::Event::InitDone)) {
                sender.send_replace(true);
            }
        });
        (Self(receiver), stream)
    }

    /// Ends once the first list is there.
    pub async fn wait(&self) {
        // The sender lives as long as the watch, and nothing is done without that.
        let _ = self.0.clone().wait_for(|synced| *synced).await;
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            synced: self.synced.clone(),
        }
    }
}

impl<K: Watched> Cache<K> {
    /// A cache and the stream that feeds it, which must be polled. It yields those of `owners` whose
    /// objects changed.
    pub fn start(
        api: Api<Checked<K>>,
        intake: &Arc<Intake>,
        owners: &'static [OwnerLabels],
    ) -> (Self, Touched) {
        let writer = Writer::<Checked<K>>::default();
        let store = writer.as_reader();
        let selector = format!("{}={}", label::MANAGED_BY, label::MANAGER);
        let config = watcher::Config::default().labels(&selector);
        let stream = intake.clone().watch(watcher(api, config));
        let stream = stream
            .modify(|object| {
                object.managed_fields_mut().clear();
                let Ok(object) = object.get_mut() else {
                    return;
                };
                let fingerprint = fingerprint(object);
                object
                    .annotations_mut()
                    .insert(FINGERPRINT.to_owned(), fingerprint);
                object.trim();
            })
            .reflect(writer);
        let (synced, stream) = Synced::note(stream);
        let stream =
            stream
                .default_backoff()
                .touched_objects()
                .filter_map(move |result| async move {
                    match result {
                        Ok(object) => owners.iter().find_map(|o| o.subject(&object)),
                        Err(error) => {
                            warn_of::<K>(&error);
                            None
                        }
                    }
                });
        (Self { store, synced }, stream.boxed())
    }

    /// The object of that name.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        let mut key = ObjectRef::new(name);
        if let Some(namespace) = namespace {
            key = key.within(namespace);
        }
        shared(&self.store.get(&key)?)
    }

    /// All objects that were made for one of the kind `O`.
    pub fn of<O: Kind>(&self, namespace: &str, name: &str) -> Vec<Arc<K>> {
        let mut objects = self.store.state();
        objects.retain(|object| O::LABELS.is_of(&**object, namespace, name));
        objects.iter().filter_map(shared).collect()
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state().iter().filter_map(shared).collect()
    }

    /// Ends once the first list is there.
    pub async fn ready(&self) {
        self.synced.wait().await;
    }
}

fn shared<K: Clone>(object: &Arc<Checked<K>>) -> Option<Arc<K>> {
    object.get().ok().cloned().map(Arc::new)
}

/// The caches of one scope: all namespaces, or one.
#[derive(Clone)]
pub struct Caches {
    /// Deployments of workers.
    pub deployments: Cache<Deployment>,
    /// Services of workers.
    pub services: Cache<Service>,
    /// How many workers may be taken away at once.
    pub budgets: Cache<PodDisruptionBudget>,
    /// Claims, one per Model and commit.
    pub claims: Cache<PersistentVolumeClaim>,
    /// Worker pods, and those of training.
    pub pods: Cache<Pod>,
    /// Jobs of training.
    pub jobs: Cache<Job>,
    /// Volumes of all scopes.
    pub volumes: Cache<PersistentVolume>,
}

impl Caches {
    /// Starts the caches of a namespace, or of all, beside that of volumes.
    pub fn start(
        client: &Client,
        namespace: Option<&str>,
        volumes: Cache<PersistentVolume>,
        intake: &Arc<Intake>,
        owners: &'static [OwnerLabels],
    ) -> (Self, Touched) {
        let (deployments, of_deployments) = Cache::start(scoped(client, namespace), intake, owners);
        let (services, of_services) = Cache::start(scoped(client, namespace), intake, owners);
        let (budgets, of_budgets) = Cache::start(scoped(client, namespace), intake, owners);
        let (claims, of_claims) = Cache::start(scoped(client, namespace), intake, owners);
        let (pods, of_pods) = Cache::start(scoped(client, namespace), intake, owners);
        let (jobs, of_jobs) = Cache::start(scoped(client, namespace), intake, owners);
        let touched = futures::stream::select_all([
            of_deployments,
            of_services,
            of_budgets,
            of_claims,
            of_pods,
            of_jobs,
        ])
        .boxed();
        (
            Self {
                deployments,
                services,
                budgets,
                claims,
                pods,
                jobs,
                volumes,
            },
            touched,
        )
    }

    /// Ends once all of them have their first list.
    pub async fn ready(&self) {
        futures::join!(
            self.deployments.ready(),
            self.services.ready(),
            self.budgets.ready(),
            self.claims.ready(),
            self.pods.ready(),
            self.jobs.ready(),
            self.volumes.ready(),
        );
    }
}

/// An Api of a namespace, or of all.
pub fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Says that a watch of a kind failed; it is tried again.
pub fn warn_of<K: Resource<DynamicType = ()>>(error: &watcher::Error) {
    tracing::warn!(
        kind = %K::kind(&()),
        error = chain(error),
        "watch failed, trying again"
    );
}

/// Polls a stream of what was touched into a channel until either ends.
pub async fn forward(mut touched: impl Stream<Item = Subject> + Unpin, trigger: Trigger) {
    while let Some(subject) = touched.next().await {
        if trigger.send(subject).await.is_err() {
            return;
        }
    }
}
