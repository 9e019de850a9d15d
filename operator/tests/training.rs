//! TrainingJobs against an API server and a registry in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use serde_json::{Value, json};
use world::{
    A, B, TRAININGS, World,
    kubelet::{CLAIMS, JOBS, PODS, VOLUMES},
};

/// All that is made for a job in its namespace, but for its claims.
const CHILDREN: [&str; 6] = [
    JOBS,
    "v1/configmaps",
    "v1/secrets",
    "v1/serviceaccounts",
    "rbac.authorization.k8s.io/v1/roles",
    "rbac.authorization.k8s.io/v1/rolebindings",
];
const LABEL: &str = "hyprstream.io/training-job";

/// How many of a kind a job has: beside its own key there is the word of its volume.
fn expected(resource: &str) -> usize {
    if resource == "v1/secrets" { 2 } else { 1 }
}

/// A Model `m` of which nothing runs, at [`A`] of `hyprstream://ns/m`.
async fn model() -> World {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    let mut spec = world::spec();
    spec["suspend"] = json!(true);
    world.apply_model("m", &spec);
    world
}

/// A job of `m` on a ConfigMap, and what `more` says.
fn spec(more: &Value) -> Value {
    let mut spec = json!({"modelRef": {"name": "m"},
        "dataset": {"configMap": {"name": "d"}, "path": "train.jsonl"}});
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

fn of_training(world: &World, resource: &str) -> Vec<Value> {
    let mut objects = world.cluster.list(resource);
    objects.retain(|o| o["metadata"]["labels"][LABEL].is_string());
    objects
}

async fn made(world: &World, name: &str) -> Value {
    let get = || world.cluster.get(JOBS, "ns", name);
    world
        .wait(&format!("the Job of {name} is there"), || get().is_some())
        .await;
    get().unwrap()
}

/// A pod of a Job, with the state of its container.
fn pod(world: &World, job: &Value, name: &str, state: &Value) {
    let phase = if state["terminated"].is_object() {
        "Failed"
    } else {
        "Running"
    };
    world.cluster.put(
        "v1/pods",
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns",
                "labels": job["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "sql",
                    "uid": job["metadata"]["uid"], "controller": true}]},
            "spec": {"containers": []},
            "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "image": "i",
                "imageID": "", "ready": true, "restartCount": 0, "state": state}]}}),
    );
}

/// The Job ends, as the controller of Kubernetes says it.
fn end(world: &World, name: &str, how: &str) {
    world.cluster.change(JOBS, "ns", name, |job| {
        job["status"] = json!({"conditions": [{"type": how, "status": "True"}]});
    });
}

#[tokio::test]
async fn a_job_is_pinned_made_and_lets_go_of_its_volumes_when_it_ends() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    let job = made(&world, "sql").await;
    let inputs = world.training("sql").inputs.unwrap();
    assert_eq!(
        (inputs.model_commit.as_str(), inputs.repository.as_str()),
        (A, "ns/m")
    );
    // It is the Model's own.
    assert!(world.registry.forks().is_empty());
    for resource in CHILDREN {
        assert_eq!(
            of_training(&world, resource).len(),
            expected(resource),
            "{resource}"
        );
    }
    let role = &of_training(&world, "rbac.authorization.k8s.io/v1/roles")[0];
    assert_eq!(role["rules"][1]["resourceNames"], json!(["m"]));
    let claim = &job["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"];
    let claims = of_training(&world, CLAIMS);
    assert_eq!(claim["claimName"], claims[0]["metadata"]["name"]);
    assert_eq!(of_training(&world, VOLUMES).len(), 1);

    end(&world, "sql", "Complete");
    world
        .wait("claim and volume are gone", || {
            of_training(&world, CLAIMS).is_empty() && of_training(&world, VOLUMES).is_empty()
        })
        .await;
    let writes = world.quiet().await;
    assert!(world.cluster.get(JOBS, "ns", "sql").is_some());
    assert_eq!(world.quiet().await, writes);
}

