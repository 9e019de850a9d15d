//! How pods end, and what the branch has then.

use std::{fs, time::Duration};

use hyprstream_git2db::Digest;
use hyprstream_worker::train::{EXIT_REFUSED, EXIT_SUSPENDED};
use serde_json::{Value, json};

use crate::place::{Place, REPOSITORY, UID, terminate};

const DONE: i32 = 0;
const REFUSED: i32 = EXIT_REFUSED as i32;
const SUSPENDED: i32 = EXIT_SUSPENDED as i32;

/// Every commit follows the one before, and says whose it is and of which step, ever later.
#[track_caller]
fn is_chain(log: &[(String, Vec<String>)]) {
    let step = |message: &str| -> u64 {
        let line = message.lines().find_map(|line| line.strip_prefix("Step: "));
        line.unwrap().parse().unwrap()
    };
    for pair in log.windows(2) {
        assert!(step(&pair[0].0) >= step(&pair[1].0), "{log:?}");
    }
    let (last, others) = log.split_first().unwrap();
    for (message, files) in others {
        assert!(
            message.contains(&format!("Training-Job-Uid: {UID}")),
            "{message}"
        );
        assert!(
            files
                .iter()
                .any(|file| file.ends_with("/state.safetensors")),
            "{files:?}"
        );
        assert!(
            !files.iter().any(|file| file.starts_with("adapters/")),
            "{files:?}"
        );
    }
    assert!(last.0.contains("Adapter-Digest: "), "{last:?}");
    assert!(
        !last.1.iter().any(|file| file.starts_with("training/")),
        "{last:?}"
    );
}

/// The adapter's digest, whatever else the words say.
fn digest(words: &Value) -> &str {
    words["output"]["digest"]
        .as_str()
        .unwrap_or_else(|| panic!("{words}"))
}

