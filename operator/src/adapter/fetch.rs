//! What there is: the Adapters of a Model, and the Model.

use std::sync::Arc;

use hyprstream_api::{Adapter, Checked, Model};
use hyprstream_contract::{adapters::ModelName, worker};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt, api::ObjectMeta};
use serde_json::Value;

use super::{
    build::{Candidate, Claim, entry},
    validate::{Base, validate},
    workers::WorkerPod,
};
use crate::{cache::Caches, controller::Stock, policy::Policy, source::Sources};

/// What is known of Models and Adapters of a scope.
#[derive(Clone)]
pub struct View {
    /// The Models.
    pub models: Stock<Model>,
    /// The Adapters.
    pub adapters: Stock<Adapter>,
    /// The workers.
    pub caches: Caches,
    /// What is known of repositories.
    pub sources: Arc<Sources>,
    /// What the installation forbids.
    pub policy: Arc<Policy>,
}

/// What is known of a Model.
#[derive(Clone)]
pub struct Found(Option<Arc<Checked<Model>>>);

impl Found {
    /// The same, to validate with.
    pub fn base(&self) -> Base<'_> {
        match self.0.as_deref().map(Checked::get) {
            None => Base::Missing,
            Some(Err(_)) => Base::Unreadable,
            Some(Ok(model)) => Base::Model(model),
        }
    }

    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Counts the edits of its spec.
    pub fn generation(&self) -> Option<i64> {
        self.0.as_ref()?.meta().generation
    }

    /// How many workers it wants; one if it cannot be read.
    pub fn replicas(&self) -> i32 {
        match self.base() {
            Base::Model(model) => model.spec.replicas,
            Base::Missing | Base::Unreadable => 1,
        }
    }
}

impl View {
    /// Ends once all is known.
    pub async fn ready(&self) {
        futures::join!(
            self.models.ready(),
            self.adapters.ready(),
            self.caches.ready()
        );
    }

    /// The Model, if it is there and stays.
    pub fn model(&self, name: &ModelName) -> Found {
        let model = self.models.get(name.namespace(), name.model());
        Found(model.filter(|m| m.meta().deletion_timestamp.is_none()))
    }

    /// The Adapters of a Model that stay.
    pub fn candidates(&self, name: &ModelName) -> Vec<Candidate> {
        let model = self.model(name);
        let all = self.adapters.all();
        let own = all.iter().filter(|adapter| {
            adapter.meta().deletion_timestamp.is_none() && model_of(adapter).as_ref() == Some(name)
        });
        own.map(|adapter| self.candidate(adapter, &model)).collect()
    }

    fn candidate(&self, adapter: &Checked<Adapter>, model: &Found) -> Candidate {
        let uid = adapter.uid().unwrap_or_default();
        let claim = match adapter.get() {
            Err(_) => Claim::Unreadable,
            Ok(adapter) => match validate(adapter, model.base(), &self.policy) {
                Ok(plan) => match self.sources.known(&uid, &plan.source).mirrored {
                    Some(mirrored) => Claim::Entry(entry(&plan, &mirrored)),
                    None => Claim::Stays(Box::new(plan)),
                },
                Err(_) if matches!(model.base(), Base::Unreadable) => Claim::Unreadable,
                Err(_) => Claim::Nothing,
            },
        };
        Candidate {
            created: created(adapter.meta()),
            name: adapter.name_any(),
            served_name: served_name(adapter),
            uid,
            claim,
        }
    }

    /// The workers of a Model that answer requests, by name.
    pub fn ready_workers(&self, name: &ModelName) -> Vec<WorkerPod> {
        let pods = self.caches.pods.of::<Model>(name.namespace(), name.model());
        let mut ready: Vec<WorkerPod> = pods
            .iter()
            .filter(|pod| is_ready(pod))
            .map(|pod| worker_of(pod))
            .collect();
        ready.sort_by(|a, b| a.name.cmp(&b.name));
        ready
    }
}

fn created(meta: &ObjectMeta) -> Option<k8s_openapi::jiff::Timestamp> {
    meta.creation_timestamp.as_ref().map(|time| time.0)
}

/// The Model that an Adapter names, as far as it can be read.
pub fn model_of(adapter: &Checked<Adapter>) -> Option<ModelName> {
    let namespace = adapter.namespace()?;
    let model = match adapter.get() {
        Ok(adapter) => adapter.spec.model_ref.name.as_str(),
        Err(_) => raw(adapter)?["modelRef"]["name"].as_str()?,
    };
    format!("{namespace}/{model}").parse().ok()
}

fn served_name(adapter: &Checked<Adapter>) -> String {
    match adapter.get() {
        Ok(adapter) => adapter.served_name().to_owned(),
        Err(_) => raw(adapter)
            .and_then(|spec| spec["servedName"].as_str())
            .map_or_else(|| adapter.name_any(), str::to_owned),
    }
}

fn raw(adapter: &Checked<Adapter>) -> Option<&Value> {
    adapter.raw().map(|raw| &raw["spec"])
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

fn worker_of(pod: &Pod) -> WorkerPod {
    let status = pod.status.as_ref();
    let restarts = status
        .and_then(|s| s.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .map(|c| c.restart_count)
        .sum();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    WorkerPod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        restarts,
        address: status.and_then(|s| s.pod_ip.clone()),
        tls: ports.any(|port| port.name.as_deref() == Some(worker::TLS_PORT_NAME)),
    }
}