#[tokio::test]
async fn a_pod_that_the_api_server_refuses_is_told_in_its_words_until_it_is_taken() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    let job = made(&world, "sql").await;
    let is = |reason: &str| because(&world, "Running", reason);
    let said = "exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2";
    world.cluster.put(
        "v1/events",
        json!({"apiVersion": "v1", "kind": "Event", "type": "Warning",
            "metadata": {"name": "sql.refused", "namespace": "ns"},
            "involvedObject": {"uid": job["metadata"]["uid"], "kind": "Job"},
            "reason": "FailedCreate", "lastTimestamp": "2026-01-01T00:00:00Z",
            "message": format!("Error creating: pods \"sql-x7k2p\" is forbidden: {said}")}),
    );
    world
        .wait("the quota is told", || is("QuotaExceeded"))
        .await;
    assert!(world.training("sql").message.unwrap().contains(said));
    let is_told = || {
        let events = world.cluster.list("events.k8s.io/v1/events");
        events
            .iter()
            .any(|event| event["reason"] == "QuotaExceeded")
    };
    world.wait("an event says it", is_told).await;
    pod(
        &world,
        &job,
        "sql-x7k2q",
        &json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
    );
    world.wait("its pod is there", || is("Preparing")).await;
}

#[tokio::test]
async fn a_job_whose_disk_stays_full_is_given_up_and_its_job_ends() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    let job = made(&world, "sql").await;
    let words = json!({"reason": "DiskFull", "message": "/out: no space left", "step": 0});
    let ended = json!({"terminated": {"exitCode": 74, "message": words.to_string()}});
    let deadline = || {
        let job = world.cluster.get(JOBS, "ns", "sql").unwrap();
        job["spec"]["activeDeadlineSeconds"].clone()
    };
    for number in 1..6 {
        pod(&world, &job, &format!("sql-{number}"), &ended);
    }
    world
        .wait("it is told", || because(&world, "Running", "DiskFull"))
        .await;
    assert_eq!(deadline(), Value::Null);
    pod(&world, &job, "sql-6", &ended);
    world
        .wait("it is given up", || because(&world, "Failed", "DiskFull"))
        .await;
    world.wait("its Job ends", || deadline() == 1).await;
    world
        .wait("its claims and their volumes are let go", || {
            of_training(&world, CLAIMS).is_empty() && of_training(&world, VOLUMES).is_empty()
        })
        .await;
    let writes = world.quiet().await;
    assert_eq!(world.quiet().await, writes);
}

#[tokio::test]
async fn a_branch_that_moves_moves_no_job_whichever_operator_looks() {
    let mut world = model().await;
    world.registry.set_head("https://example.org/d", Ok(A));
    let dataset = json!({"dataset": {"url": "https://example.org/d", "path": "train.jsonl"}});
    // What it lacks keeps it from being made, and not from being pinned.
    world.cluster.refuse("/jobs", Some((403, "not now")));
    world.apply_training("sql", &json!({}), &spec(&dataset));
    world
        .wait("it is pinned", || world.training("sql").inputs.is_some())
        .await;
    world.kill_operator();
    world.registry.push("ns", "m", B);
    world.registry.set_head("https://example.org/d", Ok(B));
    world.cluster.refuse("/jobs", None);
    world.start();
    made(&world, "sql").await;
    let inputs = world.training("sql").inputs.unwrap();
    assert_eq!(inputs.model_commit, A);
    assert_eq!(inputs.dataset_commit.as_deref(), Some(A));
    let claims = of_training(&world, CLAIMS);
    assert_eq!(claims.len(), 2);
    for claim in claims {
        assert_eq!(claim["metadata"]["labels"]["hyprstream.io/commit"], A);
    }
    let config = &of_training(&world, "v1/configmaps")[0];
    let pod: Value = serde_json::from_str(config["data"]["pod.json"].as_str().unwrap()).unwrap();
    assert_eq!(pod["model"]["commit"], A);
    assert_eq!(pod["dataset"]["commit"], A);
}

