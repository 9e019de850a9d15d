//! What the operator and a training pod agree on.
//!
//! The operator mounts a ConfigMap at [`CONFIG_DIR`]: [`JOB_FILE`], the job as `docs/training.md`
//! describes it, and [`POD_FILE`], a [`TrainingPod`]: what becomes of the adapter. The pod runs
//! `hyprstream-worker train --job CONFIG_DIR/JOB_FILE --pod CONFIG_DIR/POD_FILE`. It answers
//! [`PROGRESS_PATH`] with a [`Progress`] while it runs, behind the key of [`key_name`], and leaves
//! a [`LastWords`] as its termination message.
//!
//! # Life of a branch
//! The branch [`branch`] belongs to one job, by its UID in the trailers of each commit. It begins as
//! a child of the Model's commit. A checkpoint is a commit that has the trainer's newest checkpoint
//! folder in [`checkpoint_dir`]; the last commit has the adapter in `adapters/`, and that folder no
//! more. A pod that finds commits of its own job goes on from the last; one that finds another's
//! refuses.

use serde::{Deserialize, Serialize};

use crate::CommitId;

/// Where the ConfigMap is mounted.
pub const CONFIG_DIR: &str = "/etc/hyprstream/training";
/// Its file with the job, as JSON.
pub const JOB_FILE: &str = "job.json";
/// Its file with the [`TrainingPod`], as JSON.
pub const POD_FILE: &str = "pod.json";
/// Where the volume is mounted that shows the Model's commit and is written to; its folder
/// [`OUTPUT_DIR`] is the job's output.
pub const WORKSPACE_DIR: &str = "/workspace";
/// Output of the job, below [`WORKSPACE_DIR`]: scratch space; the branch is the truth.
pub const OUTPUT_DIR: &str = "/workspace/.training";
/// Where the dataset is mounted, to be read.
pub const DATASET_DIR: &str = "/dataset";
/// Where the projected token for the registry is mounted; it is read anew for every call.
pub const TOKEN_FILE: &str = "/var/run/secrets/hyprstream/registry/token";
/// The authorities by which the registry is trusted, where it speaks TLS; in a ConfigMap of their
/// own, which changes while the pod runs.
pub const CA_FILE: &str = "/etc/hyprstream/trust/ca.crt";
/// Where the Secret with the pod's own key is mounted; its file is [`crate::worker_key::FILE`].
pub const KEY_DIR: &str = "/etc/hyprstream/key";
/// Name of the pod's container.
pub const CONTAINER: &str = "trainer";
/// Port of the pod's HTTP server; its name is [`PORT_NAME`].
pub const PORT: u16 = 8000;
/// Name of [`PORT`].
pub const PORT_NAME: &str = "http";
/// Path of a [`Progress`].
pub const PROGRESS_PATH: &str = "/v1/training";
/// Path of metrics in the text format of Prometheus; without a key.
pub const METRICS_PATH: &str = "/metrics";
/// Most points of a [`Progress::curve`].
pub const MAX_CURVE: usize = 32;
/// Label with the name of the TrainingJob on all that is made for one.
pub const LABEL: &str = "hyprstream.io/training-job";

/// How the pod's process ends, beside 0.
pub mod exit {
    /// Something failed on the way; another start may succeed. Counts against `backoffLimit`.
    pub const FAILED: u8 = 1;
    /// The job, the model or the data are wrong: another start fails in the same way.
    pub const REFUSED: u8 = 2;
    /// What the cluster owes it was missing for too long (the registry, a disk): sysexits' EX_IOERR.
    /// Does not count.
    pub const UNAVAILABLE: u8 = 74;
    /// A signal ended it, with a checkpoint that is pushed: sysexits' EX_TEMPFAIL. Does not count.
    pub const SUSPENDED: u8 = 75;
    /// The node's runtime could not start the container (containerd). Does not count.
    pub const NOT_STARTED: u8 = 128;
    /// Somebody killed it (SIGKILL): the kernel for its memory, a node that gave it up, a person.
    /// Does not count; the operator gives up a job that is killed again and again.
    pub const KILLED: u8 = 137;
}

/// The branch of a job.
#[must_use]
pub fn branch(name: &str) -> String {
    format!("train/{name}")
}

/// The tag of a checkpoint of a job.
#[must_use]
pub fn tag(name: &str, step: u64) -> String {
    format!("{name}/step-{step}")
}

/// The folder of a job's newest checkpoint in the commits of its branch.
#[must_use]
pub fn checkpoint_dir(name: &str) -> String {
    format!("training/{name}")
}

/// The name by which the key of a job's pod is derived
/// ([`WorkerKeys::of`](crate::WorkerKeys::of)): no Model can have it.
#[must_use]
pub fn key_name(name: &str) -> String {
    format!("training/{name}")
}

