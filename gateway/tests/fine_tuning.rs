//! Files and fine-tuning jobs over a registry and an API server in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/fakes.rs"]
mod fakes;

use std::sync::Arc;

use common::{Answer, Running, facts, table};
use fakes::{Fakes, TOKEN};
use hyprstream_gateway::{
    Config, Gateway,
    fine_tuning::{ClientKeys, FineTuning, FineTuningConfig, Registry},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const KEY: &str = "key-of-team-a-key-of-team-a-key-of-team-a";
const OTHER: &str = "key-of-team-b-key-of-team-b-key-of-team-b";
const CHAT: &str =
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
const PREFERENCE: &str = r#"{"input":{"messages":[{"role":"user","content":"a"}]},"preferred_output":[{"role":"assistant","content":"b"}],"non_preferred_output":[{"role":"assistant","content":"c"}]}"#;
const JOBS: &str = "/v1/fine_tuning/jobs";

struct Stage {
    gateway: Running,
    api: Arc<FineTuning>,
    fakes: Fakes,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn start() -> Self {
        Self::with(FineTuningConfig::default()).await
    }

    async fn with(config: FineTuningConfig) -> Self {
        let fakes = Fakes::start().await;
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
        let registry = Registry::new(
            fakes.url().parse().unwrap(),
            token,
            &hyprstream_tls::Trust::nobody(),
        )
        .unwrap();
        let cluster = kube::Config::new(fakes.url().parse().unwrap());
        let cluster = kube::Client::try_from(cluster).unwrap();
        let keys = [("team-a", KEY), ("team-b", OTHER)].map(|(n, k)| (n.to_owned(), k.to_owned()));
        let keys = ClientKeys::new(&keys.into()).unwrap();
        let api = Arc::new(FineTuning::new(config, registry, cluster, keys));
        let models = table(vec![
            (facts("team-a", "m"), vec![]),
            (facts("team-b", "n"), vec![]),
        ]);
        let served = Arc::clone(&api);
        let gateway = Running::start_as(Config::default(), models, |gateway: Gateway| {
            gateway.with_fine_tuning(served)
        })
        .await;
        Self {
            gateway,
            api,
            fakes,
            folder,
        }
    }

    async fn ask(&self, key: &str, method: &str, path: &str, body: Value) -> Answer {
        let authorization = format!("Bearer {key}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.gateway.send(method, path, &headers, body).await
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask(KEY, "GET", path, Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    async fn upload_as(&self, repeat: Option<&str>, name: &str, text: &str) -> Answer {
        let body = format!(
            "--x\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--x\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             content-type: application/octet-stream\r\n\r\n{text}\r\n--x--\r\n"
        );
        let authorization = format!("Bearer {KEY}");
        let mut headers = vec![
            ("authorization", authorization.as_str()),
            ("content-type", "multipart/form-data; boundary=x"),
        ];
        headers.extend(repeat.map(|key| ("idempotency-key", key)));
        self.gateway.send("POST", "/v1/files", &headers, body).await
    }

    async fn upload(&self, name: &str, text: &str) -> String {
        let answer = self.upload_as(None, name, text).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    async fn create(&self, body: Value) -> Value {
        let answer = self.ask(KEY, "POST", JOBS, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    async fn change(&self, id: &str, verb: &str) -> Answer {
        self.ask(KEY, "POST", &format!("{JOBS}/{id}/{verb}"), Value::Null)
            .await
    }
}

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

#[tokio::test]
async fn without_keys_the_paths_say_what_to_set_and_with_them_nobody_is_anonymous() {
    let off = Running::start(Config::default(), table(vec![])).await;
    let (status, code, message) = off.get("/v1/files").await.error();
    assert_eq!((status, code.as_str()), (404, "unknown_url"));
    assert!(message.contains("gateway.fineTuning.enabled"), "{message}");

    let stage = Stage::start().await;
    for path in ["/v1/files", JOBS, "/v1/files/file-x/content"] {
        let (status, code, _) = stage.gateway.get(path).await.error();
        assert_eq!((status, code.as_str()), (401, "invalid_api_key"), "{path}");
        let wrong = stage.ask("wrong", "GET", path, Value::Null).await;
        assert_eq!(wrong.status, 401, "{path}");
    }
    let (status, code, _) = stage
        .ask(KEY, "PUT", "/v1/files", Value::Null)
        .await
        .error();
    assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
    let counted = stage.gateway.metric("requests_total");
    assert_eq!(counted, 6, "each that a handler answered");
    let models = stage.gateway.get("/v1/models").await;
    assert_eq!(models.status, 200, "other paths need no key");
}

#[tokio::test]
async fn a_file_is_kept_in_the_registry_and_belongs_to_one_namespace() {
    let stage = Stage::start().await;
    let text = format!("{CHAT}\n{CHAT}\n");
    let first = stage.upload("a/my data.jsonl", &text).await;
    let file = stage.get(&format!("/v1/files/{first}")).await;
    assert_eq!(file["filename"], "my data.jsonl");
    assert_eq!(file["bytes"], text.len());
    assert_eq!(
        (&file["purpose"], &file["status"]),
        (&json!("fine-tune"), &json!("processed"))
    );
    let content = stage
        .ask(
            KEY,
            "GET",
            &format!("/v1/files/{first}/content"),
            Value::Null,
        )
        .await;
    assert_eq!(content.body, text);
    {
        let world = stage.fakes.world.lock();
        let repository = &world.repositories["team-a/openai-files"];
        let (_, changes) = &repository.branches[&format!("files/{first}")];
        assert_eq!(changes[0].path, "data.jsonl");
        assert_eq!(repository.objects.len(), 1);
    }
    let path = format!("/v1/files/{first}");
    for (method, path) in [("GET", path.as_str()), ("DELETE", &path)] {
        let (status, code, _) = stage.ask(OTHER, method, path, Value::Null).await.error();
        assert_eq!((status, code.as_str()), (404, "file_not_found"));
    }
    let theirs = stage
        .ask(OTHER, "GET", "/v1/files", Value::Null)
        .await
        .json();
    assert_eq!(theirs["data"], json!([]));

    for n in 0..4 {
        stage.upload(&format!("{n}.jsonl"), CHAT).await;
    }
    let page = stage.get("/v1/files?limit=3&order=asc").await;
    assert_eq!(
        (page["data"].as_array().unwrap().len(), &page["has_more"]),
        (3, &json!(true))
    );
    let after = page["last_id"].as_str().unwrap();
    let rest = stage
        .get(&format!("/v1/files?limit=3&order=asc&after={after}"))
        .await;
    assert_eq!(
        (rest["data"].as_array().unwrap().len(), &rest["has_more"]),
        (2, &json!(false))
    );
    assert_eq!(
        stage.get("/v1/files?purpose=batch").await["data"],
        json!([])
    );

    let deleted = stage.ask(KEY, "DELETE", &path, Value::Null).await.json();
    assert_eq!(
        deleted,
        json!({"id": first, "object": "file", "deleted": true})
    );
    assert_eq!(stage.ask(KEY, "GET", &path, Value::Null).await.status, 404);
}

#[tokio::test]
async fn what_is_no_file_to_learn_from_is_refused_and_leaves_nothing() {
    let config = FineTuningConfig {
        max_file_bytes: 1000,
        ..FineTuningConfig::default()
    };
    let stage = Stage::with(config).await;
    let (status, code, message) = stage
        .upload_as(None, "f", &format!("{CHAT}\n{{}}"))
        .await
        .error();
    assert_eq!((status, code.as_str()), (400, "invalid_file_format"));
    assert!(message.starts_with("line 2: "), "{message}");
    let large = format!("{CHAT}\n").repeat(20);
    let (status, code, _) = stage.upload_as(None, "f", &large).await.error();
    assert_eq!((status, code.as_str()), (413, "request_too_large"));
    for (form, param) in [
        ("name=\"purpose\"\r\n\r\nfine-tune", "file"),
        (
            "name=\"purpose\"\r\n\r\nfine-tune\r\n--x\r\ncontent-disposition: form-data; name=\"tea\"\r\n\r\n1",
            "tea",
        ),
        ("name=\"expires_after[anchor]\"\r\n\r\n1", "expires_after"),
    ] {
        let body = format!("--x\r\ncontent-disposition: form-data; {form}\r\n--x--\r\n");
        let authorization = format!("Bearer {KEY}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "multipart/form-data; boundary=x"),
        ];
        let answer = stage
            .gateway
            .send("POST", "/v1/files", &headers, body)
            .await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.json()["error"]["param"], param);
    }
    let (status, code, _) = stage.ask(KEY, "POST", "/v1/files", json!({})).await.error();
    assert_eq!((status, code.as_str()), (400, "invalid_form"));
    assert!(stage.fakes.world.lock().repositories.is_empty());
}

#[tokio::test]
async fn a_job_is_a_training_job_on_a_commit_of_its_own() {
    let stage = Stage::start().await;
    let train = stage.upload("t.jsonl", CHAT).await;
    let valid = stage.upload("v.jsonl", &format!("{CHAT}\n{CHAT}")).await;
    let job = stage
        .create(json!({
            "model": "m", "training_file": train, "validation_file": valid, "suffix": "Sql",
            "seed": 5, "metadata": {"team": "x"},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        }))
        .await;
    assert_eq!(job["object"], "fine_tuning.job");
    assert_eq!(job["status"], "validating_files");
    assert_eq!(job["hyperparameters"]["n_epochs"], 2);
    assert_eq!(job["hyperparameters"]["batch_size"], "auto");
    for member in [
        "created_at",
        "finished_at",
        "error",
        "fine_tuned_model",
        "organization_id",
        "result_files",
        "trained_tokens",
        "integrations",
        "estimated_finish",
    ] {
        assert!(job.get(member).is_some(), "{member}");
    }
    let name = id(&job);
    {
        let world = stage.fakes.world.lock();
        let made = &world.jobs[&format!("team-a/{name}")];
        assert_eq!(made["spec"]["eval"]["path"], "valid.jsonl");
        assert_eq!(made["spec"]["dataset"]["path"], "train.jsonl");
        let repository = &world.repositories["team-a/openai-files"];
        let (branch, changes) = &repository.branches[&format!("jobs/{name}")];
        assert_eq!(
            made["spec"]["dataset"]["ref"]["commit"],
            branch.commit.to_string()
        );
        let paths: Vec<_> = changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(paths, ["train.jsonl", "valid.jsonl"]);
    }
    assert_eq!(stage.get(&format!("{JOBS}/{name}")).await, job);
    let theirs = stage
        .ask(OTHER, "GET", &format!("{JOBS}/{name}"), Value::Null)
        .await;
    assert_eq!(theirs.error().1, "fine_tuning_job_not_found");

    let second = stage
        .create(json!({"model": "team-a/m", "training_file": train}))
        .await;
    let list = stage.get(&format!("{JOBS}?limit=1")).await;
    assert_eq!(
        (id(&list["data"][0]), &list["has_more"]),
        (id(&second), &json!(true))
    );
    let rest = stage.get(&format!("{JOBS}?after={}", id(&second))).await;
    assert_eq!(id(&rest["data"][0]), name);
    let some = stage.get(&format!("{JOBS}?metadata[team]=x")).await;
    assert_eq!(some["data"].as_array().unwrap().len(), 1);
    let others = stage.get(&format!("{JOBS}?metadata=null")).await;
    assert_eq!(id(&others["data"][0]), id(&second));
}

#[tokio::test]
async fn a_job_that_cannot_be_is_refused_by_the_field_at_fault() {
    let stage = Stage::start().await;
    let chat = stage.upload("t.jsonl", CHAT).await;
    let preference = stage.upload("p.jsonl", PREFERENCE).await;
    for (body, status, code, param) in [
        (
            json!({"model": "n", "training_file": chat}),
            404,
            "model_not_found",
            "model",
        ),
        (
            json!({"model": "team-b/n", "training_file": chat}),
            404,
            "model_not_found",
            "model",
        ),
        (
            json!({"model": "m+sql", "training_file": chat}),
            400,
            "",
            "model",
        ),
        (
            json!({"model": "m", "training_file": "file-x"}),
            400,
            "file_not_found",
            "training_file",
        ),
        (
            json!({"model": "m", "training_file": chat, "validation_file": preference}),
            400,
            "invalid_file_format",
            "validation_file",
        ),
        (
            json!({"model": "m", "training_file": chat, "method": {"type": "dpo"}}),
            400,
            "invalid_file_format",
            "training_file",
        ),
        (
            json!({"model": "m", "training_file": chat, "x": 1}),
            400,
            "unknown_field",
            "x",
        ),
    ] {
        let answer = stage.ask(KEY, "POST", JOBS, body).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["param"]),
            (status, &json!(param)),
            "{answer:?}"
        );
        assert_eq!(error["code"].as_str().unwrap_or_default(), code);
    }
    // What the API server refuses leaves no data behind.
    stage.fakes.world.lock().refuse = Some(403);
    let body = json!({"model": "m", "training_file": chat});
    let (status, code, message) = stage.ask(KEY, "POST", JOBS, body).await.error();
    assert_eq!((status, code.as_str()), (400, "cluster_refused"));
    assert!(message.contains("the API server says Refused"), "{message}");
    let world = stage.fakes.world.lock();
    let branches = &world.repositories["team-a/openai-files"].branches;
    assert!(world.jobs.is_empty() && branches.keys().all(|name| !name.starts_with("jobs/")));
}

#[tokio::test]
async fn a_repeated_request_makes_one_object() {
    let stage = Stage::start().await;
    let first = stage.upload_as(Some("k1"), "a", CHAT).await.json();
    assert_eq!(stage.upload_as(Some("k1"), "a", CHAT).await.json(), first);
    let (status, code, _) = stage.upload_as(Some("k1"), "b", CHAT).await.error();
    assert_eq!((status, code.as_str()), (409, "idempotency_key_reused"));

    let authorization = format!("Bearer {KEY}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("idempotency-key", "k2"),
    ];
    let post = |body: Value| stage.gateway.send("POST", JOBS, &headers, body.to_string());
    let body = json!({"model": "m", "training_file": first["id"]});
    let (one, two) = tokio::join!(post(body.clone()), post(body.clone()));
    assert_eq!(one.json(), two.json(), "at the same time");
    assert_eq!(post(body).await.json(), one.json());
    let other = json!({"model": "m", "training_file": first["id"], "suffix": "s"});
    assert_eq!(post(other).await.error().1, "idempotency_key_reused");
    assert_eq!(stage.fakes.world.lock().jobs.len(), 1);
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_cancelled_for_good() {
    let stage = Stage::start().await;
    let train = stage.upload("t.jsonl", CHAT).await;
    let job = stage
        .create(json!({"model": "m", "training_file": train}))
        .await;
    let name = id(&job);
    stage.fakes.world.lock().races = 2;
    assert_eq!(stage.change(name, "pause").await.json()["status"], "paused");
    assert_eq!(
        stage.change(name, "pause").await.status,
        200,
        "it is so already"
    );
    assert_eq!(
        stage.change(name, "resume").await.json()["status"],
        "validating_files"
    );
    let cancelled = stage.change(name, "cancel").await.json();
    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled["finished_at"].is_i64());
    stage
        .fakes
        .edit(|job| assert_eq!(job["spec"]["suspend"], true));
    for verb in ["pause", "resume"] {
        let (status, code, _) = stage.change(name, verb).await.error();
        assert_eq!(
            (status, code.as_str()),
            (400, "invalid_job_state"),
            "{verb}"
        );
    }
    assert_eq!(stage.change(name, "cancel").await.json(), cancelled);
    let events = stage.get(&format!("{JOBS}/{name}/events")).await;
    assert_eq!(events["data"][0]["message"], "The job was cancelled");
}

#[tokio::test]
async fn events_and_checkpoints_are_what_the_cluster_says() {
    let stage = Stage::start().await;
    let train = stage.upload("t.jsonl", CHAT).await;
    let job = stage
        .create(json!({"model": "m", "training_file": train}))
        .await;
    let name = id(&job);
    let path = format!("{JOBS}/{name}/checkpoints");
    assert_eq!(stage.get(&path).await["data"], json!([]));
    let mut uid = Value::Null;
    stage.fakes.edit(|job| {
        uid = job["metadata"]["uid"].clone();
        job["status"] = json!({
            "inputs": {"modelCommit": "c", "repository": "team-a/m"},
            "conditions": [{"type": "Running", "status": "True", "reason": "Training",
                            "message": "It trains", "lastTransitionTime": "2026-01-01T00:05:00Z"}],
            "step": 20, "steps": 30, "checkpoint": {"step": 10, "commit": "aaaa", "time": "2026-01-01T00:04:00Z"},
            "curve": [{"step": 10, "loss": "1.5", "evalLoss": "1.75"}],
        });
    });
    stage.fakes.world.lock().events.push(json!({
        "kind": "Event", "apiVersion": "v1",
        "metadata": {"name": "e", "namespace": "team-a", "uid": "e-uid"}, "type": "Warning",
        "involvedObject": {"uid": uid}, "message": "no node has room",
        "lastTimestamp": "2026-01-01T00:06:00Z",
    }));
    let events = stage.get(&format!("{JOBS}/{name}/events?limit=2")).await;
    let told: Vec<_> = events["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["level"].as_str().unwrap(), e["message"].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ("warn", "no node has room"),
            ("info", "Training: It trains")
        ]
    );
    assert_eq!(events["has_more"], true);

    let known = stage.get(&path).await;
    let checkpoint = &known["data"][0];
    assert_eq!(checkpoint["step_number"], 10);
    assert_eq!(
        checkpoint["fine_tuned_model_checkpoint"],
        "hyprstream://team-a/m@aaaa"
    );
    assert_eq!(
        checkpoint["metrics"],
        json!({"step": 10.0, "train_loss": 1.5, "valid_loss": 1.75, "full_valid_loss": 1.75})
    );
    assert_eq!(checkpoint["created_at"], 1_767_225_840);
    stage.fakes.edit(|job| {
        let at = "2026-01-01T00:09:00Z";
        let condition = |kind: &str| {
            json!({"type": kind, "status": "True", "reason": "R", "message": "",
                   "lastTransitionTime": at})
        };
        job["status"]["conditions"] = json!([condition("Complete"), condition("GatePassed")]);
        job["status"]["completionTime"] = json!(at);
        job["status"]["output"] = json!({"repository": "team-a/m", "branch": "train/x",
            "commit": "bbbb", "path": "p", "digest": "d", "sha256": "s", "adapter": "ft-1"});
    });
    let done = stage.get(&format!("{JOBS}/{name}")).await;
    assert_eq!(
        (&done["status"], &done["fine_tuned_model"]),
        (&json!("succeeded"), &json!("m+ft-1"))
    );
    let known = stage.get(&path).await;
    assert_eq!(known["data"][0]["fine_tuned_model_checkpoint"], "m+ft-1");
    assert_eq!(known["data"].as_array().unwrap().len(), 2);
    assert_eq!(
        stage.change(name, "cancel").await.error().1,
        "invalid_job_state"
    );
}

#[tokio::test]
async fn a_registry_that_is_down_is_no_fault_of_the_client() {
    let stage = Stage::start().await;
    std::fs::remove_file(stage.folder.path().join("token")).unwrap();
    let answer = stage.ask(KEY, "GET", "/v1/files", Value::Null).await;
    let (status, code, message) = answer.error();
    assert_eq!((status, code.as_str()), (503, "registry_unavailable"));
    assert!(!message.contains("token"), "{message}");
    assert!(answer.head.contains("retry-after: 5"));
}

#[tokio::test]
async fn the_data_of_a_job_that_is_gone_go_and_of_others_stay() {
    let stage = Stage::start().await;
    let file = stage.upload("d.jsonl", &format!("{CHAT}\n")).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let job = stage
            .create(json!({"model": "m", "training_file": file}))
            .await;
        ids.push(id(&job).to_owned());
    }
    let branches = || -> Vec<String> {
        let world = stage.fakes.world.lock();
        let repository = &world.repositories["team-a/openai-files"];
        let of_jobs = repository
            .branches
            .keys()
            .filter(|b| b.starts_with("jobs/"));
        of_jobs.cloned().collect()
    };
    assert_eq!(stage.api.sweep_data().await, 0);
    assert_eq!(branches().len(), 4);
    {
        let mut world = stage.fakes.world.lock();
        // One is gone, one is gone and just made, and one has lost its label.
        world.jobs.remove(&format!("team-a/{}", ids[0]));
        world.jobs.remove(&format!("team-a/{}", ids[1]));
        let job = world.jobs.get_mut(&format!("team-a/{}", ids[2])).unwrap();
        job["metadata"]["labels"] = json!({});
        let branches = &mut world
            .repositories
            .get_mut("team-a/openai-files")
            .unwrap()
            .branches;
        let young = branches.get_mut(&format!("jobs/{}", ids[1])).unwrap();
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        young.0.committed_at = i64::try_from(since.unwrap().as_secs()).unwrap();
        // Somebody pushed that.
        let theirs = branches[&format!("jobs/{}", ids[3])].clone();
        branches.insert("jobs/of-mine".to_owned(), theirs);
        world.hide = Some(403);
    }
    assert_eq!(
        stage.api.sweep_data().await,
        0,
        "nobody knows which are gone"
    );
    stage.fakes.world.lock().hide = None;
    assert_eq!(stage.api.sweep_data().await, 1);
    let left = branches();
    assert!(!left.contains(&format!("jobs/{}", ids[0])), "{left:?}");
    assert_eq!(left.len(), 4, "{left:?}");
    stage.get(&format!("/v1/files/{file}")).await;
}

#[tokio::test]
async fn a_repetition_keeps_its_data_from_a_sweep_that_has_begun() {
    let stage = Stage::start().await;
    let file = stage.upload("d.jsonl", &format!("{CHAT}\n")).await;
    let authorization = format!("Bearer {KEY}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("idempotency-key", "k"),
    ];
    let body = json!({"model": "m", "training_file": file}).to_string();
    let post = || stage.gateway.send("POST", JOBS, &headers, body.clone());
    // It breaks off between the data and the job; by the fake's clock that is long ago.
    stage.fakes.world.lock().refuse = Some(500);
    assert_eq!(post().await.error().0, 503);
    let data = || {
        let world = stage.fakes.world.lock();
        let branches = &world.repositories["team-a/openai-files"].branches;
        let branch = branches.iter().find(|(name, _)| name.starts_with("jobs/"));
        branch.map(|(_, (branch, _))| branch.commit.to_string())
    };
    let first = data().unwrap();
    let (asked, is_asked) = oneshot::channel();
    let (go_on, goes_on) = oneshot::channel();
    stage.fakes.world.lock().hold = Some((asked, goes_on));
    let sweep = tokio::spawn({
        let api = Arc::clone(&stage.api);
        async move { api.sweep_data().await }
    });
    is_asked.await.unwrap();
    post().await.json();
    go_on.send(()).unwrap();
    assert_eq!(sweep.await.unwrap(), 0);
    let second = data().expect("the job's data");
    assert_ne!(first, second);
    let world = stage.fakes.world.lock();
    let job = world.jobs.values().next().unwrap();
    assert_eq!(job["spec"]["dataset"]["ref"]["commit"], json!(second));
}