#[tokio::test]
async fn a_restart_in_the_middle_writes_nothing_anew() {
    let mut world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    let before = made(&world, "sql").await;
    world.cluster.change(JOBS, "ns", "sql", |job| {
        job["status"] = json!({"active": 1, "ready": 1});
    });
    world.quiet().await;
    world.kill_operator();
    let writes = world.cluster.writes().len();
    world.start();
    world.quiet().await;
    let after = world.cluster.get(JOBS, "ns", "sql").unwrap();
    assert_eq!(after["spec"], before["spec"]);
    let new = world.cluster.writes();
    let jobs: Vec<_> = new[writes..]
        .iter()
        .filter(|w| w.contains("/jobs"))
        .collect();
    assert!(jobs.is_empty(), "{jobs:?}");
}

#[tokio::test]
async fn another_repository_is_made_before_the_job() {
    let world = model().await;
    world.registry.refuse_forks(true);
    let output = json!({"output": {"repository": "tuned"}});
    world.apply_training("sql", &json!({}), &spec(&output));
    world
        .wait("it is pinned", || world.training("sql").inputs.is_some())
        .await;
    world.quiet().await;
    assert!(world.cluster.get(JOBS, "ns", "sql").is_none());
    world.registry.refuse_forks(false);
    made(&world, "sql").await;
    world.quiet().await;
    let forks = world.registry.forks();
    assert_eq!(forks.len(), 1);
    assert_eq!(
        (forks[0].from.as_str(), forks[0].to.as_str()),
        ("ns/m", "ns/tuned")
    );
    assert_eq!(forks[0].commit.as_ref().unwrap().as_str(), A);
}

#[tokio::test]
async fn nothing_is_made_for_what_cannot_work_until_it_can() {
    let world = World::new().await;
    world.apply_training("bad", &json!({}), &spec(&json!({"device": "cuda"})));
    world.apply_training("early", &json!({}), &spec(&json!({})));
    world.quiet().await;
    assert!(of_training(&world, JOBS).is_empty() && of_training(&world, CLAIMS).is_empty());
    world.registry.push("ns", "m", A);
    let mut model = world::spec();
    model["suspend"] = json!(true);
    world.apply_model("m", &model);
    made(&world, "early").await;
    assert_eq!(of_training(&world, JOBS).len(), 1);
}

#[tokio::test]
async fn a_job_that_somebody_else_made_is_left_alone() {
    let world = model().await;
    let theirs = json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "sql", "namespace": "ns"}, "spec": {"template": {"spec": {}}}});
    let before = world.cluster.put(JOBS, theirs);
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    world
        .wait("all else is there", || {
            CHILDREN[1..]
                .iter()
                .all(|r| of_training(&world, r).len() == expected(r))
        })
        .await;
    world.quiet().await;
    assert_eq!(world.cluster.get(JOBS, "ns", "sql").unwrap(), before);
}

#[tokio::test]
async fn a_job_is_suspended_and_goes_on_as_its_spec_says() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({"suspend": true})));
    assert_eq!(made(&world, "sql").await["spec"]["suspend"], true);
    for suspend in [false, true] {
        world.cluster.change(TRAININGS, "ns", "sql", |job| {
            job["spec"]["suspend"] = json!(suspend);
        });
        let is = || world.cluster.get(JOBS, "ns", "sql").unwrap()["spec"]["suspend"] == suspend;
        world.wait(&format!("suspend is {suspend}"), is).await;
    }
}

/// The condition of a job has that reason.
fn because(world: &World, kind: &str, reason: &str) -> bool {
    let status = world.training("sql");
    status.condition(kind).is_some_and(|c| c.reason == reason)
}

