//! `trainingjobs.hyprstream.io`.

mod data;
mod gate;
mod method;
mod output;
mod resources;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use data::{ClaimSource, ConfigMapSource, Dataset, LossOn, TrainingData, TrainingEval};
pub use gate::{Baseline, Gate, GateMetric};
pub use method::{AdapterType, LearningRateSchedule, Objective, TrainingMethod};
pub use output::{OnSuccess, TrainingCheckpoint, TrainingOutput};
pub use resources::TrainingResources;
pub use status::{
    CurvePoint, GateVerdict, TrainingCheckpointStatus, TrainingInputs, TrainingJobStatus,
    TrainingLastKnownGood, TrainingMetric, TrainingOutputStatus,
};

use crate::{Device, Dtype, SourceRef};

/// What is trained on what, and what becomes of it. Nothing of it can be changed but suspend and
/// ttlSecondsAfterFinished: another job is another TrainingJob.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.nodeSelector) == has(oldSelf.nodeSelector) && (!has(self.nodeSelector) || self.nodeSelector == oldSelf.nodeSelector)").message("nodeSelector cannot be changed: make another TrainingJob"),
    validation = Rule::new("has(self.tolerations) == has(oldSelf.tolerations) && (!has(self.tolerations) || self.tolerations == oldSelf.tolerations)").message("tolerations cannot be changed: make another TrainingJob"),
    validation = Rule::new("has(self.runtimeClassName) == has(oldSelf.runtimeClassName) && (!has(self.runtimeClassName) || self.runtimeClassName == oldSelf.runtimeClassName)").message("runtimeClassName cannot be changed: make another TrainingJob"),
    validation = Rule::new("has(self.serviceAccountName) == has(oldSelf.serviceAccountName) && (!has(self.serviceAccountName) || self.serviceAccountName == oldSelf.serviceAccountName)").message("serviceAccountName cannot be changed: make another TrainingJob"),
    validation = Rule::new("has(self.activeDeadlineSeconds) == has(oldSelf.activeDeadlineSeconds) && (!has(self.activeDeadlineSeconds) || self.activeDeadlineSeconds == oldSelf.activeDeadlineSeconds)").message("activeDeadlineSeconds cannot be changed: make another TrainingJob"),
    validation = Rule::new("self.output.onSuccess != 'Merge' || has(self.serviceAccountName)").message("output.onSuccess Merge needs serviceAccountName: RBAC says into which branches that account may merge"),
)]
#[kube(
    group = "hyprstream.io",
    version = "v1alpha1",
    kind = "TrainingJob",
    plural = "trainingjobs",
    shortname = "tj",
    category = "hyprstream",
    namespaced,
    status = "TrainingJobStatus",
    derive = "PartialEq",
    doc = "Trains a LoRA adapter for a Model on a dataset, and commits it to a git repository.",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.modelRef.name"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state",
        description = "Pending, Running, Suspended, Complete or Failed"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progressPercentage",
        description = "Percent of all steps"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.step"),
    printcolumn(name = "Loss", type_ = "string",
        json_path = ".status.metrics[?(@.name==\"loss\")].value"),
    printcolumn(name = "Gates", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"GatePassed\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Remaining", type_ = "integer",
        json_path = ".status.estimatedRemainingSeconds", priority = 1,
        description = "Seconds until its last step, as far as that can be said"),
    printcolumn(name = "Output", type_ = "string", json_path = ".status.output.commit",
        priority = 1, description = "The commit with the adapter"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 52").message("the name of a TrainingJob may have at most 52 characters, since objects made for it carry it in their names"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name of a TrainingJob must be a DNS label, since its branch and its pods have it too"),
)]
pub struct TrainingJobSpec {
    /// The Model whose commit is trained on, in the same namespace.
    #[x_kube(validation = Rule::new("self == oldSelf").message("modelRef cannot be changed: make another TrainingJob"))]
    pub model_ref: TrainingModelRef,
    /// What it learns from.
    #[x_kube(validation = Rule::new("self == oldSelf").message("dataset cannot be changed: make another TrainingJob"))]
    pub dataset: Dataset,
    /// How what the dataset holds becomes samples.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("data cannot be changed: make another TrainingJob"))]
    pub data: TrainingData,
    /// The adapter's form, and how it learns.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("method cannot be changed: make another TrainingJob"))]
    pub method: TrainingMethod,
    /// What it is judged by while it learns; nothing without it.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("eval cannot be changed: make another TrainingJob"))]
    pub eval: TrainingEval,
    /// What is committed while it learns.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("checkpoint cannot be changed: make another TrainingJob"))]
    pub checkpoint: TrainingCheckpoint,
    /// What the adapter must show before it is published, beside that a worker computes with it
    /// what the trainer did, which is always asked for.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("gates cannot be changed: make another TrainingJob"))]
    pub gates: Vec<Gate>,
    /// What becomes of it.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("output cannot be changed: make another TrainingJob"))]
    pub output: TrainingOutput,
    /// What to compute on. It chooses the image; GPUs are asked for in resources.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("device cannot be changed: make another TrainingJob"))]
    pub device: Device,
    /// Number format of the frozen weights. auto takes the one of the model's config.json, or the
    /// best that the device computes in.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("dtype cannot be changed: make another TrainingJob"))]
    pub dtype: Dtype,
    /// Resources of the pod, as of any container.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("resources cannot be changed: make another TrainingJob"))]
    pub resources: TrainingResources,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// RuntimeClass of the pod, as nvidia.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// ServiceAccount as which the pod pushes. Without it one is made that may push the branch
    /// train/NAME and the tags NAME/* of the output's repository, and nothing else. output.onSuccess
    /// Merge needs one: RBAC says which branches it may merge into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Ends the pod after a checkpoint, and frees what it holds, until it is false again. A job with
    /// a queue of Kueue gives up its place there meanwhile.
    #[serde(default)]
    pub suspend: bool,
    /// How often the pod may fail by itself before the job does. What the cluster does to it
    /// (evictions, preemptions, lost nodes) and kills do not count, but of kills for want of memory so
    /// many without a new checkpoint.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 100))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("backoffLimit cannot be changed: make another TrainingJob"))]
    pub backoff_limit: i32,
    /// Seconds that it may run in all; without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
    /// Seconds after its end at which the TrainingJob is deleted; without it it stays. What it
    /// published stays in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// A Model of the namespace, and which commit of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingModelRef {
    /// Name of the Model.
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
    /// Which commit of the Model's repository. Without it, what the Model's own ref names. Looked
    /// up once, when the job begins.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<SourceRef>,
}

