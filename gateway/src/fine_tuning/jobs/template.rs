//! What whoever runs the cluster says of all jobs, which clients cannot.

use std::{collections::BTreeMap, str::FromStr};

use hyprstream_api::{
    Device, Dtype, Gate, TrainingCheckpoint, TrainingData, TrainingJobSpec, TrainingResources,
};
use k8s_openapi::api::core::v1::Toleration;
use serde::Deserialize;

/// Fields of the TrainingJobs that are made for clients, as in `spec` of a TrainingJob; those that
/// are not there are as there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JobTemplate {
    /// What to compute on.
    pub device: Device,
    /// Number format of the frozen weights.
    pub dtype: Dtype,
    /// Resources of the pod.
    pub resources: TrainingResources,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    pub tolerations: Vec<Toleration>,
    /// RuntimeClass of the pod.
    pub runtime_class_name: Option<String>,
    /// Seconds that a job may run in all.
    pub active_deadline_seconds: Option<i64>,
    /// Seconds after its end at which a job is deleted, and is known no more to clients.
    pub ttl_seconds_after_finished: Option<i32>,
    /// How records become samples.
    pub data: TrainingData,
    /// What is committed while a job learns.
    pub checkpoint: TrainingCheckpoint,
    /// What an adapter must show before it is served.
    pub gates: Vec<Gate>,
}

impl FromStr for JobTemplate {
    type Err = serde_json::Error;

    /// Reads it as JSON.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

impl JobTemplate {
    /// Sets its fields.
    pub(super) fn apply(&self, spec: &mut TrainingJobSpec) {
        let Self {
            device,
            dtype,
            resources,
            node_selector,
            tolerations,
            runtime_class_name,
            active_deadline_seconds,
            ttl_seconds_after_finished,
            data,
            checkpoint,
            gates,
        } = self.clone();
        spec.device = device;
        spec.dtype = dtype;
        spec.resources = resources;
        spec.node_selector = node_selector;
        spec.tolerations = tolerations;
        spec.runtime_class_name = runtime_class_name;
        spec.active_deadline_seconds = active_deadline_seconds;
        spec.ttl_seconds_after_finished = ttl_seconds_after_finished;
        spec.data = data;
        spec.checkpoint = checkpoint;
        spec.gates = gates;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_what_a_training_job_says_and_nothing_else() {
        let text = r#"{"device": "cuda", "resources": {"limits": {"nvidia.com/gpu": "1"}},
                       "data": {"maxLength": 4096}}"#;
        let template: JobTemplate = text.parse().unwrap();
        assert_eq!(template.device, Device::Cuda);
        assert_eq!(template.data.max_length, 4096);
        assert_eq!("{}".parse::<JobTemplate>().unwrap(), JobTemplate::default());
        for wrong in [r#"{"output": {}}"#, r#"{"devise": "cuda"}"#, ""] {
            assert!(wrong.parse::<JobTemplate>().is_err(), "{wrong}");
        }
    }
}
