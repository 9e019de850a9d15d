use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hyprstream_api::{Checked, DecodeError};
use hyprstream_contract::label;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    events::{Event, Recorder},
    malformed,
};
use crate::{chain, kind::Kind, metrics::Metrics};

/// Writes the statuses of a kind, and knows what it wrote before a watch shows it.
pub struct Statuses<K: Kind> {
    client: Client,
    metrics: Metrics,
    recorder: Recorder,
    /// The status last written of an object, by UID, and the version of the object with it. It is
    /// not needed to converge.
    written: Mutex<HashMap<String, (u64, K::Status)>>,
}

/// Whose status was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is there, and its status says it.
    There,
    /// It was deleted, or deleted and made again: its successor has reconciliations of its own.
    Gone,
}

impl<K: Kind> Statuses<K> {
    /// Has written nothing yet.
    pub fn new(client: Client, metrics: Metrics, recorder: Recorder) -> Self {
        Self {
            client,
            metrics,
            recorder,
            written: Mutex::default(),
        }
    }

    /// The status last written, which the cache that `object` comes from may not show yet.
    pub fn newest(&self, object: &K) -> K::Status {
        let uid = object.uid().unwrap_or_default();
        let cached = version(object.meta());
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match written.get(&uid) {
            Some((version, status)) if cached.is_some_and(|c| c < *version) => status.clone(),
            _ => {
                written.remove(&uid);
                object.status().cloned().unwrap_or_default()
            }
        }
    }

    /// Writes the status if it says something new, and then events of what happened.
    ///
    /// # Errors
    /// The API server refused or failed, which is in the log. Events are then not written.
    pub async fn write(
        &self,
        object: &K,
        before: &K::Status,
        after: &K::Status,
        events: &[Event],
    ) -> Result<Told, kube::Error> {
        if before == after {
            return Ok(Told::There);
        }
        let status = serde_json::to_value(after).unwrap_or_default();
        let Some(version) = self.patch(object.meta(), label::MANAGER, &status).await? else {
            return Ok(Told::Gone);
        };
        if let Some(version) = version {
            self.written
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(object.uid().unwrap_or_default(), (version, after.clone()));
        }
        for event in events {
            tracing::info!(reason = event.reason, note = event.note, "event");
            self.metrics.writes.with_label_values(&["Event"]).inc();
            let regarding = object.object_ref(&());
            if let Err(error) = self.recorder.publish(regarding, event).await {
                tracing::warn!(error = chain(&error), "cannot write an event");
            }
        }
        Ok(Told::There)
    }

    /// Says in the conditions of an object why it cannot be read, unless they say so already. The
    /// rest of its status stays.
    ///
    /// # Errors
    /// The API server refused or failed, which is in the log.
    pub async fn tell_malformed(
        &self,
        object: &Checked<K>,
        error: &DecodeError,
    ) -> Result<Told, kube::Error> {
        let status = object.raw().map_or(&Value::Null, |raw| &raw["status"]);
        let generation = object.meta().generation;
        let Some(conditions) = malformed::conditions(status, error, generation, Timestamp::now())
        else {
            return Ok(Told::There);
        };
        let status = json!({"conditions": conditions});
        let version = self
            .patch(object.meta(), malformed::MANAGER, &status)
            .await?;
        Ok(version.map_or(Told::Gone, |_| Told::There))
    }

    /// Forgets objects that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|uid, _| keep(uid));
    }

    /// The version of the object with that status, if it has one; `None` if it is gone.
    async fn patch(
        &self,
        meta: &ObjectMeta,
        manager: &str,
        status: &Value,
    ) -> Result<Option<Option<u64>>, kube::Error> {
        let kind = K::kind(&());
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let api: Api<Checked<K>> = Api::namespaced(self.client.clone(), namespace);
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": kind,
            "metadata": {"name": name, "uid": meta.uid},
            "status": status,
        });
        self.metrics.writes.with_label_values(&[&*kind]).inc();
        let params = PatchParams::apply(manager).force();
        match api.patch_status(name, &params, &Patch::Apply(&body)).await {
            Ok(written) => Ok(Some(version(written.meta()))),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot write the status");
                Err(error)
            }
        }
    }
}

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}
