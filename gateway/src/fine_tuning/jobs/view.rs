//! A TrainingJob as OpenAI tells of jobs.

use hyprstream_api::{TrainingJob, TrainingJobStatus, condition};
use hyprstream_contract::label;
use hyprstream_openai::fine_tuning::{JOB, Job, JobError, JobStatus, TopHyperparameters};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::record::JobRecord;
use crate::table::{ModelKey, Table};

/// Code of the error of a job whose gates are not passed.
const GATE_FAILED: &str = "gate_failed";
/// The figure of the tokens that were learnt from.
const TOKENS: &str = "tokens";

/// All that is known of a job.
pub(super) struct View<'a> {
    pub(super) object: &'a TrainingJob,
    pub(super) record: &'a JobRecord,
    pub(super) table: &'a Table,
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// When it was made, in seconds since 1970.
pub(super) fn created_at(job: &TrainingJob) -> i64 {
    let created = job.metadata.creation_timestamp.as_ref();
    created.map_or(0, |time| time.0.as_second())
}

/// When it was cancelled, if it was.
pub(super) fn cancelled_at(job: &TrainingJob) -> Option<i64> {
    let text = job.annotations().get(label::CANCELLED_AT)?;
    // What somebody wrote there by hand says all the same that it is cancelled.
    Some(text.parse::<Timestamp>().map_or(0, Timestamp::as_second))
}

/// How far it is.
pub(super) fn status(job: &TrainingJob) -> JobStatus {
    let none = TrainingJobStatus::default();
    let status = job.status.as_ref().unwrap_or(&none);
    if cancelled_at(job).is_some() {
        JobStatus::Cancelled
    } else if status.is_true(condition::FAILED) || has_failed_gates(status) {
        JobStatus::Failed
    } else if status.is_true(condition::COMPLETE) {
        JobStatus::Succeeded
    } else if job.spec.suspend {
        JobStatus::Paused
    } else if status.is_true(condition::RUNNING) {
        JobStatus::Running
    } else if status.inputs.is_some() {
        JobStatus::Queued
    } else {
        JobStatus::ValidatingFiles
    }
}

/// The word for it.
pub(super) fn word(status: JobStatus) -> &'static str {
    match status {
        JobStatus::ValidatingFiles => "validating_files",
        JobStatus::Queued => "queued",
        JobStatus::Running => "running",
        JobStatus::Paused => "paused",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

fn has_failed_gates(status: &TrainingJobStatus) -> bool {
    let gates = status.condition(condition::GATE_PASSED);
    status.is_true(condition::COMPLETE) && gates.is_some_and(|gates| gates.status == "False")
}

impl View<'_> {
    /// What clients are told.
    pub(super) fn job(&self) -> Job {
        let Self { object, record, .. } = self;
        let status = status(object);
        let told = object.status.as_ref();
        let completed = told.and_then(|told| told.completion_time.as_ref());
        let finished = match status {
            JobStatus::Cancelled => cancelled_at(object),
            status if status.is_final() => completed.map(|time| time.0.as_second()),
            _ => None,
        };
        let remaining = told.and_then(|told| told.estimated_remaining_seconds);
        let own = record.method.hyperparameters;
        Job {
            id: object.name_any(),
            object: JOB.to_owned(),
            created_at: created_at(object),
            finished_at: finished,
            error: (status == JobStatus::Failed).then(|| error(told)),
            fine_tuned_model: (status == JobStatus::Succeeded)
                .then(|| self.served())
                .flatten(),
            hyperparameters: TopHyperparameters {
                n_epochs: own.n_epochs,
                batch_size: own.batch_size,
                learning_rate_multiplier: own.learning_rate_multiplier,
            },
            method: record.method,
            model: record.model.clone(),
            organization_id: object.namespace().unwrap_or_default(),
            result_files: Vec::new(),
            seed: object.spec.method.seed,
            status,
            trained_tokens: status
                .is_final()
                .then(|| figure(told?, TOKENS))
                .flatten()
                .map(|tokens| tokens as u64),
            training_file: record.training_file.clone(),
            validation_file: record.validation_file.clone(),
            integrations: Vec::new(),
            metadata: record.metadata.clone(),
            estimated_finish: remaining
                .filter(|_| status == JobStatus::Running)
                .map(|seconds| self.now.saturating_add(seconds)),
            user_provided_suffix: record.suffix.clone(),
        }
    }

    /// By what requests name the Model with the adapter that the job made, once there is one.
    fn served(&self) -> Option<String> {
        let adapter = self
            .object
            .status
            .as_ref()?
            .output
            .as_ref()?
            .adapter
            .as_ref()?;
        let namespace = self.object.namespace().unwrap_or_default();
        let model = ModelKey::new(&namespace, &self.object.spec.model_ref.name);
        Some(format!("{}+{adapter}", self.table.id(&model)))
    }
}

/// The latest value of a figure.
pub(super) fn figure(status: &TrainingJobStatus, name: &str) -> Option<f64> {
    let metric = status.metrics.iter().find(|metric| metric.name == name)?;
    metric
        .value
        .parse()
        .ok()
        .filter(|value: &f64| value.is_finite())
}

