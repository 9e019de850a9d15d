use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_000_000;
const DEADLINE: Duration = Duration::from_mins(10);

fn time(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

fn pod(age: i64, is_ready: bool, container: &Value) -> Arc<Pod> {
    let ready = if is_ready { "True" } else { "False" };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {
                "name": "p", "uid": "u", "creationTimestamp": time(NOW - age),
                "labels": {"hyprstream.io/revision": "r", "hyprstream.io/commit": "c"},
            },
            "status": {
                "phase": "Running",
                "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": time(NOW - age)},
                ],
                "containerStatuses": [{
                    "name": "worker", "image": "w:1", "imageID": "", "ready": is_ready,
                    "restartCount": container["restarts"].as_i64().unwrap_or(0),
                    "state": container["state"], "lastState": container["last"],
                }],
            },
        }))
        .unwrap(),
    )
}

fn of(pods: &[Arc<Pod>]) -> Census {
    census(pods, "r", DEADLINE, Timestamp::from_second(NOW).unwrap())
}

fn running() -> Value {
    json!({"state": {"running": {}}, "last": {}})
}

#[track_caller]
fn check(container: &Value, reason: &str, message: &str, is_final: bool) {
    let problem = of(&[pod(5, false, container)]).problem.expect("a problem");
    assert_eq!(problem.reason, reason);
    assert!(problem.message.contains(message), "{}", problem.message);
    assert_eq!(problem.is_final, is_final);
}

#[test]
fn ready_pods_are_counted_by_revision_and_commit() {
    let mut old = (*pod(9, true, &running())).clone();
    let labels = old.metadata.labels.as_mut().unwrap();
    labels.insert(REVISION.to_owned(), "old".into());
    labels.insert(label::COMMIT.to_owned(), "b".into());
    let mut gone = (*pod(9, true, &running())).clone();
    gone.metadata.deletion_timestamp = gone.metadata.creation_timestamp.clone();
    let census = of(&[
        pod(5, true, &running()),
        pod(5, false, &running()),
        old.into(),
        gone.into(),
    ]);
    assert_eq!((census.replicas, census.ready), (3, 2));
    assert_eq!((census.updated, census.updated_ready), (2, 1));
    assert_eq!(
        census.serving,
        BTreeMap::from([("b".into(), 1), ("c".into(), 1)])
    );
    assert!(census.mounted && census.problem.is_none());
}

#[test]
fn last_words_are_final_and_told_as_they_are() {
    let words = r#"{"reason":"MissingFile","message":"config.json is missing"}"#;
    let ended = json!({"exitCode": 65, "message": format!("a log line\n{words}")});
    check(
        &json!({"state": {"terminated": ended}}),
        "MissingFile",
        "config.json is missing",
        true,
    );
    let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    check(
        &json!({"state": waits, "last": {"terminated": ended}}),
        "MissingFile",
        "config.json is missing",
        true,
    );
}

#[test]
fn a_crash_is_final_only_when_it_repeats() {
    let crash = |restarts: i32| {
        json!({
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restarts": restarts,
            "last": {"terminated": {"exitCode": 139, "message": "one\ntwo"}},
        })
    };
    check(&crash(1), "CrashLoop", "was ended by signal 11: two", false);
    check(&crash(3), "CrashLoop", "was ended by signal 11: two", true);
    let killed = json!({
        "state": {"running": {}}, "restarts": 1,
        "last": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    });
    check(&killed, "OutOfMemory", "resources.limits.memory", false);
}

#[test]
fn an_image_that_cannot_be_pulled_is_named_and_may_still_come() {
    for why in ["ErrImagePull", "ImagePullBackOff"] {
        let waits = json!({"state": {"waiting": {"reason": why, "message": "Back-off"}}});
        check(&waits, "ImagePullFailed", "w:1", false);
    }
}

#[test]
fn a_pod_that_no_node_takes_says_why() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "creationTimestamp": time(NOW),
            "labels": {"hyprstream.io/revision": "r"}},
        "status": {"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        }]},
    }))
    .unwrap();
    let problem = of(&[pod.into()]).problem.unwrap();
    assert_eq!(problem.reason, "Unschedulable");
    assert!(problem.message.contains("Insufficient nvidia.com/gpu"));
    assert!(!problem.is_final);
}

#[test]
fn a_pod_that_finds_no_node_for_long_lacks_room() {
    let homeless = |age: i64, message: &str| {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": time(NOW - 500),
                "labels": {"hyprstream.io/revision": "r"}},
            "status": {"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "lastTransitionTime": time(NOW - age), "message": message,
            }]},
        }))
        .unwrap();
        of(&[pod.into()])
    };
    let full = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.";
    let young = homeless(119, full);
    assert!(!young.lacks_room);
    assert_eq!(young.look_again, Some(Duration::from_secs(1)));
    assert!(homeless(120, full).lacks_room);
    // That passes by itself.
    let unbound = homeless(400, "pod has unbound immediate PersistentVolumeClaims");
    assert!(!unbound.lacks_room);
    assert!(!of(&[pod(5000, false, &running())]).lacks_room);
}