/// Trailers of the commits of a job's branch.
pub mod trailer {
    /// `NAMESPACE/NAME` of the TrainingJob.
    pub const JOB: &str = "Training-Job";
    /// UID of the TrainingJob.
    pub const UID: &str = "Training-Job-Uid";
    /// URL and commit of the model: `URL@COMMIT`.
    pub const MODEL: &str = "Model-Commit";
    /// URL and commit of the dataset, or what else it is.
    pub const DATASET: &str = "Dataset";
    /// SHA-256 of the records as they were read.
    pub const DATASET_DIGEST: &str = "Dataset-Digest";
    /// SHA-256 of the job file's canonical JSON.
    pub const PARAMETERS: &str = "Parameters";
    /// What computed it: whose arithmetic, on which kind of device, and the type of the frozen
    /// weights, as `libtorch cuda bfloat16`.
    pub const COMPUTED_BY: &str = "Computed-By";
    /// Updates that are done.
    pub const STEP: &str = "Step";
    /// The figures of that step: `loss=0.9 evalLoss=1.1`.
    pub const METRICS: &str = "Metrics";
    /// The adapter's digest, of the last commit.
    pub const ADAPTER_DIGEST: &str = "Adapter-Digest";
    /// What a gate measured, one for each: as [`super::Verdict::message`].
    pub const GATE: &str = "Gate";
    /// JSON of the [`super::LastWords`] without `output`, of the last commit: what a pod says that
    /// finds all done.
    pub const LAST_WORDS: &str = "Last-Words";
    /// Name and version of the program.
    pub const PROGRAM: &str = "Program";
}

/// What becomes of what a pod trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingPod {
    /// Namespace of the TrainingJob.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Where the registry answers: `http://HOST[:PORT]` or `https://HOST[:PORT]`.
    pub registry: String,
    /// File with the authorities (PEM) by which a registry with an https URL is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_ca_file: Option<String>,
    /// The repository that gets the commits: `NAMESPACE/NAME`. It exists, and has the model's commit.
    pub repository: String,
    /// The model.
    pub model: Origin,
    /// The dataset.
    pub dataset: Origin,
    /// Name of the adapter: `adapters/NN_NAME.safetensors`.
    pub adapter: String,
    /// Checkpoints whose large files the registry keeps.
    pub keep: u32,
    /// Whether those get a tag.
    pub tag: bool,
    /// What the adapter must show, beside serving parity.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// The branch that takes the adapter up when the gates are passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_into: Option<String>,
    /// What was served by the adapter's name when the job began, if [`Baseline::LastKnownGood`] is
    /// to be measured from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_good: Option<LastKnownGood>,
}

/// An adapter that is served: two files of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastKnownGood {
    /// Its repository: `NAMESPACE/NAME`, or the URL of one that is not on the registry.
    pub repository: String,
    /// The commit.
    pub commit: CommitId,
    /// Path of its tensors.
    pub weights: String,
    /// Path of its configuration.
    pub config: String,
}

/// Where something comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Origin {
    /// The URL of a repository without credentials, `configmap://NAMESPACE/NAME` or
    /// `pvc://NAMESPACE/NAME`.
    pub url: String,
    /// The commit, where it is a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitId>,
}

/// A bound on one figure of the finished adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    /// What is measured.
    pub metric: Metric,
    /// Most that it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Least that it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// What the bounds are measured from.
    #[serde(default)]
    pub baseline: Baseline,
    /// An absolute path of data in one of the job's forms, or for [`Metric::Perplexity`] of a text;
    /// without it, what the job's eval holds back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Most records that are looked at; those at the beginning.
    pub max_records: u32,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// A JSON schema, for [`Metric::JsonSchema`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<serde_json::Value>,
}

/// What a gate measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// Mean loss of the tokens that count.
    EvalLoss,
    /// e to the mean loss of all tokens of a text.
    Perplexity,
    /// Part of greedy answers that are what the record says.
    ExactMatch,
    /// Part of greedy answers that end by themselves.
    StopRate,
    /// Part of greedy answers that are JSON and have the schema.
    JsonSchema,
    /// The engine's own loss with the adapter as it is served, less the trainer's; always asked for,
    /// and never in [`TrainingPod::gates`].
    ServingParity,
}

/// What a bound is measured from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Baseline {
    /// From nothing.
    #[default]
    Value,
    /// From the model without the adapter.
    Base,
    /// From the adapter that is served by the same name ([`TrainingPod::last_known_good`]), else that
    /// of the name in the model's commit, or the model where there is none.
    LastKnownGood,
}

/// What a gate found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// What was measured.
    pub metric: Metric,
    /// The figure; none if it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// That of the baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// Whether it is within its bounds.
    pub passed: bool,
    /// For people, in one line: `EvalLoss 1.1032 is 0.2031 below the base's; at most 0`.
    pub message: String,
}

/// How far a pod is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Updates that are done.
    pub step: u64,
    /// Updates in all; 0 while unknown.
    pub steps: u64,
    /// Passes through the data that are done.
    pub epoch: f64,
    /// Seconds until the last update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
    /// The latest figures by name, as the status of a TrainingJob has them: loss, accuracy, evalLoss,
    /// evalAccuracy, learningRate, gradientNorm, tokensPerSecond, tokens, skippedSteps, records,
    /// samples, badRecords, truncatedSamples, cutAwaySamples, endlessAnswers. Only finite
    /// numbers.
    #[serde(default)]
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// At most [`MAX_CURVE`] points, evenly spread over what is done.
    #[serde(default)]
    pub curve: Vec<Point>,
    /// SHA-256 of the records, once they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_digest: Option<String>,
    /// The last checkpoint that the registry has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// What people should know: why a push waits, which records are bad, what was halved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// What a pod is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Reading model, dataset and the newest checkpoint.
    #[default]
    Preparing,
    /// Training.
    Training,
    /// Measuring what the gates ask for.
    Judging,
    /// Committing and pushing the adapter.
    Publishing,
}

