//! Pause, resume and cancel.

use axum::{Json, extract::Path};
use hyprstream_api::TrainingJob;
use hyprstream_contract::label;
use hyprstream_openai::fine_tuning::{Job, JobStatus};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{super::FineTuningError, api, find, show, view};
use crate::fine_tuning::client::Client;

/// How often a change is tried that others are faster than.
const ATTEMPTS: usize = 8;

/// A change of a job.
#[derive(Clone, Copy)]
enum Change {
    Cancel,
    Pause,
    Resume,
}

pub(in super::super) async fn cancel(
    client: Client,
    Path(id): Path<String>,
) -> Result<Json<Job>, FineTuningError> {
    change(&client, &id, Change::Cancel).await
}

pub(in super::super) async fn pause(
    client: Client,
    Path(id): Path<String>,
) -> Result<Json<Job>, FineTuningError> {
    change(&client, &id, Change::Pause).await
}

pub(in super::super) async fn resume(
    client: Client,
    Path(id): Path<String>,
) -> Result<Json<Job>, FineTuningError> {
    change(&client, &id, Change::Resume).await
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    /// Whether a job is already as it would be then.
    fn is_done(self, status: JobStatus) -> bool {
        match self {
            Self::Cancel => status == JobStatus::Cancelled,
            Self::Pause => status == JobStatus::Paused,
            Self::Resume => !status.is_final() && status != JobStatus::Paused,
        }
    }

    /// What changes of an object of this version.
    fn patch(self, version: Option<&str>) -> Value {
        let mut patch = json!({"metadata": {"resourceVersion": version}});
        patch["spec"]["suspend"] = json!(!matches!(self, Self::Resume));
        if matches!(self, Self::Cancel) {
            let now = Timestamp::now();
            let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
            patch["metadata"]["annotations"][label::CANCELLED_AT] = json!(now.to_string());
        }
        patch
    }
}

/// Changes a job as it was when it was looked at, and never another state of it: what was cancelled
/// meanwhile is not resumed.
async fn change(client: &Client, id: &str, change: Change) -> Result<Json<Job>, FineTuningError> {
    let api: Api<TrainingJob> = api(client);
    for _ in 0..ATTEMPTS {
        let mut job = find(client, id).await?;
        let status = view::status(&job.object);
        if change.is_done(status) {
            return Ok(Json(show(client, &job)));
        }
        if status.is_final() {
            return Err(FineTuningError::WrongState {
                id: id.to_owned(),
                verb: change.verb(),
                status: view::word(status),
            });
        }
        let patch = change.patch(job.object.metadata.resource_version.as_deref());
        match api
            .patch(id, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(changed) => {
                job.object = changed;
                return Ok(Json(show(client, &job)));
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(FineTuningError::Busy { id: id.to_owned() })
}
