use hyprstream_contract::CommitId;
use serde_json::json;

use super::*;
use crate::{
    args::{Images, PullPolicy},
    model::{fetch::pods::WorkerProblem, validate::validate},
    source::{Mirrored, Problem},
};

const OLD: &str = "1111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222";

/// A Model of one replica whose commit NEW has taken the place of OLD, and that is all well.
struct Case {
    model: Model,
    before: ModelStatus,
    findings: Findings,
    target: Option<Revision>,
    failed: Option<FailedCommit>,
    is_rolled_back: bool,
    is_waiting: bool,
    is_replacing: bool,
    census: Census,
    mount_problem: Option<String>,
    apply_error: Option<ApplyError>,
    second: i64,
}

impl Case {
    fn new() -> Self {
        let model = serde_json::from_value(json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": "m", "namespace": "ns", "uid": "u", "generation": 4},
            "spec": {"source": {"url": "https://example.org/m", "ref": {"branch": "main"}}},
        }))
        .unwrap();
        let commit: CommitId = NEW.parse().unwrap();
        Self {
            model,
            before: ModelStatus {
                commit: Some(OLD.into()),
                last_known_good: Some(OLD.into()),
                ..ModelStatus::default()
            },
            findings: Findings {
                latest: Some(commit.clone()),
                mirrored: Some(Mirrored {
                    commit: commit.clone(),
                    repository: "mirror/0".into(),
                    size_bytes: 1,
                }),
                download: None,
                problem: None,
            },
            target: Some(Revision {
                commit,
                claim: "m-2".into(),
            }),
            failed: None,
            is_rolled_back: false,
            is_waiting: false,
            is_replacing: false,
            census: Census {
                replicas: 1,
                ready: 1,
                updated: 1,
                updated_ready: 1,
                serving: [(NEW.to_owned(), 1)].into(),
                mounted: true,
                ..Census::default()
            },
            mount_problem: None,
            apply_error: None,
            second: 1_000_000,
        }
    }

    fn rolling() -> Self {
        let mut case = Self::new();
        case.census = Census {
            replicas: 2,
            ready: 1,
            updated: 1,
            serving: [(OLD.to_owned(), 1)].into(),
            ..Census::default()
        };
        case
    }

    fn status(&self) -> ModelStatus {
        let images = Images {
            cpu: "w".into(),
            cuda: None,
            rocm: None,
            pull_policy: PullPolicy::Always,
        };
        let plan = validate(&self.model, &images);
        status(&Observed {
            model: &self.model,
            before: &self.before,
            plan: plan.as_ref(),
            findings: &self.findings,
            target: self.target.as_ref(),
            failed: self.failed.clone(),
            is_rolled_back: self.is_rolled_back,
            is_waiting: self.is_waiting,
            is_replacing: self.is_replacing,
            census: &self.census,
            mount_problem: self.mount_problem.as_deref(),
            is_bound: true,
            pods_refused: None,
            apply_error: self.apply_error.as_ref(),
            handled: None,
            now: Timestamp::from_second(self.second).unwrap(),
        })
    }

    /// All conditions as `Type=Status/Reason`.
    #[track_caller]
    fn check(&self, expected: &[&str]) {
        let found: Vec<String> = self
            .status()
            .conditions
            .iter()
            .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn all_is_well_after_a_rollout() {
    let case = Case::new();
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=True/Succeeded",
        "VolumeReady=True/Mounted",
        "WorkersReady=True/AllReady",
        "Progressing=False/UpToDate",
        "Stalled=False/NotStalled",
    ]);
    let status = case.status();
    assert_eq!(status.commit.as_deref(), Some(NEW));
    assert_eq!(status.last_known_good.as_deref(), Some(NEW));
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.observed_generation == Some(4))
    );
}

#[test]
fn the_old_commit_counts_as_long_as_it_serves() {
    let case = Case::rolling();
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=True/Succeeded",
        "VolumeReady=True/Bound",
        "WorkersReady=False/RollingOut",
        "Progressing=True/RollingOut",
        "Stalled=False/NotStalled",
    ]);
    assert_eq!(case.status().commit.as_deref(), Some(OLD));
    assert_eq!(case.status().last_known_good.as_deref(), Some(OLD));
}

