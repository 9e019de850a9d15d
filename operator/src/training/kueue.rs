//! Kueue, which starts the Jobs that have a queue when there is room for them.
//!
//! # What it does
//! Its webhook suspends a Job with the label [`QUEUE`] as it is made (or any, where it is told to
//! manage Jobs without one), and it lets the Job go on when its Workload is admitted, with what that
//! says of nodes merged into the pod template; it stops the Job and takes that back when the Workload
//! is evicted (`pkg/controller/jobframework/reconciler.go` of kubernetes-sigs/kueue). An admitted
//! Workload's Job that somebody else suspends goes on at once.
//!
//! # What we do
//! - A Job is made once and never applied again, so that no field of it is fought over.
//! - What we did not suspend ([`SUSPENDED_BY`]) we do not let go on.
//! - A Job with a queue is stopped through its Workload, whose `spec.active` is made for that; its
//!   quota is free then. One that is stopped from its start is not made before it may begin.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::apply::{ApplyError, request_error};

/// What the labels of Kueue begin with; all that a TrainingJob has are its Job's, too.
const LABELS: &str = "kueue.x-k8s.io/";
/// Label with the queue of a job; who has it lets Kueue start the job.
pub const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Label of a Workload: the UID of its Job.
const JOB_UID: &str = "kueue.x-k8s.io/job-uid";
/// Annotation on a Job that is stopped because `spec.suspend` says so: the UID of its TrainingJob, or
/// nothing where it was let go on.
pub const SUSPENDED_BY: &str = "hyprstream.io/suspended-by";

const GROUP: &str = "kueue.x-k8s.io";
const KIND: &str = "Workload";
/// Versions of its API, newest first.
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// The labels of Kueue among those of a TrainingJob.
pub fn labels(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = all.iter().filter(|(name, _)| name.starts_with(LABELS));
    own.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The queue that a Job waits in or was started from.
pub fn queue(batch: &Job) -> Option<&str> {
    batch.labels().get(QUEUE).map(String::as_str)
}

/// Whether a Job is stopped because `spec.suspend` says so.
pub fn is_ours(batch: &Job) -> bool {
    let by = batch.annotations().get(SUSPENDED_BY);
    by.is_some_and(|uid| !uid.is_empty())
}

/// Has Kueue stop a Job, or queue it again. `false` if it has no Workload for it (yet).
///
/// # Errors
/// The API server refused or failed. That there is no Kueue is none.
pub async fn set_active(client: &Client, batch: &Job, active: bool) -> Result<bool, ApplyError> {
    let namespace = batch.namespace().unwrap_or_default();
    let uid = batch.uid().unwrap_or_default();
    let of_job = ListParams::default().labels(&format!("{JOB_UID}={uid}"));
    for version in VERSIONS {
        let resource = ApiResource {
            group: GROUP.to_owned(),
            version: version.to_owned(),
            api_version: format!("{GROUP}/{version}"),
            kind: KIND.to_owned(),
            plural: "workloads".to_owned(),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
        let workloads = match api.list(&of_job).await {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(source) => return Err(request_error("list", KIND, &batch.name_any(), source)),
        };
        if workloads.is_empty() {
            continue;
        }
        for workload in workloads {
            let is = workload.data["spec"]["active"].as_bool().unwrap_or(true);
            if is == active {
                continue;
            }
            let name = workload.name_any();
            let patch = Patch::Merge(json!({"spec": {"active": active}}));
            api.patch(&name, &PatchParams::default(), &patch)
                .await
                .map_err(|source| request_error("patch", KIND, &name, source))?;
        }
        return Ok(true);
    }
    Ok(false)
}
