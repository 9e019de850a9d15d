use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is true of a TrainingJob.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingJobStatus {
    /// The metadata.generation that the rest of the status was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Running, Suspended, Complete or Failed, for people; programs read conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What is going on, or why not, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it was pinned to when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<TrainingInputs>,
    /// Updates that are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// Updates in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<i64>,
    /// Passes through the data that are done, as a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Percent of all steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub progress_percentage: Option<i32>,
    /// Seconds until the last step, at the present pace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_remaining_seconds: Option<i64>,
    /// The latest figures: loss, accuracy, evalLoss, evalAccuracy, learningRate, gradientNorm,
    /// tokensPerSecond, tokens, skippedSteps, and of the data records, samples, badRecords,
    /// truncatedSamples, cutAwaySamples, endlessAnswers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub metrics: Vec<TrainingMetric>,
    /// Up to 32 points of the loss, evenly spread over what is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<CurvePoint>,
    /// The last checkpoint that the registry has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<TrainingCheckpointStatus>,
    /// What the gates measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateVerdict>,
    /// Where the adapter is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<TrainingOutputStatus>,
    /// When its pod ran first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Failures of its own so far.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub failures: i32,
    /// Running, Suspended, Complete, Failed, GatePassed, and SourceResolved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What a job was pinned to when it began; it never changes afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingInputs {
    /// Commit of the Model's repository.
    pub model_commit: String,
    /// Commit of the dataset, where it lies in git.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_commit: Option<String>,
    /// SHA-256 of the records as they were read, once the trainer has read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_digest: Option<String>,
    /// The repository that gets the commits: NAMESPACE/NAME.
    pub repository: String,
    /// The adapter that was served by the name of the output when the job began, where a gate with
    /// the baseline LastKnownGood is measured from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_good: Option<TrainingLastKnownGood>,
}

/// An adapter that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingLastKnownGood {
    /// Its repository: NAMESPACE/NAME, or the URL of one that is not on the registry.
    pub repository: String,
    /// Its commit.
    pub commit: String,
    /// Where it lies there, as in the source of an Adapter.
    pub path: String,
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingMetric {
    /// Of what.
    pub name: String,
    /// A decimal number.
    pub value: String,
}

/// A point of the curve of losses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurvePoint {
    /// After which update.
    pub step: i64,
    /// Mean loss of the updates since the point before.
    pub loss: String,
    /// Loss of what is held back, if it was measured since the point before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<String>,
}

/// A checkpoint that the registry has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingCheckpointStatus {
    /// After which update.
    pub step: i64,
    /// Its commit.
    pub commit: String,
    /// When it was heard of first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// What a gate measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateVerdict {
    /// Of what, as in the spec, or ServingParity.
    pub metric: String,
    /// A decimal number; none if it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it is compared with, with a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Whether it is within its bounds.
    pub passed: bool,
    /// For people: value, bounds, or why nothing was measured.
    pub message: String,
}

/// Where the adapter is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingOutputStatus {
    /// The repository: NAMESPACE/NAME.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// The commit that has it.
    pub commit: String,
    /// Its file of tensors; its configuration lies beside it.
    pub path: String,
    /// SHA-256 of what it computes, as the status of an Adapter has it.
    pub digest: String,
    /// SHA-256 of the file of tensors.
    pub sha256: String,
    /// The commit of the branch that took it up, with onSuccess Merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<String>,
    /// The Adapter that serves it, with onSuccess CreateAdapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

impl TrainingJobStatus {
    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == kind)
    }

    /// Whether the condition of that type is True.
    pub fn is_true(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }

    /// Whether it is over, one way or the other.
    pub fn is_finished(&self) -> bool {
        self.is_true(crate::condition::COMPLETE) || self.is_true(crate::condition::FAILED)
    }
}