fn two() -> i32 {
    2
}

impl TrainingJobSpec {
    /// One of a Model and a dataset, with every default.
    pub fn new(model_ref: TrainingModelRef, dataset: Dataset) -> Self {
        Self {
            model_ref,
            dataset,
            data: TrainingData::default(),
            method: TrainingMethod::default(),
            eval: TrainingEval::default(),
            checkpoint: TrainingCheckpoint::default(),
            gates: Vec::new(),
            output: TrainingOutput::default(),
            device: Device::default(),
            dtype: Dtype::default(),
            resources: TrainingResources::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            runtime_class_name: None,
            service_account_name: None,
            suspend: false,
            backoff_limit: two(),
            active_deadline_seconds: None,
            ttl_seconds_after_finished: None,
        }
    }
}

impl TrainingJob {
    /// Name of the adapter that it makes.
    pub fn adapter_name(&self) -> &str {
        let own = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.output.name.as_deref().unwrap_or(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_a_model_and_a_dataset_gets_every_default() {
        let job: TrainingJob = serde_json::from_value(serde_json::json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "sql"},
            "spec": {
                "modelRef": {"name": "m"},
                "dataset": {"url": "https://example.org/d", "path": "train.jsonl"},
            },
        }))
        .unwrap();
        assert_eq!(job.adapter_name(), "sql");
        let own = TrainingJobSpec::new(job.spec.model_ref.clone(), job.spec.dataset.clone());
        assert_eq!(job.spec, own);
        assert_eq!(job.spec.method, TrainingMethod::default());
        assert_eq!(job.spec.output.on_success, OnSuccess::CreateAdapter);
        assert_eq!(job.spec.backoff_limit, 2);
        assert_eq!(job.spec.checkpoint.every_steps, 100);
        assert!(!job.spec.suspend);
    }
}
