use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is true of a Model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// The metadata.generation that the rest of the status was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The commit that serves. During a rollout, the one that is being replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The commit that the ref names on the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_commit: Option<String>,
    /// The last commit whose workers all became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_good: Option<String>,
    /// The commit that was given up, until the ref moves, the spec changes or the annotation
    /// hyprstream.io/reconcile-at gets another value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedCommit>,
    /// How far the registry has the latest commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Download>,
    /// Worker pods that exist, also surplus ones during a rollout.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub replicas: i32,
    /// Workers that answer requests.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub ready_replicas: i32,
    /// Workers of the commit and spec being rolled out.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub updated_replicas: i32,
    /// Selects the worker pods; for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where the workers answer the OpenAI API inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The last value of the annotation hyprstream.io/reconcile-at that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// Ready, SourceResolved, VolumeReady, WorkersReady, Progressing, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A commit that was tried and given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedCommit {
    /// The commit.
    pub commit: String,
    /// Digest of what it was tried with: the parts of the spec and the image that make a worker.
    /// With another digest it is tried again.
    pub attempt: String,
    /// CamelCase word, as in a condition.
    pub reason: String,
    /// What was wrong.
    pub message: String,
}

/// Bytes of large files of the latest commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Download {
    /// Bytes that lie on the registry, verified.
    pub bytes_done: i64,
    /// Bytes in all; 0 while unknown.
    pub bytes_total: i64,
}

impl ModelStatus {
    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == kind)
    }

    /// Whether the condition of that type is True.
    pub fn is_true(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }
}
