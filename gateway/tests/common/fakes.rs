//! A registry and an API server, as far as the fine-tuning API asks them, in memory.
#![allow(dead_code, unreachable_pub, reason = "each user takes a part")]

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use hyprstream_contract::{
    CommitId,
    repositories::{
        Branch, BranchPage, CommitRequest, Committed, FileChange, FileContent, MergeRefusal,
        REFERENCE_MOVED,
    },
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, sync::oneshot};

pub const TOKEN: &str = "the-gateways-token";

#[derive(Default)]
pub struct Repository {
    pub branches: BTreeMap<String, (Branch, Vec<FileChange>)>,
    pub objects: HashMap<String, Bytes>,
}

/// What both hold.
#[derive(Default)]
pub struct World {
    pub repositories: HashMap<String, Repository>,
    /// By `NAMESPACE/NAME`.
    pub jobs: BTreeMap<String, Value>,
    pub events: Vec<Value>,
    /// Status with which the API server answers the next creation.
    pub refuse: Option<u16>,
    /// Status with which the API server answers whoever lists jobs.
    pub hide: Option<u16>,
    /// Changes of jobs that others make just before ours.
    pub races: u32,
    /// Holds the next answer about one job: tells that it is asked for, and waits.
    pub hold: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>,
    count: u64,
}

type Shared = Arc<Mutex<World>>;

#[derive(Clone)]
pub struct Fakes {
    pub world: Shared,
    pub address: SocketAddr,
}

impl Fakes {
    pub async fn start() -> Self {
        let world = Shared::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let jobs = "/apis/hyprstream.io/v1alpha1/namespaces/{ns}/trainingjobs";
        let app = Router::new()
            .route("/api/v1/commits", post(commit))
            .route(
                "/api/v1/branches/{ns}/{name}",
                get(branches).delete(delete_branch),
            )
            .route("/git/{ns}/{name}/info/lfs/objects/batch", post(batch))
            .route(
                "/git/{ns}/{name}/info/lfs/objects/verify",
                post(|| async {}),
            )
            .route(
                "/git/{ns}/{name}/info/lfs/objects/{oid}",
                put(upload).get(download),
            )
            .route(jobs, post(create_job).get(list_jobs))
            .route(&format!("{jobs}/{{name}}"), get(get_job).patch(patch_job))
            .route("/api/v1/namespaces/{ns}/events", get(list_events))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&world));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { world, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the only job there is.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut world = self.world.lock();
        assert_eq!(world.jobs.len(), 1);
        change(world.jobs.values_mut().next().unwrap());
    }
}

fn knows(headers: &HeaderMap) -> bool {
    headers
        .get("authorization")
        .is_some_and(|value| value == &format!("Bearer {TOKEN}"))
}

fn refusal(status: StatusCode, reason: &str) -> Response {
    let body = json!({"reason": reason, "message": format!("it is {reason}"), "retriable": false});
    (status, Json(body)).into_response()
}