fn error(status: Option<&TrainingJobStatus>) -> JobError {
    let failed = status.and_then(|status| status.condition(condition::FAILED));
    if let Some(failed) = failed.filter(|failed| failed.status == "True") {
        let param = match failed.reason.as_str() {
            "InvalidDataset" | "DatasetChanged" => Some("training_file"),
            "InvalidModel" => Some("model"),
            _ => None,
        };
        return JobError {
            code: snake(&failed.reason),
            message: failed.message.clone(),
            param: param.map(str::to_owned),
        };
    }
    let verdicts = status.map_or(&[][..], |status| &status.gates);
    let failed = verdicts.iter().filter(|verdict| !verdict.passed);
    let messages: Vec<&str> = failed.map(|verdict| verdict.message.as_str()).collect();
    let gates = status.and_then(|status| status.condition(condition::GATE_PASSED));
    let message = if messages.is_empty() {
        gates.map_or_else(String::new, |gates| gates.message.clone())
    } else {
        messages.join("; ")
    };
    JobError {
        code: GATE_FAILED.to_owned(),
        message,
        param: None,
    }
}

/// `InvalidDataset` as `invalid_dataset`.
fn snake(reason: &str) -> String {
    let mut text = String::new();
    for c in reason.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(status: &Value) -> TrainingJob {
        let record = json!({"model": "m", "trainingFile": "file-a",
                            "method": {"type": "supervised"}});
        serde_json::from_value(json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "ftjob-1", "namespace": "team-a",
                         "creationTimestamp": "1970-01-01T00:00:05Z",
                         "annotations": {"hyprstream.io/fine-tuning-request": record.to_string()}},
            "spec": {"modelRef": {"name": "m"}, "method": {"seed": 3},
                     "dataset": {"url": "hyprstream://team-a/openai-files", "path": "train.jsonl"}},
            "status": status,
        }))
        .unwrap()
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "why",
               "lastTransitionTime": "1970-01-01T00:00:09Z"})
    }

    fn view(object: &TrainingJob) -> Job {
        let record = JobRecord::of_object(object).unwrap();
        let view = View {
            object,
            record: &record,
            table: &Table::default(),
            now: 100,
        };
        view.job()
    }

    #[test]
    fn a_job_is_told_by_its_conditions() {
        let inputs = json!({"modelCommit": "c", "repository": "team-a/m"});
        let running = condition("Running", "True", "Training");
        let complete = condition("Complete", "True", "Complete");
        for (status, expected) in [
            (json!({}), JobStatus::ValidatingFiles),
            (json!({"inputs": inputs}), JobStatus::Queued),
            (
                json!({"inputs": inputs, "conditions": [running]}),
                JobStatus::Running,
            ),
            (json!({"conditions": [complete]}), JobStatus::Succeeded),
        ] {
            assert_eq!(view(&object(&status)).status, expected);
        }
        let mut paused = object(&json!({"conditions": [running]}));
        paused.spec.suspend = true;
        assert_eq!(view(&paused).status, JobStatus::Paused);
        let cancelled = [(
            label::CANCELLED_AT.to_owned(),
            "1970-01-01T00:01:00Z".to_owned(),
        )];
        paused.annotations_mut().extend(cancelled);
        let paused = view(&paused);
        assert_eq!(
            (paused.status, paused.finished_at),
            (JobStatus::Cancelled, Some(60))
        );
    }

    #[test]
    fn what_came_of_it_is_told_once_it_has_ended() {
        let done = view(&object(&json!({
            "conditions": [condition("Complete", "True", "Complete"),
                           condition("GatePassed", "True", "Passed")],
            "completionTime": "1970-01-01T00:00:50Z",
            "metrics": [{"name": "tokens", "value": "1234"}],
            "output": {"repository": "team-a/m", "branch": "train/x", "commit": "c", "path": "p",
                       "digest": "d", "sha256": "s", "adapter": "ft-1"},
        })));
        assert_eq!(done.fine_tuned_model.as_deref(), Some("m+ft-1"));
        assert_eq!(
            (done.finished_at, done.trained_tokens),
            (Some(50), Some(1234))
        );
        assert_eq!((done.created_at, done.seed), (5, 3));

        let gates = view(&object(&json!({
            "conditions": [condition("Complete", "True", "Complete"),
                           condition("GatePassed", "False", "Failed")],
            "gates": [{"metric": "EvalLoss", "passed": false, "message": "too high"}],
        })));
        let error = gates.error.unwrap();
        assert_eq!(
            (gates.status, error.code.as_str()),
            (JobStatus::Failed, "gate_failed")
        );
        assert_eq!(error.message, "too high");

        let failed = view(&object(&json!({
            "conditions": [condition("Failed", "True", "InvalidDataset")]})));
        let error = failed.error.unwrap();
        assert_eq!(error.code, "invalid_dataset");
        assert_eq!(error.param.as_deref(), Some("training_file"));
        assert_eq!(failed.fine_tuned_model, None);
    }

    #[test]
    fn the_end_is_estimated_only_while_it_runs() {
        let running = condition("Running", "True", "Training");
        let status = json!({"conditions": [running], "estimatedRemainingSeconds": 20});
        assert_eq!(view(&object(&status)).estimated_finish, Some(120));
        let status = json!({"estimatedRemainingSeconds": 20});
        assert_eq!(view(&object(&status)).estimated_finish, None);
    }
}
