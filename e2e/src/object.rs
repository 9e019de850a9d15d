//! Models, Adapters and TrainingJobs, as kubectl shows them.

use std::{ops::Deref, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Cluster, wait_until};

/// An object of one of our kinds on the cluster.
#[derive(Clone, Debug)]
pub struct Object {
    cluster: Cluster,
    /// `model`, `adapter` or `trainingjob`.
    kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    pub(crate) fn new(cluster: &Cluster, kind: &'static str, namespace: &str, name: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// `NAMESPACE/NAME`; the gateway accepts it for a Model.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The object.
    pub fn get(&self) -> Result<Value> {
        self.cluster
            .get(&["-n", &self.namespace, self.kind, &self.name])
    }

    /// Commit in its status; empty when there is none.
    pub fn commit(&self) -> Result<String> {
        Ok(self.get()?["status"]["commit"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// One of its conditions: status, reason and message.
    pub fn condition(&self, kind: &str) -> Result<Option<(String, String, String)>> {
        let object = self.get()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(object["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == kind)
            .map(|c| (text(&c["status"]), text(&c["reason"]), text(&c["message"]))))
    }

    /// Waits until a condition has a status, and a reason if one is given; its message.
    pub fn wait_condition(
        &self,
        kind: &str,
        status: &str,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<String> {
        let mut last = None;
        let found = wait_until(limit, || {
            last = self.condition(kind)?;
            Ok(match &last {
                Some((s, r, m)) if s == status && reason.is_none_or(|want| want == r) => {
                    Some(m.clone())
                }
                _ => None,
            })
        });
        found.with_context(|| {
            format!(
                "{} {} wants {kind}={status} {reason:?}; it is {last:?}",
                self.kind,
                self.id()
            )
        })
    }

    /// Waits until it is ready on a commit.
    pub fn wait_ready_on(&self, commit: &str, limit: Duration) -> Result<()> {
        let mut last = String::new();
        wait_until(limit, || {
            last = self.commit()?;
            let ready = self
                .condition("Ready")?
                .is_some_and(|(status, ..)| status == "True");
            Ok((last == commit && ready).then_some(()))
        })
        .with_context(|| format!("{} must serve {commit}; it serves {last:?}", self.id()))
    }

    /// Merges a patch into the object.
    pub fn patch(&self, patch: &str) -> Result<()> {
        self.cluster
            .kubectl(&[
                "-n",
                &self.namespace,
                "patch",
                self.kind,
                &self.name,
                "--type=merge",
                "-p",
                patch,
            ])
            .map(drop)
    }

    /// Deletes it, and waits until it is gone.
    pub fn delete(&self) -> Result<()> {
        let all = ["-n", &self.namespace, "delete", self.kind, &self.name];
        self.cluster.kubectl(&all).map(drop)
    }
}

/// A Model on the cluster.
#[derive(Clone, Debug)]
pub struct Model(pub(crate) Object);

impl Deref for Model {
    type Target = Object;

    fn deref(&self) -> &Object {
        &self.0
    }
}

impl Model {
    /// Names of its pods that are not being deleted.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let selector = format!("hyprstream.io/model={}", self.name);
        let list = self
            .cluster
            .get(&["-n", &self.namespace, "pods", "-l", &selector])?;
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .cloned()
            .collect())
    }
}