/// A point of the curve of losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// After which update.
    pub step: u64,
    /// Mean loss of the updates since the point before.
    pub loss: f64,
    /// Loss of what is held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
}

/// A checkpoint that the registry has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// After which update.
    pub step: u64,
    /// Its commit.
    pub commit: CommitId,
}

/// How a pod ended, in its container's termination message, at most 4096 bytes of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastWords {
    /// CamelCase, for a condition: `Complete`, `Suspended`, or of failures [`reason`]'s.
    pub reason: String,
    /// A sentence for the owner of the job.
    pub message: String,
    /// Updates that are done.
    pub step: u64,
    /// Updates in all; 0 while unknown.
    #[serde(default)]
    pub steps: u64,
    /// The latest figures, as in [`Progress::metrics`].
    #[serde(default)]
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// SHA-256 of the records, once they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_digest: Option<String>,
    /// The last checkpoint that the registry has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// What the gates found; messages are cut where they would not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Verdict>,
    /// Where the adapter is, when it is complete, whatever the gates say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
}

/// Where an adapter is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The commit of the branch that has it.
    pub commit: CommitId,
    /// Its file of tensors.
    pub path: String,
    /// SHA-256 of what it computes.
    pub digest: String,
    /// SHA-256 of the file of tensors.
    pub sha256: String,
    /// The commit of [`TrainingPod::merge_into`] that took it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<CommitId>,
}

/// Reasons of [`LastWords`].
pub mod reason {
    /// All is done; gates may have failed.
    pub const COMPLETE: &str = "Complete";
    /// Stopped by a signal; the last checkpoint is pushed.
    pub const SUSPENDED: &str = "Suspended";
    /// The job says what cannot be.
    pub const INVALID_JOB: &str = "InvalidJob";
    /// The model cannot be trained.
    pub const INVALID_MODEL: &str = "InvalidModel";
    /// The dataset cannot be learnt from: empty, too many bad records, no token that counts.
    pub const INVALID_DATASET: &str = "InvalidDataset";
    /// The dataset is not the one that the job began with.
    pub const DATASET_CHANGED: &str = "DatasetChanged";
    /// The model, or the adapter to go on from, is not the one that the job began with.
    pub const MODEL_CHANGED: &str = "ModelChanged";
    /// Steps in a row were not finite.
    pub const DIVERGED: &str = "Diverged";
    /// Memory does not suffice for one sample.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// The disk of the pod is full.
    pub const DISK_FULL: &str = "DiskFull";
    /// The branch has another job's commits.
    pub const BRANCH_TAKEN: &str = "BranchTaken";
    /// The registry refuses a push or a merge.
    pub const PUSH_REFUSED: &str = "PushRefused";
    /// The adapter cannot be merged: both sides changed the same.
    pub const MERGE_CONFLICT: &str = "MergeConflict";
    /// The registry does not answer.
    pub const REGISTRY_UNREACHABLE: &str = "RegistryUnreachable";
    /// Anything else.
    pub const INTERNAL_ERROR: &str = "InternalError";
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    fn round_trip<T>(value: &serde_json::Value)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let read: T = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(&serde_json::to_value(&read).unwrap(), value);
    }

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn what_is_said_survives_the_round_trip() {
        round_trip::<TrainingPod>(&json!({
            "namespace": "ns", "name": "sql", "uid": "u", "registry": "https://registry",
            "registryCaFile": "/etc/hyprstream/trust/ca.crt",
            "repository": "ns/m", "adapter": "sql", "keep": 3, "tag": true,
            "model": {"url": "https://example.org/m", "commit": COMMIT},
            "dataset": {"url": "configmap://ns/d"},
            "gates": [{"metric": "EvalLoss", "max": 0.0, "baseline": "Base", "maxRecords": 10, "maxTokens": 5}],
            "mergeInto": "main",
        }));
        round_trip::<Progress>(&json!({
            "phase": "Training", "step": 2, "steps": 4, "epoch": 0.5, "remainingSeconds": 9,
            "metrics": {"loss": 1.5}, "curve": [{"step": 1, "loss": 2.0, "evalLoss": 1.0}],
            "checkpoint": {"step": 2, "commit": COMMIT}, "datasetDigest": "d",
        }));
        round_trip::<LastWords>(&json!({
            "reason": "Complete", "message": "done", "step": 4, "steps": 4, "metrics": {},
            "gates": [{"metric": "ServingParity", "value": 0.0, "passed": true, "message": "m"}],
            "output": {"commit": COMMIT, "path": "adapters/00_sql.safetensors", "digest": "d", "sha256": "s"},
        }));
    }
}