#[test]
fn trouble_while_the_old_commit_serves_leaves_the_model_ready() {
    let mut case = Case::rolling();
    case.mount_problem = Some("no space is left on the node".into());
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=True/Succeeded",
        "VolumeReady=False/MountFailed",
        "WorkersReady=False/RollingOut",
        "Progressing=True/RollingOut",
        "Stalled=False/NotStalled",
    ]);
}

#[test]
fn a_commit_given_up_stalls_and_says_which_and_why() {
    let mut case = Case::new();
    case.target = Some(Revision {
        commit: OLD.parse().unwrap(),
        claim: "m-1".into(),
    });
    case.census.serving = [(OLD.to_owned(), 1)].into();
    case.is_rolled_back = true;
    case.failed = Some(FailedCommit {
        commit: NEW.into(),
        attempt: "a".into(),
        reason: "InvalidWeights".into(),
        message: "model.safetensors is cut off".into(),
    });
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=True/Succeeded",
        "VolumeReady=True/Mounted",
        "WorkersReady=False/InvalidWeights",
        "Progressing=False/InvalidWeights",
        "Stalled=True/InvalidWeights",
    ]);
    let status = case.status();
    assert_eq!(status.commit.as_deref(), Some(OLD));
    let message = &status.condition(STALLED).unwrap().message;
    assert!(
        message.contains(NEW) && message.contains("cut off. It is tried again"),
        "{message}"
    );

    case.census.updated_ready = 0;
    case.census.updated = 0;
    assert_eq!(
        case.status().condition(PROGRESSING).unwrap().reason,
        "RollingBack"
    );
}

#[test]
fn a_spec_given_up_stalls_though_its_commit_serves() {
    let mut case = Case::new();
    case.is_rolled_back = true;
    case.failed = Some(FailedCommit {
        commit: NEW.into(),
        attempt: "a".into(),
        reason: "OutOfMemory".into(),
        message: "maxModelLen 9999 needs 3 GiB".into(),
    });
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=True/Succeeded",
        "VolumeReady=True/Mounted",
        "WorkersReady=False/OutOfMemory",
        "Progressing=False/OutOfMemory",
        "Stalled=True/OutOfMemory",
    ]);
    let status = case.status();
    assert_eq!(status.failed, case.failed);
    assert_eq!(status.commit.as_deref(), Some(NEW));
    let message = &status.condition(READY).unwrap().message;
    assert!(message.contains("3 GiB"), "{message}");
    // Nothing else would load either: what was tried came good by itself.
    case.is_rolled_back = false;
    assert_eq!(case.status().failed, None);
}

#[test]
fn who_waits_for_a_release_says_so_and_is_ready() {
    let mut case = Case::new();
    case.is_waiting = true;
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=True/Succeeded",
        "VolumeReady=True/Mounted",
        "WorkersReady=True/AllReady",
        "Progressing=True/WaitingForTurn",
        "Stalled=False/NotStalled",
    ]);
}

#[test]
fn a_source_that_fails_says_whether_waiting_helps() {
    let mut case = Case::new();
    let problem = |retriable| Problem {
        reason: "HostUnreachable".into(),
        message: "cannot connect".into(),
        retriable,
    };
    case.findings.problem = Some(problem(true));
    case.check(&[
        "Ready=True/Serving",
        "SourceResolved=False/HostUnreachable",
        "VolumeReady=True/Mounted",
        "WorkersReady=True/AllReady",
        "Progressing=True/Retrying",
        "Stalled=False/NotStalled",
    ]);
    case.findings.problem = Some(problem(false));
    assert_eq!(
        case.status().condition(STALLED).unwrap().reason,
        "HostUnreachable"
    );
    // At the start there is nothing else to tell of.
    case.target = None;
    case.census = Census::default();
    assert_eq!(
        case.status().condition(READY).unwrap().reason,
        "HostUnreachable"
    );
}

