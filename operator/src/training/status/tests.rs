use hyprstream_api::condition::{COMPLETE, FAILED, GATE_PASSED, RUNNING, SOURCE_RESOLVED};
use hyprstream_contract::training::{Phase, reason as said};
use serde_json::{Value, json};

use super::*;
use crate::training::{refusals::QUOTA_EXCEEDED, validate::Invalid};

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
    refusal: Option<Refusal>,
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
            refusal: None,
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
            refusal: self.refusal.as_ref(),
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
fn a_pod_that_is_to_leave_its_node_is_not_said_to_train() {
    let mut case = Case::new().pod("Running", &json!({"running": {}}));
    check(&case.status(), RUNNING, ("True", "Preparing"));
    let pod = Arc::make_mut(&mut case.pods[0]);
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(json!([{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint"}]))
    .unwrap();
    let status = case.status();
    check(&status, RUNNING, ("False", "Restarting"));
    let message = status.message.unwrap();
    assert!(
        message.contains("due to NoExecute taint. Another goes on"),
        "{message}"
    );
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

#[test]
fn a_job_whose_pod_a_quota_forbids_says_so_until_the_pod_is_there() {
    let mut case = Case::new();
    let waiting = case.status();
    check(&waiting, RUNNING, ("False", "Pending"));
    case.refusal = Some(Refusal {
        reason: QUOTA_EXCEEDED,
        said: "exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2".to_owned(),
    });
    case.before = waiting.clone();
    let refused = case.status();
    check(&refused, RUNNING, ("False", "QuotaExceeded"));
    let message = refused.message.clone().unwrap();
    assert!(message.contains("limited: cpu=2"), "{message}");
    let told = events(&waiting, &refused);
    assert!(
        told.iter().any(|event| event.reason == "QuotaExceeded"),
        "{told:?}"
    );
    // So it is between two pods.
    let between = Case {
        refusal: case.refusal.clone(),
        ..Case::new().ended(1, &words(said::INTERNAL_ERROR, &json!([])))
    };
    check(&between.status(), RUNNING, ("False", "QuotaExceeded"));
    case.before = refused;
    let case = case.pod("Running", &json!({"running": {}}));
    check(&case.status(), RUNNING, ("True", "Preparing"));
}

/// Pods that ended on a full disk, each with the step of the last checkpoint that the registry had.
fn full_after(steps: &[u64]) -> Case {
    steps.iter().fold(Case::new(), |case, step| {
        let mut words = words(said::DISK_FULL, &json!([]));
        words["checkpoint"] = json!({"step": step, "commit": COMMIT});
        case.ended(74, &words)
    })
}

#[test]
fn a_full_disk_is_told_and_given_up_after_six_pods_in_a_row_without_a_new_checkpoint() {
    let status = full_after(&[3; 5]).status();
    check(&status, RUNNING, ("False", "DiskFull"));
    let message = status.message.unwrap();
    assert!(message.contains("spec.resources.storage"), "{message}");
    let status = full_after(&[3; 6]).status();
    check(&status, FAILED, ("True", "DiskFull"));
    let message = status.message.unwrap();
    assert!(message.contains("spec.resources.storage"), "{message}");
}

#[test]
fn a_full_disk_is_not_given_up_while_it_gets_on_or_for_what_came_between() {
    // Each went on from a later checkpoint.
    check(
        &full_after(&[1, 2, 3, 4, 5, 6, 7]).status(),
        RUNNING,
        ("False", "DiskFull"),
    );
    // One that was evicted and said nothing is nothing in between.
    let evicted = full_after(&[3; 5]).pod("Failed", &json!({"waiting": {}}));
    let mut case = full_after(&[3]);
    case.pods.splice(0..0, evicted.pods);
    check(&case.status(), FAILED, ("True", "DiskFull"));
    // One that failed for something else is.
    let mut case = full_after(&[3; 5]).ended(1, &words(said::INTERNAL_ERROR, &json!([])));
    case.pods.extend(full_after(&[3]).pods);
    check(&case.status(), RUNNING, ("False", "DiskFull"));
    // One more that runs may find room.
    let case = full_after(&[3; 7]).pod("Running", &json!({"running": {}}));
    check(&case.status(), RUNNING, ("True", "Preparing"));
}

/// Pods that were killed at these seconds, and whether for their memory.
fn killed_at(kills: &[(i64, bool)]) -> Case {
    kills.iter().fold(Case::new(), |case, (second, is_oom)| {
        let reason = if *is_oom { "OOMKilled" } else { "Error" };
        let at = Timestamp::from_second(*second).unwrap().to_string();
        let end = json!({"exitCode": 137, "reason": reason, "finishedAt": at});
        case.pod("Failed", &json!({"terminated": end}))
    })
}

/// The same with a checkpoint that was heard of at that second.
fn with_checkpoint(mut case: Case, second: i64) -> Case {
    case.before.checkpoint = Some(TrainingCheckpointStatus {
        step: 3,
        commit: COMMIT.to_owned(),
        time: Some(Time(Timestamp::from_second(second).unwrap())),
    });
    case
}

#[test]
fn a_job_that_is_killed_for_its_memory_again_and_again_is_given_up() {
    let twice = killed_at(&[(1, true), (2, true)]).status();
    check(&twice, RUNNING, ("False", "Restarting"));
    let case = killed_at(&[(1, true), (2, true), (3, true)]);
    let status = case.status();
    check(&status, FAILED, ("True", "OutOfMemory"));
    let message = status.message.unwrap();
    for part in ["spec.resources.limits.memory", "3 pods in a row"] {
        assert!(message.contains(part), "{message}");
    }
    // It got on in between, or somebody says how often it may.
    let case = with_checkpoint(case, 1);
    check(&case.status(), RUNNING, ("False", "Restarting"));
    let mut case = killed_at(&[(1, true), (2, true), (3, true)]);
    case.job.spec.backoff_limit = 3;
    check(&case.status(), RUNNING, ("False", "Restarting"));
}

#[test]
fn a_job_that_others_kill_goes_on_unless_it_never_gets_on() {
    let kills = |count: i64| -> Vec<_> { (1..=count).map(|n| (n, false)).collect() };
    check(
        &killed_at(&kills(5)).status(),
        RUNNING,
        ("False", "Restarting"),
    );
    let status = killed_at(&kills(6)).status();
    check(&status, FAILED, ("True", "PodFailed"));
    let message = status.message.unwrap();
    assert!(message.contains("signal 9"), "{message}");
    let case = with_checkpoint(killed_at(&kills(9)), 4);
    check(&case.status(), RUNNING, ("False", "Restarting"));
    // What fails in another way is counted by the Job, and begins anew.
    let mut case = killed_at(&kills(5)).ended(1, &words(said::INTERNAL_ERROR, &json!([])));
    case.pods.extend(killed_at(&kills(1)).pods);
    check(&case.status(), RUNNING, ("False", "Restarting"));
    // A pod that is evicted says nothing of the job, and one that runs may get on.
    let mut pods = killed_at(&kills(5));
    let evicted = json!({"metadata": {"name": "p", "uid": "p"}, "status": {"phase": "Failed",
        "conditions": [{"type": "DisruptionTarget", "status": "True"}],
        "containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 137}}}]}});
    pods.pods
        .push(Arc::new(serde_json::from_value(evicted).unwrap()));
    check(&pods.status(), RUNNING, ("False", "Restarting"));
    let runs = killed_at(&kills(9)).pod("Running", &json!({"running": {}}));
    check(&runs.status(), RUNNING, ("True", "Preparing"));
}

#[test]
fn a_checkpoint_has_the_time_when_it_was_heard_of_first() {
    let mut case = with_checkpoint(Case::new().pod("Running", &json!({"running": {}})), 7);
    let mut heard = |commit: &str| {
        case.progress = Some(Progress {
            checkpoint: serde_json::from_value(json!({"step": 3, "commit": commit})).unwrap(),
            ..Progress::default()
        });
        let known = case.status().checkpoint.unwrap();
        assert_eq!(known.commit, commit);
        known.time.unwrap().0.as_second()
    };
    assert_eq!(heard(COMMIT), 7);
    assert_eq!(heard(&COMMIT.replace('0', "1")), 0);
}

#[test]
fn a_job_that_kueue_holds_is_queued_and_one_that_somebody_else_holds_is_suspended() {
    let batch = |labels: &Value, annotations: &Value| -> Option<Job> {
        let job = json!({"metadata": {"labels": labels, "annotations": annotations},
            "spec": {"suspend": true, "template": {}}});
        Some(serde_json::from_value(job).unwrap())
    };
    let mut case = Case::new();
    let waiting = case.status();
    case.before = waiting.clone();
    let queue = json!({"kueue.x-k8s.io/queue-name": "gpus"});
    case.batch = batch(&queue, &json!({}));
    let queued = case.status();
    check(&queued, SUSPENDED, ("True", "Queued"));
    check(&queued, RUNNING, ("False", "Queued"));
    assert_eq!(queued.state.as_deref(), Some("Suspended"));
    assert!(queued.message.as_ref().unwrap().contains("gpus"));
    let told: Vec<_> = events(&waiting, &queued);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].reason, "Queued");

    // Kueue lets it begin.
    let mut started = Case::new().pod("Running", &json!({"running": {}}));
    started.before = queued.clone();
    let told = events(&queued, &started.status());
    assert!(
        told.iter().any(|event| event.reason == "Started"),
        "{told:?}"
    );

    // spec.suspend has the last word, and what it stopped is about to go on without it.
    case.job = job(&json!({"suspend": true}));
    check(&case.status(), SUSPENDED, ("True", "Suspended"));
    case.job = job(&json!({}));
    case.batch = batch(&json!({}), &json!({}));
    let held = case.status();
    check(&held, SUSPENDED, ("True", "Suspended"));
    assert!(held.message.unwrap().contains("not by spec.suspend"));
    case.batch = batch(&json!({}), &json!({"hyprstream.io/suspended-by": "u"}));
    check(&case.status(), SUSPENDED, ("False", "NotSuspended"));
}
