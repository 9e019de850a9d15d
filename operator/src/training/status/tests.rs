use hyprstream_api::condition::{COMPLETE, FAILED, GATE_PASSED, RUNNING, SOURCE_RESOLVED};
use hyprstream_contract::training::{Phase, reason as said};
use serde_json::{Value, json};

use super::*;
use crate::training::validate::Invalid;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn job(spec: &Value) -> TrainingJob {
    let mut all = json!({"modelRef": {"name": "m"},
        "dataset": {"configMap": {"name": "d"}, "path": "train.jsonl"}});
    for (name, value) in spec.as_object().unwrap() {
        all[name] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": "sql", "namespace": "ns", "uid": "u", "generation": 1},
        "spec": all,
    }))
    .unwrap()
}

/// What is observed of a job; the plan is none, as of one whose Model went while it runs.
struct Case {
    job: TrainingJob,
    before: TrainingJobStatus,
    plan: Invalid,
    batch: Option<Job>,
    pods: Vec<Arc<Pod>>,
    progress: Option<Progress>,
}

impl Case {
    fn new() -> Self {
        Self {
            job: job(&json!({})),
            before: TrainingJobStatus::default(),
            plan: Invalid::ModelNotFound("m".into()),
            batch: Some(Job::default()),
            pods: Vec::new(),
            progress: None,
        }
    }

    fn batch(mut self, condition: &str, reason: &str) -> Self {
        self.batch = Some(
            serde_json::from_value(json!({"status": {"conditions": [
                {"type": condition, "status": "True", "reason": reason, "message": "why"}]}}))
            .unwrap(),
        );
        self
    }

    fn pod(mut self, phase: &str, state: &Value) -> Self {
        let pod = json!({"metadata": {"name": "p", "uid": "p"}, "status": {"phase": phase,
            "containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": true,
                "restartCount": 0, "state": state}]}});
        self.pods
            .push(Arc::new(serde_json::from_value(pod).unwrap()));
        self
    }

    fn ended(self, code: i32, words: &Value) -> Self {
        let state = json!({"terminated": {"exitCode": code, "message": words.to_string()}});
        self.pod(if code == 0 { "Succeeded" } else { "Failed" }, &state)
    }

    fn status(&self) -> TrainingJobStatus {
        status(&Observed {
            job: &self.job,
            before: &self.before,
            plan: Err(&self.plan),
            model: &Findings::default(),
            dataset: None,
            inputs: None,
            forked: &Forked::Pending,
            batch: self.batch.as_ref(),
            pods: &self.pods,
            progress: self.progress.as_ref(),
            mount_problem: None,
            apply_error: None,
            now: Timestamp::UNIX_EPOCH,
        })
    }
}

#[track_caller]
fn check(status: &TrainingJobStatus, kind: &str, expected: (&str, &str)) {
    let found = status.condition(kind).unwrap();
    assert_eq!(
        (found.status.as_str(), found.reason.as_str()),
        expected,
        "{found:?}"
    );
}

fn words(reason: &str, gates: &Value) -> Value {
    json!({"reason": reason, "message": "it said so", "step": 4, "steps": 4,
        "metrics": {"loss": 0.5}, "gates": gates, "datasetDigest": "d",
        "output": {"commit": COMMIT, "path": "adapters/00_sql.safetensors", "digest": "e",
            "sha256": "f"}})
}

#[test]
fn a_job_without_its_model_waits_and_one_that_can_never_work_has_failed() {
    let mut case = Case::new();
    case.batch = None;
    let status = case.status();
    check(&status, RUNNING, ("False", "ModelNotFound"));
    check(&status, SOURCE_RESOLVED, ("Unknown", "ModelNotFound"));
    assert_eq!(status.state.as_deref(), Some("Pending"));
    case.plan = Invalid::Storage("1k".into());
    let status = case.status();
    check(&status, FAILED, ("True", "InvalidSpec"));
    assert!(status.is_finished() && status.completion_time.is_some());
}