#[test]
fn the_deadline_counts_from_the_last_progress() {
    let slow = of(&[pod(599, false, &running())]);
    assert_eq!(slow.problem, None);
    assert_eq!(slow.look_again, Some(Duration::from_secs(1)));
    let late = of(&[pod(600, false, &running())]);
    assert!(
        late.problem
            .is_some_and(|p| p.is_final && p.reason == "ProgressDeadlineExceeded")
    );
    // Another pod became ready in the meantime.
    let moving = of(&[pod(600, false, &running()), pod(10, true, &running())]);
    assert_eq!(moving.problem, None);
    assert_eq!(moving.look_again, Some(Duration::from_secs(590)));
}

#[test]
fn a_mount_that_takes_long_is_asked_after() {
    let creating = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
    let young = of(&[pod(1, false, &creating)]);
    assert_eq!(young.waiting_for_volume, None);
    assert_eq!(young.look_again, Some(Duration::from_secs(3)));
    let old = of(&[pod(20, false, &creating)]);
    assert_eq!(old.waiting_for_volume.as_deref(), Some("u"));
    assert!(!old.mounted);
}

#[test]
fn what_the_cluster_owes_a_pod_is_never_the_end_of_an_attempt() {
    let waits = |why: &str| json!({"state": {"waiting": {"reason": why}}});
    for why in [
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "CreateContainerError",
    ] {
        let problem = of(&[pod(5000, false, &waits(why))]).problem.unwrap();
        assert!(!problem.is_final, "{why}");
    }
    let mounting = of(&[pod(5000, false, &waits("ContainerCreating"))]);
    assert_eq!(mounting.problem, None);
    let mut homeless = (*pod(5000, false, &running())).clone();
    let status = homeless.status.as_mut().unwrap();
    status.container_statuses = None;
    status
        .conditions
        .as_mut()
        .unwrap()
        .push(serde_json::from_value(json!({"type": "PodScheduled", "status": "False"})).unwrap());
    let problem = of(&[homeless.into()]).problem.unwrap();
    assert_eq!(
        (problem.reason.as_str(), problem.is_final),
        ("Unschedulable", false)
    );
}

#[test]
fn a_container_that_a_node_cannot_start_says_nothing_of_the_commit() {
    let said = "failed to create containerd task: nvidia-container-cli: driver not loaded";
    for why in ["StartError", "ContainerCannotRun"] {
        let end = json!({"exitCode": 128, "reason": why, "message": said,
            "startedAt": time(0), "finishedAt": time(NOW - 60)});
        for state in [
            json!({"state": {"terminated": end}, "restarts": 9}),
            json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restarts": 9,
                "last": {"terminated": end}}),
        ] {
            let census = of(&[pod(5000, false, &state)]);
            let problem = census.problem.unwrap();
            assert_eq!(problem.reason, "ContainerCannotStart", "{why}");
            assert!(problem.message.contains(said), "{}", problem.message);
            assert!(!problem.is_final && !census.mounted, "{why}");
        }
        // Once it runs, its time begins, and the next crash is its own.
        let begun = json!({"state": {"running": {"startedAt": time(NOW - 1)}}, "restarts": 4,
            "last": {"terminated": end}});
        let census = of(&[pod(5000, false, &begun)]);
        assert_eq!(census.problem, None);
        assert_eq!(
            census.look_again,
            Some(DEADLINE.saturating_sub(Duration::from_secs(1)))
        );
    }
}

#[test]
fn the_deadline_begins_when_a_worker_does() {
    let since = |age: i64| json!({"state": {"running": {"startedAt": time(NOW - age)}}});
    let young = of(&[pod(5000, false, &since(599))]);
    assert_eq!(young.problem, None);
    assert_eq!(young.look_again, Some(Duration::from_secs(1)));
    assert!(
        of(&[pod(5000, false, &since(600))])
            .problem
            .is_some_and(|p| p.is_final)
    );
    // A crash is no new beginning.
    let again = json!({
        "state": {"running": {"startedAt": time(NOW - 1)}}, "restarts": 1,
        "last": {"terminated": {"exitCode": 1, "startedAt": time(NOW - 600)}},
    });
    let problem = of(&[pod(5000, false, &again)]).problem.unwrap();
    assert_eq!(
        (problem.reason.as_str(), problem.is_final),
        ("CrashLoop", true)
    );
}

#[test]
fn some_workers_that_serve_say_that_the_attempt_has_not_failed() {
    let crash = json!({
        "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restarts": 9,
        "last": {"terminated": {"exitCode": 65}},
    });
    let census = of(&[pod(5000, true, &running()), pod(5000, false, &crash)]);
    let problem = census.problem.unwrap();
    assert_eq!(
        (problem.reason.as_str(), problem.is_final),
        ("CrashLoop", false)
    );
    let slow = of(&[pod(5000, true, &running()), pod(5000, false, &running())]);
    assert_eq!(slow.problem, None);
}

#[test]
fn an_image_name_that_cannot_be_is_final() {
    let waits = json!({"state": {"waiting": {"reason": "InvalidImageName"}}});
    check(&waits, "ImagePullFailed", "is invalid", true);
}
