use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is true of an Adapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterStatus {
    /// The metadata.generation that the rest of the status was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The commit that its files are taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// SHA-256 of what it computes, as workers say: the header x-hyprstream-adapters has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// SHA-256 of the file of tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Its largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub rank: Option<i32>,
    /// Bytes of the file of tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Name by which clients call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_name: Option<String>,
    /// On how many workers it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<AdapterReplicas>,
    /// The last value of the annotation hyprstream.io/reconcile-at that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// Ready, SourceResolved, Accepted, Loaded, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Workers of the Model, as each of them says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterReplicas {
    /// Ready workers.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub desired: i32,
    /// Those of them that answer with this commit of the adapter.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub loaded: i32,
    /// Those of them that refuse it or cannot have it.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub failed: i32,
}

impl AdapterStatus {
    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == kind)
    }

    /// Whether the condition of that type is True.
    pub fn is_true(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }
}