#[test]
fn an_adapter_that_was_trained_is_cloned_with_the_digest_that_the_pod_told() {
    let place = Place::new();
    let pod = place.pod("sql", UID, |_, pod| pod["mergeInto"] = json!("main"));
    let words = pod.ends(DONE);
    assert_eq!(words["reason"], "Complete", "{words}");
    assert_eq!((&words["step"], &words["steps"]), (&json!(12), &json!(12)));
    assert!(words["metrics"]["loss"].as_f64().unwrap() > 0.0);
    assert_eq!(words["output"]["path"], "adapters/00_sql.safetensors");
    is_chain(&place.log("sql"));

    // The branch was merged, so that whoever clones has it.
    let url = place.registry.git_url(REPOSITORY);
    place.git("", &["clone", "-q", &url, "clone"]);
    place.git("clone", &["lfs", "pull"]);
    assert_eq!(
        place.git("clone", &["rev-parse", "HEAD"]),
        words["output"]["merged"]
    );
    let tensors = fs::read(place.path("clone/adapters/00_sql.safetensors")).unwrap();
    let sha256 = Digest::of(&tensors).to_string();
    assert_eq!(words["output"]["sha256"], sha256);
    let large = place.git("clone", &["lfs", "ls-files", "--name-only"]);
    assert!(large.contains("adapters/00_sql.safetensors"), "{large}");
    let config = fs::read(place.path("clone/adapters/00_sql.config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["revision"], place.model);
    assert_eq!(config["base_model_name_or_path"], "org/m");

    // One that finds all done says the same, and changes nothing.
    let again = place.pod("sql", UID, |_, pod| pod["mergeInto"] = json!("main"));
    assert_eq!(again.ends(DONE), words);
}

#[test]
fn a_pod_that_is_killed_anywhere_goes_on_elsewhere_to_the_same_adapter() {
    let place = Place::new();
    let whole = place.pod("whole", UID, |_, _| {}).ends(DONE);
    let points = [
        "listening",
        "trains",
        "a checkpoint is committed",
        "a checkpoint is pushed",
        "the adapter is committed",
        "the adapter is pushed",
    ];
    for point in points {
        let name = format!("at-{}", point.len());
        let killed = place.pod(&name, UID, |_, _| {});
        let mut child = killed.start();
        killed.until(point);
        child.kill().unwrap();
        child.wait().unwrap();
        let words = place.pod(&name, UID, |_, _| {}).ends(DONE);
        assert_eq!(digest(&words), digest(&whole), "{point}");
        is_chain(&place.log(&name));
    }
}

#[test]
fn a_pod_that_is_told_to_end_leaves_its_checkpoint_on_the_branch() {
    let place = Place::new();
    let slow = |job: &mut Value, _: &mut Value| {
        job["checkpoints"]["every"] = json!(1000);
        job["training"]["steps"] = json!(60);
    };
    let whole = place.pod("whole", UID, slow).ends(DONE);
    let pod = place.pod("job", UID, slow);
    let child = pod.start();
    pod.until("trained");
    terminate(&child);
    let words = pod.waits(child, SUSPENDED);
    assert_eq!(words["reason"], "Suspended", "{words}");
    assert_eq!(words["checkpoint"]["step"], words["step"], "{words}");
    let next = place.pod("job", UID, slow).ends(DONE);
    assert_eq!(digest(&next), digest(&whole));
}

#[test]
fn a_registry_that_is_away_for_a_while_holds_nobody_up() {
    let mut place = Place::new();
    let whole = place.pod("whole", UID, |_, _| {}).ends(DONE);
    let pod = place.pod("job", UID, |_, _| {});
    let (folder, port) = (pod.folder.clone(), pod.port);
    let mut child = pod.start();
    pod.until("trains");
    place.registry.kill();
    let log = || fs::read_to_string(folder.join("log")).unwrap();
    let client = reqwest_client();
    while !log().contains("waits for the registry") && !log().contains("not pushed yet") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let url = format!("http://127.0.0.1:{port}/v1/training");
    assert_eq!(client.get(&url, None).0, 401);
    assert_eq!(client.get(&url, Some("another")).0, 401);
    let (status, progress) = client.get(&url, Some("key-of-the-pod"));
    let progress: Value = serde_json::from_str(&progress).unwrap();
    assert_eq!(status, 200);
    assert!(
        !progress["notices"].as_array().unwrap().is_empty(),
        "{progress}"
    );
    let metrics = client
        .get(&format!("http://127.0.0.1:{port}/metrics"), None)
        .1;
    assert!(metrics.contains("hyprstream_training_step "), "{metrics}");
    place.registry.start();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(DONE), "{}", log());
    let words: Value =
        serde_json::from_slice(&fs::read(folder.join("words.json")).unwrap()).unwrap();
    assert_eq!(digest(&words), digest(&whole));
    is_chain(&place.log("job"));
}

#[test]
fn a_checkpoint_that_was_never_pushed_is_gone_on_from_on_its_own_disk() {
    let mut place = Place::new();
    let steps = |job: &mut Value, _: &mut Value| job["training"]["steps"] = json!(60);
    let whole = place.pod("whole", UID, steps).ends(DONE);
    let pod = place.pod("job", UID, steps).with(&["--push-grace", "1s"]);
    let child = pod.start();
    pod.until("a checkpoint is pushed");
    place.registry.kill();
    terminate(&child);
    let words = pod.waits(child, SUSPENDED);
    let message = words["message"].as_str().unwrap();
    assert!(message.contains("could not be pushed"), "{message}");
    assert!(
        words["checkpoint"]["step"].as_u64() < words["step"].as_u64(),
        "{words}"
    );
    place.registry.start();
    let child = pod.start();
    let next = pod.waits(child, DONE);
    assert_eq!(digest(&next), digest(&whole));
    is_chain(&place.log("job"));
}

#[test]
fn a_registry_that_stays_away_ends_the_pod_without_counting_against_the_job() {
    let mut place = Place::new();
    place.registry.kill();
    let pod = place.pod("job", UID, |_, _| {});
    let words = pod.with(&["--registry-patience", "1s"]).ends(74);
    assert_eq!(words["reason"], "RegistryUnreachable", "{words}");
}

#[test]
fn a_branch_of_another_job_is_left_alone() {
    let place = Place::new();
    let first = place.pod("job", UID, |_, _| {}).ends(DONE);
    let words = place.pod("job", "another", |_, _| {}).ends(REFUSED);
    assert_eq!(words["reason"], "BranchTaken", "{words}");
    let branch = place.git(
        "",
        &[
            "ls-remote",
            &place.registry.git_url(REPOSITORY),
            "refs/heads/train/job",
        ],
    );
    assert!(branch.starts_with(first["output"]["commit"].as_str().unwrap()));
}

#[test]
fn only_the_tags_of_checkpoints_that_are_kept_stay() {
    let place = Place::new();
    place
        .pod("job", UID, |_, pod| pod["tag"] = json!(true))
        .ends(DONE);
    let tags = place.git(
        "",
        &["ls-remote", "--tags", &place.registry.git_url(REPOSITORY)],
    );
    let count = tags
        .lines()
        .filter(|line| line.contains("refs/tags/job/step-"))
        .count();
    assert!((1..=2).contains(&count), "{tags}");
}

#[test]
fn what_cannot_be_is_said_before_anything_is_begun() {
    let place = Place::new();
    let refused = |name: &str, change: fn(&mut Value, &mut Value), reason: &str| {
        let words = place.pod(name, UID, change).ends(REFUSED);
        assert_eq!(words["reason"], reason, "{words}");
        assert!(!words["message"].as_str().unwrap().is_empty());
    };
    refused(
        "rank",
        |job, _| job["adapter"]["rank"] = json!(0),
        "InvalidJob",
    );
    refused(
        "field",
        |job, _| job["adapter"]["ranks"] = json!(4),
        "InvalidJob",
    );
    refused(
        "data",
        |job, _| job["data"]["path"] = json!("/nonexistent.jsonl"),
        "InvalidDataset",
    );
    refused(
        "model",
        |job, _| job["model"] = json!("/nonexistent"),
        "InvalidModel",
    );
    refused("pod", |_, pod| pod["sort"] = json!(1), "InternalError");
    refused(
        "diverged",
        |job, _| job["training"]["learningRate"] = json!(1e30),
        "Diverged",
    );
}

/// They would be judged by nobody: the pod's own file has those that are.
#[test]
fn gates_in_the_job_of_a_pod_are_refused_by_name() {
    let place = Place::new();
    let pod = place.pod("gates", UID, |job, _| {
        job["eval"] = json!({"records": 4});
        job["gates"] = json!([{"metric": "evalLoss", "max": 0.0}]);
    });
    let words = pod.ends(REFUSED);
    assert_eq!(words["reason"], "InvalidJob", "{words}");
    let message = words["message"].as_str().unwrap();
    assert!(message.starts_with("gates: "), "{message}");
    assert!(message.contains("the pod's file"), "{message}");
}

#[test]
fn other_data_than_the_job_began_with_are_refused() {
    let place = Place::new();
    let pod = place.pod("job", UID, |_, _| {});
    let mut child = pod.start();
    pod.until("a checkpoint is pushed");
    child.kill().unwrap();
    child.wait().unwrap();
    fs::write(place.path("data.jsonl"), "{\"input_ids\": [1, 2, 3, 4]}\n").unwrap();
    let words = place.pod("job", UID, |_, _| {}).ends(REFUSED);
    assert_eq!(words["reason"], "DatasetChanged", "{words}");
}

#[test]
fn an_adapter_takes_the_next_number_and_one_of_its_name_gives_way() {
    let mut place = Place::new();
    let plain = [
        ("adapters/00_a.safetensors", "a"),
        ("adapters/00_a.config.json", "{}"),
        ("adapters/04_b/adapter_config.json", "{}"),
    ];
    place.model = place.commit(&plain);
    let words = place.pod("sql", UID, |_, _| {}).ends(DONE);
    assert_eq!(words["output"]["path"], "adapters/05_sql.safetensors");
    let files = &place.log("sql")[0].1;
    // Attributes would make those that lie in git look changed.
    assert!(
        !files.contains(&"adapters/.gitattributes".to_owned()),
        "{files:?}"
    );
    let words = place.pod("b", UID, |_, _| {}).ends(DONE);
    assert_eq!(words["output"]["path"], "adapters/04_b.safetensors");
    let files = &place.log("b")[0].1;
    assert!(
        !files.iter().any(|file| file.starts_with("adapters/04_b/")),
        "{files:?}"
    );
}

#[test]
fn what_two_jobs_add_merges_and_what_both_sides_changed_is_left_on_the_branch() {
    let place = Place::new();
    let merged = |_: &mut Value, pod: &mut Value| pod["mergeInto"] = json!("main");
    place.pod("a", UID, merged).ends(DONE);
    let words = place.pod("b", UID, merged).ends(DONE);
    assert!(words["output"]["merged"].is_string(), "{words}");

    let place = Place::new();
    place.commit(&[("adapters/00_sql.config.json", "{\"other\": 1}")]);
    let words = place.pod("sql", UID, merged).ends(REFUSED);
    assert_eq!(words["reason"], "MergeConflict", "{words}");
    assert_eq!(words["output"]["path"], "adapters/00_sql.safetensors");
    is_chain(&place.log("sql"));
}

#[test]
fn a_gate_is_measured_from_the_adapter_that_is_served_by_the_name() {
    let place = Place::new();
    let first = place.pod("first", UID, |_, _| {}).ends(DONE);
    let output = &first["output"];
    let path = output["path"].as_str().unwrap();
    let judged = |name: &str, repository: &str| {
        let data = place.path("data.jsonl");
        let pod = place.pod(name, UID, |_, pod| {
            pod["adapter"] = json!("first");
            pod["gates"] = json!([{"metric": "EvalLoss", "max": 0.0, "baseline": "LastKnownGood",
                "path": data, "maxRecords": 8, "maxTokens": 8}]);
            pod["lastKnownGood"] = json!({"repository": repository, "commit": output["commit"],
                "weights": path, "config": path.replace(".safetensors", ".config.json")});
        });
        let gate = pod.ends(DONE)["gates"][1].clone();
        (
            gate["passed"].as_bool().unwrap(),
            gate["message"].as_str().unwrap().to_owned(),
        )
    };
    // What learnt the same is as good, which the base is not.
    let (passed, message) = judged("second", REPOSITORY);
    assert!(
        passed && message.contains("the last known good's"),
        "{message}"
    );
    let (passed, message) = judged("third", "ns/elsewhere");
    assert!(
        !passed && message.contains("ns/elsewhere") && message.contains("output.repository"),
        "{message}"
    );
}

/// A client without a runtime of its own.
struct Client(tokio::runtime::Runtime, reqwest::Client);

fn reqwest_client() -> Client {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(hyprstream_tls::Trust::nobody().client_config())
        .build();
    Client(runtime.unwrap(), client.unwrap())
}

impl Client {
    fn get(&self, url: &str, key: Option<&str>) -> (u16, String) {
        self.0.block_on(async {
            let mut request = self.1.get(url);
            if let Some(key) = key {
                request = request.bearer_auth(key);
            }
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }
}
