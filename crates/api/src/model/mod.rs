//! `models.hyprstream.io`.

mod adapters;
mod engine;
mod rollout;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use adapters::ModelAdapters;
pub use engine::{Device, Dtype, Engine, Quantization};
pub use rollout::{NoRoom, Rollout};
pub use status::{Download, FailedCommit, ModelStatus};

use crate::Source;

/// What to serve and how.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "hyprstream.io",
    version = "v1alpha1",
    kind = "Model",
    plural = "models",
    shortname = "mdl",
    category = "hyprstream",
    namespaced,
    status = "ModelStatus",
    derive = "PartialEq",
    doc = "A language model: a git repository at a branch, tag or commit, served over the OpenAI API.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ref", type_ = "string", json_path = ".spec.source.ref.*",
        description = "The branch, tag or commit asked for; empty for the default branch"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.commit",
        description = "The commit that serves"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas",
        description = "Workers that answer requests"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.source.url", priority = 1),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 52").message("the name of a Model may have at most 52 characters, since objects made for it carry it in their names"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name of a Model must be a DNS label that begins with a letter, since its Service has the same name"),
)]
pub struct ModelSpec {
    /// Where the model comes from.
    pub source: Source,
    /// What is kept of earlier commits.
    #[serde(default)]
    pub storage: Storage,
    /// How a new commit or spec replaces the workers of the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// How many workers; 0 keeps everything but the pods.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: i32,
    /// Options of the inference engine.
    #[serde(default)]
    pub engine: Engine,
    /// Which adapters are served, and how much they may take.
    #[serde(default)]
    pub adapters: ModelAdapters,
    /// Resources of a worker, as of any container. GPUs: limits: {nvidia.com/gpu: 1}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Labels that the nodes of the workers must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the workers tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// RuntimeClass of the workers, as nvidia.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Stops the controller for this Model: what serves goes on serving, and neither commits nor
    /// changes of this spec, replicas included, are acted on until it is false again.
    #[serde(default)]
    pub suspend: bool,
}

/// What is kept of earlier commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// How many commits keep their volume, the one that serves included, so that going back needs
    /// no download to the nodes.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub keep_revisions: i32,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            keep_revisions: three(),
        }
    }
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn a_model_of_one_line_gets_every_default() {
        let spec: ModelSpec =
            serde_json::from_value(serde_json::json!({"source": {"url": "https://example.org/m"}}))
                .unwrap();
        assert_eq!(spec.replicas, 1);
        assert_eq!(spec.source.interval, "10m");
        assert_eq!(spec.storage.keep_revisions, 3);
        assert_eq!(spec.rollout.progress_deadline_seconds, 1800);
        assert!(!spec.suspend);
        assert_eq!(spec.adapters, ModelAdapters::default());
        assert!(spec.adapters.from_repository);
    }

    #[test]
    fn the_schema_carries_the_defaults_for_the_api_server() {
        let crd = serde_json::to_value(Model::crd()).unwrap();
        let version = &crd["spec"]["versions"][0];
        let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        assert_eq!(spec["replicas"]["default"], 1);
        assert_eq!(spec["source"]["properties"]["interval"]["default"], "10m");
        assert_eq!(spec["rollout"]["default"]["maxSurge"], 1);
        assert_eq!(spec["rollout"]["properties"]["maxSurge"]["nullable"], false);
        assert_eq!(
            version["subresources"]["scale"]["labelSelectorPath"],
            ".status.selector"
        );
    }
}
