//! What is told of jobs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Method, Setting};

/// Value of [`Job::object`].
pub const JOB: &str = "fine_tuning.job";

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// `ftjob-` and letters and digits.
    pub id: String,
    /// Always [`JOB`].
    pub object: String,
    /// When it was made, in seconds since 1970.
    pub created_at: i64,
    /// When it ended; `null` until then.
    pub finished_at: Option<i64>,
    /// Why it failed; `null` if it did not.
    pub error: Option<JobError>,
    /// What requests name as their `model` to be answered with the result; `null` until then.
    pub fine_tuned_model: Option<String>,
    /// Those of the method, in their old place.
    pub hyperparameters: TopHyperparameters,
    /// What it learns, and how.
    pub method: Method,
    /// The model that is adapted.
    pub model: String,
    /// Who it belongs to.
    pub organization_id: String,
    /// Always empty: what it measured is in events and checkpoints.
    pub result_files: Vec<String>,
    /// What random numbers follow from.
    pub seed: i64,
    /// How far it is.
    pub status: JobStatus,
    /// Tokens that were learnt from; `null` until it has ended.
    pub trained_tokens: Option<u64>,
    /// Id of the file that is learnt from.
    pub training_file: String,
    /// Id of the file that it is judged by.
    pub validation_file: Option<String>,
    /// Always empty.
    pub integrations: Vec<serde_json::Value>,
    /// The client's own.
    pub metadata: Option<BTreeMap<String, String>>,
    /// When it will have ended, in seconds since 1970, as far as that can be said.
    pub estimated_finish: Option<i64>,
    /// The suffix that the client asked for.
    pub user_provided_suffix: Option<String>,
}

/// Hyperparameters in their old place, without what only new methods have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TopHyperparameters {
    /// How often every sample is seen.
    pub n_epochs: Setting<i64>,
    /// Samples of one update.
    pub batch_size: Setting<i64>,
    /// What the server's own learning rate is multiplied by.
    pub learning_rate_multiplier: Setting<f64>,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// Machine-readable reason, such as `gate_failed`.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// The field of the request at fault, if it is one.
    pub param: Option<String>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Its inputs are looked up.
    ValidatingFiles,
    /// It waits for a place to run.
    Queued,
    /// It learns.
    Running,
    /// It is stopped until it is resumed.
    Paused,
    /// Its result is served.
    Succeeded,
    /// It is given up, or its result is not good enough to be served.
    Failed,
    /// The client has stopped it for good.
    Cancelled,
}

impl JobStatus {
    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `ftevent-` and letters and digits.
    pub id: String,
    /// Always `fine_tuning.job.event`.
    pub object: String,
    /// When, in seconds since 1970.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// A sentence.
    pub message: String,
    /// Always `message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Always empty.
    pub data: serde_json::Map<String, serde_json::Value>,
}

/// A state of the adapter that the registry keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// `ftckpt_` and letters and digits.
    pub id: String,
    /// Always `fine_tuning.job.checkpoint`.
    pub object: String,
    /// When it was told of, in seconds since 1970.
    pub created_at: i64,
    /// What requests name as their `model`, if it is served, else where it lies.
    pub fine_tuned_model_checkpoint: String,
    /// Id of the job.
    pub fine_tuning_job_id: String,
    /// What was measured then.
    pub metrics: CheckpointMetrics,
    /// After which update.
    pub step_number: i64,
}

/// Figures of a checkpoint; those that were not measured are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointMetrics {
    /// After which update.
    pub step: f64,
    /// Loss of what was learnt from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Part of its tokens that were foretold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_mean_token_accuracy: Option<f64>,
    /// Loss of what it is judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Part of its tokens that were foretold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_mean_token_accuracy: Option<f64>,
    /// Loss of all that it is judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    /// Part of its tokens that were foretold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_valid_mean_token_accuracy: Option<f64>,
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned + Debug>(documented: &Value) {
        let read: T = serde_json::from_value(documented.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), *documented);
    }

    #[test]
    fn a_job_has_the_members_of_openais_documentation() {
        check::<Job>(&json!({
            "object": "fine_tuning.job", "id": "ftjob-abc123", "model": "davinci-002",
            "created_at": 1_692_661_014, "finished_at": 1_692_661_190,
            "fine_tuned_model": "ft:davinci-002:my-org:custom_suffix:7q8mpxmy",
            "organization_id": "org-123", "result_files": ["file-abc123"], "status": "succeeded",
            "validation_file": null, "training_file": "file-abc123", "error": null,
            "hyperparameters": {"n_epochs": 4, "batch_size": 1, "learning_rate_multiplier": 1.0},
            "trained_tokens": 5768, "integrations": [], "seed": 0, "estimated_finish": 0,
            "metadata": {"key": "value"}, "user_provided_suffix": null,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {
                "n_epochs": 4, "batch_size": "auto", "learning_rate_multiplier": 1.5}}},
        }));
        let status: JobStatus = serde_json::from_value(json!("validating_files")).unwrap();
        assert!(!status.is_final());
    }

    #[test]
    fn events_and_checkpoints_have_the_members_of_openais_documentation() {
        check::<Event>(&json!({
            "object": "fine_tuning.job.event", "id": "ftevent-abc123", "created_at": 1_721_764_800,
            "level": "info", "message": "Fine tuning job successfully completed", "data": {},
            "type": "message",
        }));
        check::<Checkpoint>(&json!({
            "object": "fine_tuning.job.checkpoint", "id": "ftckpt_zc4Q7MP6XxulcVzj4MZdwsAB",
            "created_at": 1_721_764_867, "fine_tuning_job_id": "ftjob-abc123",
            "fine_tuned_model_checkpoint": "ft:gpt-4o-mini-2024-07-18:my-org::96olL566:ckpt-step-2000",
            "metrics": {"step": 2000.0, "full_valid_loss": 0.134,
                        "full_valid_mean_token_accuracy": 0.874},
            "step_number": 2000,
        }));
    }
}