/// What Kueue changes of a Job is not ours, whichever operator looks.
#[tokio::test]
async fn a_queue_says_when_its_jobs_begin_and_where_they_run() {
    let mut world = model().await;
    let labels = json!({"kueue.x-k8s.io/queue-name": "q"});
    world.apply_training("sql", &labels, &spec(&json!({})));
    let job = made(&world, "sql").await;
    assert_eq!(job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "q");
    assert_eq!(job["spec"]["suspend"], true);
    let queued = || because(&world, "Suspended", "Queued") && because(&world, "Running", "Queued");
    world.wait("it is queued", queued).await;
    // It is admitted, to a flavour of its own.
    world.cluster.change(JOBS, "ns", "sql", |job| {
        job["spec"]["suspend"] = json!(false);
        job["spec"]["template"]["spec"]["nodeSelector"] = json!({"flavour": "a"});
        job["metadata"]["annotations"] = json!({"kueue.x-k8s.io/of": "its own"});
    });
    let admitted = world.cluster.get(JOBS, "ns", "sql").unwrap();
    let is_over = || because(&world, "Suspended", "NotSuspended");
    world.wait("it is admitted", is_over).await;
    world.kill_operator();
    world.start();
    world.quiet().await;
    assert_eq!(world.cluster.get(JOBS, "ns", "sql").unwrap(), admitted);
    // It is evicted.
    world.cluster.change(JOBS, "ns", "sql", |job| {
        job["spec"]["suspend"] = json!(true);
    });
    let queued = || because(&world, "Suspended", "Queued");
    world.wait("it is queued again", queued).await;
    world.quiet().await;
    let job = world.cluster.get(JOBS, "ns", "sql").unwrap();
    assert_eq!(job["spec"]["suspend"], true);
}

/// Kueue would start it when there is room.
#[tokio::test]
async fn a_job_of_a_queue_that_is_stopped_from_its_start_has_no_job_before_it_may_begin() {
    let world = model().await;
    let labels = json!({"kueue.x-k8s.io/queue-name": "q"});
    world.apply_training("sql", &labels, &spec(&json!({"suspend": true})));
    let told = || because(&world, "Suspended", "Suspended");
    world.wait("it is told", told).await;
    let has_claims = || !of_training(&world, CLAIMS).is_empty();
    world.wait("the rest of it is made", has_claims).await;
    world.quiet().await;
    assert_eq!(world.cluster.get(JOBS, "ns", "sql"), None);
    world.cluster.change(TRAININGS, "ns", "sql", |job| {
        job["spec"]["suspend"] = json!(false);
    });
    assert_eq!(made(&world, "sql").await["spec"]["suspend"], true);
    let queued = || because(&world, "Suspended", "Queued");
    world.wait("it is queued", queued).await;
}

/// Kueue may be told to manage Jobs that name no queue.
#[tokio::test]
async fn what_somebody_else_suspended_is_not_let_go_on() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    assert_eq!(made(&world, "sql").await["spec"]["suspend"], false);
    world.cluster.change(JOBS, "ns", "sql", |job| {
        job["spec"]["suspend"] = json!(true);
    });
    let held = || because(&world, "Suspended", "Suspended");
    world.wait("it is told", held).await;
    world.quiet().await;
    let job = world.cluster.get(JOBS, "ns", "sql").unwrap();
    assert_eq!(job["spec"]["suspend"], true);
    assert!(world.training("sql").message.unwrap().contains("not by"));
}

