use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::size;

/// Which adapters workers serve beside those of kind Adapter, and how much they may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelAdapters {
    /// Whether the adapters in the folder adapters of the model's own repository are served.
    #[serde(default = "yes")]
    pub from_repository: bool,
    /// Largest rank of an adapter. Without it, what workers take by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub max_rank: Option<i32>,
    /// Most adapters that are ready to compute with in a worker; others are read again from their
    /// files when a request names them. Without it, as many as memory holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_resident: Option<i32>,
    /// Memory of a worker for adapters that are ready to compute with, as 512Mi or 4Gi. Without
    /// it, what workers take by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = Rule::new(size::RULE).message("memory must be a number of bytes such as 512Mi or 4Gi"),
    )]
    pub memory: Option<String>,
}

impl Default for ModelAdapters {
    fn default() -> Self {
        Self {
            from_repository: yes(),
            max_rank: None,
            max_resident: None,
            memory: None,
        }
    }
}

impl ModelAdapters {
    /// [`Self::memory`] in bytes; `None` if it is none or is no such number.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory.as_deref().and_then(size::bytes)
    }
}

fn yes() -> bool {
    true
}
