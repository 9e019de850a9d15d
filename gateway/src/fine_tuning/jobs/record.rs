//! What a client asked for, kept on the TrainingJob.

use std::collections::BTreeMap;

use hyprstream_api::TrainingJob;
use hyprstream_openai::fine_tuning::{CreateJob, Method};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// Annotation of the TrainingJob that holds it, as JSON.
const REQUEST: &str = "hyprstream.io/fine-tuning-request";

/// A client's request for a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobRecord {
    /// The Model as the client named it.
    pub(super) model: String,
    pub(super) training_file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) validation_file: Option<String>,
    pub(super) method: Method,
    /// The seed that was asked for; without it one was drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) suffix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<BTreeMap<String, String>>,
}

impl From<CreateJob> for JobRecord {
    fn from(request: CreateJob) -> Self {
        let CreateJob {
            model,
            training_file,
            validation_file,
            method,
            seed,
            suffix,
            metadata,
        } = request;
        Self {
            model,
            training_file,
            validation_file,
            method,
            seed,
            suffix,
            metadata,
        }
    }
}

impl JobRecord {
    /// The record of a TrainingJob, or why it has none that can be read.
    pub(super) fn of_object(job: &TrainingJob) -> Result<Self, String> {
        let text = job.annotations().get(REQUEST);
        let text = text.ok_or_else(|| format!("it has no annotation {REQUEST}"))?;
        serde_json::from_str(text).map_err(|error| format!("annotation {REQUEST}: {error}"))
    }

    /// The annotation that holds it.
    pub(super) fn annotation(&self) -> (String, String) {
        let text = serde_json::to_string(self).expect("texts and finite numbers are JSON");
        (REQUEST.to_owned(), text)
    }
}