async fn commit(
    State(world): State<Shared>,
    headers: HeaderMap,
    Json(request): Json<CommitRequest>,
) -> Response {
    if !knows(&headers) {
        return refusal(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let mut world = world.lock();
    world.count += 1;
    let made: CommitId = format!("{:040x}", world.count).parse().unwrap();
    let committed_at = i64::try_from(world.count).unwrap();
    let repository = world
        .repositories
        .entry(request.repository.clone())
        .or_default();
    let there = repository.branches.get(&request.branch);
    if let Some(expected) = &request.expected
        && there.map(|(branch, _)| &branch.commit) != expected.as_ref()
    {
        let refusal = MergeRefusal {
            reason: REFERENCE_MOVED.to_owned(),
            message: "it moved".to_owned(),
            retriable: false,
            paths: Vec::new(),
        };
        return (StatusCode::CONFLICT, Json(refusal)).into_response();
    }
    for change in &request.changes {
        if let FileContent::Lfs { oid, size } = &change.content
            && repository.objects.get(oid).map(|o| o.len() as u64) != Some(*size)
        {
            return refusal(StatusCode::UNPROCESSABLE_ENTITY, "ObjectMissing");
        }
    }
    let branch = Branch {
        name: request.branch.clone(),
        commit: made.clone(),
        message: request.message,
        committed_at,
    };
    repository
        .branches
        .insert(request.branch, (branch, request.changes));
    (StatusCode::CREATED, Json(Committed { commit: made })).into_response()
}

async fn branches(
    State(world): State<Shared>,
    Path((ns, name)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let world = world.lock();
    let Some(repository) = world.repositories.get(&format!("{ns}/{name}")) else {
        return refusal(StatusCode::NOT_FOUND, "RepositoryNotFound");
    };
    let all = repository
        .branches
        .values()
        .map(|(branch, _)| branch.clone());
    let text = |name: &str| query.get(name).map(String::as_str);
    let matching = |branch: &Branch| match text("branch") {
        Some(one) => branch.name == one,
        None => {
            branch.name.starts_with(text("prefix").unwrap_or_default())
                && text("after").is_none_or(|after| branch.name.as_str() > after)
        }
    };
    // Smaller pages than are asked for, so that they are put together.
    let mut branches: Vec<Branch> = all.filter(matching).collect();
    let has_more = branches.len() > 2;
    branches.truncate(2);
    Json(BranchPage { branches, has_more }).into_response()
}

async fn delete_branch(
    State(world): State<Shared>,
    Path((ns, name)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let mut world = world.lock();
    let repository = world.repositories.get_mut(&format!("{ns}/{name}"));
    let Some(branches) = repository.map(|repository| &mut repository.branches) else {
        return refusal(StatusCode::NOT_FOUND, "RepositoryNotFound");
    };
    let branch = &query["branch"];
    let commit = branches.get(branch).map(|(branch, _)| &branch.commit);
    match (commit, query.get("commit")) {
        (None, _) => return refusal(StatusCode::NOT_FOUND, "BranchNotFound"),
        (Some(is), Some(expected)) if is.as_str() != expected => {
            return refusal(StatusCode::CONFLICT, REFERENCE_MOVED);
        }
        _ => branches.remove(branch),
    };
    StatusCode::NO_CONTENT.into_response()
}

async fn batch(
    State(world): State<Shared>,
    Path((ns, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Response {
    let world = world.lock();
    let repository = format!("{ns}/{}", name.trim_end_matches(".git"));
    let Some(found) = world.repositories.get(&repository) else {
        return refusal(StatusCode::NOT_FOUND, "RepositoryNotFound");
    };
    let host = headers["host"].to_str().unwrap();
    let object = &request["objects"][0];
    let oid = object["oid"].as_str().unwrap();
    let base = format!("http://{host}/git/{repository}.git/info/lfs/objects");
    let action = |path: &str| json!({"href": format!("{base}/{path}"), "header": {"x-lfs": "1"}});
    let actions = match (
        request["operation"].as_str().unwrap(),
        found.objects.contains_key(oid),
    ) {
        ("upload", false) => json!({"upload": action(oid), "verify": action("verify")}),
        ("upload", true) => json!(null),
        (_, true) => json!({"download": action(oid)}),
        (_, false) => {
            let error = json!({"code": 404, "message": "it is not there"});
            return Json(json!({"objects": [{"oid": oid, "error": error}]})).into_response();
        }
    };
    Json(json!({"transfer": "basic", "objects": [{"oid": oid, "size": 1, "actions": actions}]}))
        .into_response()
}

async fn upload(
    State(world): State<Shared>,
    Path((ns, name, oid)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    assert!(knows(&headers) && headers.contains_key("x-lfs"));
    if format!("{:x}", Sha256::digest(&body)) != oid {
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    let repository = format!("{ns}/{}", name.trim_end_matches(".git"));
    let mut world = world.lock();
    let repository = world.repositories.get_mut(&repository).unwrap();
    repository.objects.insert(oid, body);
    StatusCode::OK
}

async fn download(
    State(world): State<Shared>,
    Path((ns, name, oid)): Path<(String, String, String)>,
) -> Bytes {
    let repository = format!("{ns}/{}", name.trim_end_matches(".git"));
    world.lock().repositories[&repository].objects[&oid].clone()
}

fn status(code: u16, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                      "reason": reason, "message": format!("the API server says {reason}")});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}

async fn create_job(
    State(world): State<Shared>,
    Path(ns): Path<String>,
    Json(mut job): Json<Value>,
) -> Response {
    let mut world = world.lock();
    if let Some(code) = world.refuse.take() {
        return status(code, "Refused");
    }
    let key = format!("{ns}/{}", job["metadata"]["name"].as_str().unwrap());
    if world.jobs.contains_key(&key) {
        return status(409, "AlreadyExists");
    }
    world.count += 1;
    let at = format!("2026-01-01T00:00:{:02}Z", world.count % 60);
    job["metadata"]["uid"] = json!(format!("uid-{}", world.count));
    job["metadata"]["resourceVersion"] = json!("1");
    job["metadata"]["creationTimestamp"] = json!(at);
    world.jobs.insert(key, job.clone());
    (StatusCode::CREATED, Json(job)).into_response()
}

async fn list_jobs(
    State(world): State<Shared>,
    Path(ns): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    assert_eq!(query["labelSelector"], "hyprstream.io/fine-tuning=true");
    let world = world.lock();
    if let Some(code) = world.hide {
        return status(code, "Hidden");
    }
    let own = |(key, job): (&String, &Value)| {
        let is_labelled = job["metadata"]["labels"]["hyprstream.io/fine-tuning"] == "true";
        (key.starts_with(&format!("{ns}/")) && is_labelled).then(|| job.clone())
    };
    let items: Vec<Value> = world.jobs.iter().filter_map(own).collect();
    Json(
        json!({"kind": "TrainingJobList", "apiVersion": "hyprstream.io/v1alpha1",
                "metadata": {}, "items": items}),
    )
    .into_response()
}

async fn get_job(
    State(world): State<Shared>,
    Path((ns, name)): Path<(String, String)>,
) -> Response {
    let (found, hold) = {
        let mut world = world.lock();
        let found = world.jobs.get(&format!("{ns}/{name}")).cloned();
        (found, world.hold.take())
    };
    if let Some((asked, go_on)) = hold {
        asked.send(()).unwrap();
        go_on.await.unwrap();
    }
    match found {
        Some(job) => Json(job).into_response(),
        None => status(404, "NotFound"),
    }
}

async fn patch_job(
    State(world): State<Shared>,
    Path((ns, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let patch: Value = serde_json::from_slice(&body).unwrap();
    let mut world = world.lock();
    let races = world.races > 0;
    world.races = world.races.saturating_sub(1);
    let Some(job) = world.jobs.get_mut(&format!("{ns}/{name}")) else {
        return status(404, "NotFound");
    };
    let version: u64 = job["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    if races {
        job["metadata"]["resourceVersion"] = json!((version + 1).to_string());
    }
    if patch["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"] {
        return status(409, "Conflict");
    }
    merge(job, &patch);
    job["metadata"]["resourceVersion"] = json!((version + 2).to_string());
    Json(job.clone()).into_response()
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in patch {
        merge(&mut into[name], value);
    }
}

async fn list_events(
    State(world): State<Shared>,
    Path(ns): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let world = world.lock();
    let uid = query["fieldSelector"]
        .strip_prefix("involvedObject.uid=")
        .unwrap();
    let own = |event: &&Value| {
        event["involvedObject"]["uid"] == uid && event["metadata"]["namespace"] == ns
    };
    let items: Vec<&Value> = world.events.iter().filter(own).collect();
    Json(json!({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": items}))
        .into_response()
}