#[test]
fn what_a_pod_says_of_its_progress_stands_in_the_status_and_stays() {
    let mut case = Case::new().pod("Running", &json!({"running": {}}));
    case.progress = Some(Progress {
        phase: Phase::Training,
        step: 3,
        steps: 12,
        epoch: 0.25,
        remaining_seconds: Some(9),
        metrics: [("loss".to_owned(), 1.5), ("bad".to_owned(), f64::NAN)].into(),
        ..Progress::default()
    });
    let status = case.status();
    check(&status, RUNNING, ("True", "Training"));
    assert_eq!(
        (status.step, status.progress_percentage),
        (Some(3), Some(25))
    );
    assert_eq!(status.metrics.len(), 1);
    assert_eq!(status.metrics[0].value, "1.5");
    // Asked again with the same answer, it is the same; without an answer what was known stays.
    case.before = status.clone();
    assert_eq!(case.status(), status);
    case.progress = None;
    assert_eq!(case.status().step, Some(3));
}

#[test]
fn a_complete_job_says_what_its_gates_found_and_where_its_adapter_is() {
    let passed =
        json!([{"metric": "ServingParity", "value": 0.001, "passed": true, "message": "p"}]);
    let case = Case::new()
        .ended(0, &words(said::COMPLETE, &passed))
        .batch("Complete", "");
    let status = case.status();
    check(&status, COMPLETE, ("True", "Complete"));
    check(&status, GATE_PASSED, ("True", "GatesPassed"));
    let output = status.output.unwrap();
    assert_eq!(
        (output.commit.as_str(), output.branch.as_str()),
        (COMMIT, "train/sql")
    );
    assert_eq!(status.gates[0].metric, "ServingParity");

    let failed =
        json!([{"metric": "EvalLoss", "value": 2.0, "passed": false, "message": "too much"}]);
    let case = Case::new()
        .ended(0, &words(said::COMPLETE, &failed))
        .batch("Complete", "");
    let status = case.status();
    check(&status, COMPLETE, ("True", "Complete"));
    check(&status, GATE_PASSED, ("False", "GateFailed"));
    assert!(status.message.unwrap().contains("too much"));
}

#[test]
fn a_failed_job_says_why_in_the_words_of_its_last_pod() {
    let case = Case::new()
        .ended(2, &words(said::INVALID_DATASET, &json!([])))
        .batch("Failed", "PodFailurePolicy");
    check(&case.status(), FAILED, ("True", "InvalidDataset"));
    let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let case = Case::new()
        .pod("Failed", &oom)
        .batch("Failed", "BackoffLimitExceeded");
    check(&case.status(), FAILED, ("True", "OutOfMemory"));
    let case = Case::new().batch("Failed", "DeadlineExceeded");
    check(&case.status(), FAILED, ("True", "DeadlineExceeded"));
    // One whose last words were lost is not said to be complete.
    let case = Case::new().batch("Complete", "");
    check(&case.status(), FAILED, ("True", "LastWordsLost"));
}

#[test]
fn between_two_pods_it_restarts_and_behind_the_last_one_it_ends() {
    let case = Case::new().ended(1, &words(said::INTERNAL_ERROR, &json!([])));
    check(&case.status(), RUNNING, ("False", "Restarting"));
    // The kubelet is ahead of the Job's controller.
    let state = json!({"terminated": {"exitCode": 0,
        "message": words(said::COMPLETE, &json!([])).to_string()}});
    let case = Case::new().pod("Running", &state);
    check(&case.status(), RUNNING, ("True", "Publishing"));
}

#[test]
fn a_job_that_stops_is_suspended_once_its_pod_is_gone() {
    let mut case = Case::new().pod("Running", &json!({"running": {}}));
    case.job = job(&json!({"suspend": true}));
    let status = case.status();
    check(&status, SUSPENDED, ("False", "Stopping"));
    case.pods.clear();
    case.before = status.clone();
    let stopped = case.status();
    check(&stopped, SUSPENDED, ("True", "Suspended"));
    let events = events(&status, &stopped);
    assert!(
        events.iter().any(|event| event.reason == "Suspended"),
        "{events:?}"
    );
}