/// A Job of an admitted Workload that is suspended past Kueue goes on at once.
#[tokio::test]
async fn a_job_of_a_queue_is_stopped_through_its_workload() {
    const WORKLOADS: &str = "kueue.x-k8s.io/v1beta1/workloads";
    let world = model().await;
    let labels = json!({"kueue.x-k8s.io/queue-name": "q"});
    world.apply_training("sql", &labels, &spec(&json!({})));
    let job = made(&world, "sql").await;
    let workload = |name: &str, uid: &Value| {
        world.cluster.put(
            WORKLOADS,
            json!({"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload",
                "metadata": {"name": name, "namespace": "ns",
                    "labels": {"kueue.x-k8s.io/job-uid": uid}},
                "spec": {"queueName": "q"}}),
        );
    };
    workload("job-sql", &job["metadata"]["uid"]);
    workload("job-other", &json!("another"));
    world.cluster.change(JOBS, "ns", "sql", |job| {
        job["spec"]["suspend"] = json!(false);
    });
    let active =
        |name: &str| world.cluster.get(WORKLOADS, "ns", name).unwrap()["spec"]["active"].clone();
    for suspend in [true, false] {
        world.cluster.change(TRAININGS, "ns", "sql", |job| {
            job["spec"]["suspend"] = json!(suspend);
        });
        let is = || active("job-sql") == !suspend;
        world.wait(&format!("suspend is {suspend}"), is).await;
        world.quiet().await;
        // The rest is Kueue's to do.
        let job = world.cluster.get(JOBS, "ns", "sql").unwrap();
        assert_eq!(job["spec"]["suspend"], !suspend);
        world.cluster.change(JOBS, "ns", "sql", |job| {
            job["spec"]["suspend"] = json!(suspend);
        });
    }
    assert_eq!(active("job-other"), Value::Null);
}

#[tokio::test]
async fn a_job_goes_with_all_that_it_owns_its_time_after_its_end() {
    let world = model().await;
    let ttl = json!({"ttlSecondsAfterFinished": 0});
    world.apply_training("sql", &json!({}), &spec(&ttl));
    made(&world, "sql").await;
    end(&world, "sql", "Failed");
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    world.cluster.change(TRAININGS, "ns", "sql", |job| {
        job["status"]["completionTime"] = json!(now);
        job["status"]["conditions"] = json!([{"type": "Failed", "status": "True",
            "reason": "BackoffLimitExceeded", "message": "", "lastTransitionTime": now}]);
    });
    world
        .wait("all of it is gone", || {
            of_training(&world, VOLUMES).is_empty()
                && world.cluster.get(TRAININGS, "ns", "sql").is_none()
                && CHILDREN.iter().all(|r| of_training(&world, r).is_empty())
        })
        .await;
}

#[tokio::test]
async fn a_job_that_is_deleted_while_it_runs_takes_all_with_it() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    made(&world, "sql").await;
    world.cluster.delete(TRAININGS, "ns", "sql");
    world
        .wait("all of it is gone", || {
            of_training(&world, VOLUMES).is_empty()
                && CHILDREN.iter().all(|r| of_training(&world, r).is_empty())
        })
        .await;
    world.quiet().await;
    assert!(of_training(&world, JOBS).is_empty());
}

#[tokio::test]
async fn a_pod_is_given_up_when_its_node_is_lost_and_not_before() {
    let world = model().await;
    world.apply_training("sql", &json!({}), &spec(&json!({})));
    let job = made(&world, "sql").await;
    let node = |status: &str| {
        world.cluster.put(
            "v1/nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": ""},
                "status": {"conditions": [{"type": "Ready", "status": status}]}}),
        );
    };
    node("True");
    let later = k8s_openapi::jiff::Timestamp::now() + std::time::Duration::from_mins(5);
    let mut labels = job["metadata"]["labels"].clone();
    labels["hyprstream.io/training-job"] = json!("sql");
    world.cluster.put(
        PODS,
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "sql-1", "namespace": "ns", "labels": labels,
                "deletionTimestamp": later.to_string(),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "sql",
                    "uid": job["metadata"]["uid"], "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{"name": "trainer"}]},
            "status": {"phase": "Running", "conditions": [{"type": "DisruptionTarget",
                "status": "True", "reason": "DeletionByTaintManager"}]}}),
    );
    // Its node says that it is ending it.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert!(world.cluster.get(PODS, "ns", "sql-1").is_some());
    node("Unknown");
    world
        .wait("the pod is given up", || {
            world.cluster.get(PODS, "ns", "sql-1").is_none()
        })
        .await;
    // Its Job keeps what has not failed, however it is deleted.
    let writes = world.cluster.writes();
    let failed = "PATCH /api/v1/namespaces/ns/pods/sql-1/status";
    assert!(writes.iter().any(|write| write == failed), "{writes:?}");
}
