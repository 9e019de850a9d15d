use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::size;

/// Resources of a container, bounded so that the API server can compare them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingResources {
    /// What the pod may take at most. GPUs: {nvidia.com/gpu: "1"}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
    /// What a node must have free for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// Disk of the pod for checkpoints and prepared data, as 4Gi. Without it, what model and method
    /// need by estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = Rule::new(size::RULE).message("storage must be a number of bytes such as 512Mi or 4Gi"),
    )]
    pub storage: Option<String>,
}

impl TrainingResources {
    /// [`Self::storage`] in bytes; `None` if it is none or is no such size.
    #[must_use]
    pub fn storage_bytes(&self) -> Option<u64> {
        self.storage.as_deref().and_then(size::bytes)
    }

    /// As a container has them.
    #[must_use]
    pub fn requirements(&self) -> ResourceRequirements {
        let some = |map: &BTreeMap<String, Quantity>| (!map.is_empty()).then(|| map.clone());
        ResourceRequirements {
            limits: some(&self.limits),
            requests: some(&self.requests),
            ..ResourceRequirements::default()
        }
    }
}