#[test]
fn nothing_is_known_at_first() {
    let mut case = Case::new();
    case.before = ModelStatus::default();
    case.findings = Findings::default();
    case.target = None;
    case.census = Census::default();
    case.check(&[
        "Ready=False/Pending",
        "SourceResolved=Unknown/Pending",
        "VolumeReady=Unknown/Pending",
        "WorkersReady=Unknown/Pending",
        "Progressing=True/Pending",
        "Stalled=False/NotStalled",
    ]);
}

#[test]
fn a_restart_of_the_operator_changes_nothing() {
    let mut case = Case::new();
    case.before = case.status();
    case.findings = Findings::default();
    case.second += 1000;
    assert_eq!(case.status(), case.before);
}

#[test]
fn idle_is_ready_but_proves_nothing() {
    let mut case = Case::new();
    case.model.spec.replicas = 0;
    case.census = Census::default();
    case.check(&[
        "Ready=True/Idle",
        "SourceResolved=True/Succeeded",
        "VolumeReady=True/Bound",
        "WorkersReady=True/Idle",
        "Progressing=False/UpToDate",
        "Stalled=False/NotStalled",
    ]);
    assert_eq!(case.status().commit.as_deref(), Some(NEW));
    assert_eq!(case.status().last_known_good.as_deref(), Some(OLD));
}

#[test]
fn an_invalid_spec_stalls_while_the_workers_of_before_serve() {
    let mut case = Case::new();
    case.model.spec.engine.device = hyprstream_api::Device::Cuda;
    let status = case.status();
    assert!(status.is_true(READY));
    assert_eq!(status.condition(STALLED).unwrap().reason, "InvalidSpec");
    case.census = Census::default();
    assert_eq!(
        case.status().condition(READY).unwrap().reason,
        "InvalidSpec"
    );
}

#[test]
fn a_name_that_is_taken_stalls() {
    let mut case = Case::new();
    case.apply_error = Some(ApplyError::NameConflict {
        kind: "Service".into(),
        name: "m".into(),
    });
    let status = case.status();
    assert_eq!(status.condition(STALLED).unwrap().reason, "NameConflict");
    assert!(
        status
            .condition(STALLED)
            .unwrap()
            .message
            .contains("Service m exists")
    );
}

#[test]
fn times_move_only_with_the_status_of_a_condition() {
    let mut case = Case::rolling();
    case.before = case.status();
    let first = case
        .before
        .condition(READY)
        .unwrap()
        .last_transition_time
        .clone();
    case.second += 10;
    case.census = Case::new().census;
    let after = case.status();
    assert_eq!(after.condition(READY).unwrap().last_transition_time, first);
    assert_ne!(
        after.condition(WORKERS_READY).unwrap().last_transition_time,
        first
    );
}

#[test]
fn what_befalls_a_worker_later_is_told_without_giving_the_commit_up() {
    let mut case = Case::new();
    case.before.last_known_good = Some(NEW.into());
    case.before.commit = Some(NEW.into());
    case.census.ready = 0;
    case.census.updated_ready = 0;
    case.census.serving.clear();
    case.census.problem = Some(WorkerProblem {
        reason: "OutOfMemory".into(),
        message: "raise limits".into(),
        is_final: false,
    });
    let status = case.status();
    assert_eq!(status.commit.as_deref(), Some(NEW));
    assert_eq!(status.condition(READY).unwrap().reason, "OutOfMemory");
}

#[test]
fn a_rollout_without_room_says_what_becomes_of_it() {
    let message = |change: fn(&mut Case)| {
        let mut case = Case::rolling();
        case.census.lacks_room = true;
        change(&mut case);
        let status = case.status();
        let progressing = status.condition(PROGRESSING).unwrap();
        assert_eq!(progressing.reason, "RollingOut");
        progressing.message.clone()
    };
    let waits = message(|_| ());
    assert!(waits.contains("rollout.noRoom: Replace"), "{waits}");
    let replaces = message(|case| case.is_replacing = true);
    assert!(replaces.contains("one by one"), "{replaces}");
    let alone = message(|case| (case.census.ready, case.census.serving) = (0, [].into()));
    assert!(alone.contains("are starting"), "{alone}");
}
