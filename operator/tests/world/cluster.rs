//! An API server in memory: as much of one as the operator uses, and a log of what it asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// Resource (as `apps/v1/deployments`), namespace, name.
pub type Key = (String, String, String);

/// The cluster.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<Inner>>,
    events: broadcast::Sender<Change>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    applied: BTreeMap<(Key, String), Value>,
    /// Identities of objects that were removed.
    gone: BTreeSet<String>,
    history: Vec<Change>,
    log: Vec<String>,
    refuse: BTreeMap<String, (u16, String)>,
    hidden: Option<String>,
}

#[derive(Clone, Debug)]
struct Change {
    version: u64,
    kind: &'static str,
    key: Key,
    object: Value,
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::channel(1 << 16).0,
        }
    }

    /// Serves it on a port of its own; returns the URL.
    pub async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(handle).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.state.lock().unwrap().objects.get(&key).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state
            .objects
            .iter()
            .filter(|(k, _)| k.0 == resource)
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// Writes an object as another client would; `null` deletes it.
    pub fn put(&self, resource: &str, object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        let key = key_of(resource, &object);
        self.store(&mut state, &key, object)
    }

    /// Changes an object, if it is there.
    pub fn change(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let mut state = self.state.lock().unwrap();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = state.objects.get(&key).cloned() {
            change(&mut object);
            self.store(&mut state, &key, object);
        }
    }

    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.remove(&mut state, &key);
    }

    /// Requests that change something, as `METHOD path`, without Leases.
    pub fn writes(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .log
            .iter()
            .filter(|l| !l.starts_with("GET") && !l.contains("leases"))
            .cloned()
            .collect()
    }

    /// From now on, writes whose `METHOD path` holds `part` are answered with an error.
    pub fn refuse(&self, part: &str, answer: Option<(u16, &str)>) {
        let mut state = self.state.lock().unwrap();
        match answer {
            Some((code, message)) => {
                state
                    .refuse
                    .insert(part.to_owned(), (code, message.to_owned()));
            }
            None => {
                state.refuse.remove(part);
            }
        }
    }

    /// From now on there is no such resource, as before its CRD is there.
    pub fn hide(&self, resource: Option<&str>) {
        self.state.lock().unwrap().hidden = resource.map(str::to_owned);
    }

    fn store(&self, state: &mut Inner, key: &Key, mut object: Value) -> Value {
        let old = state.objects.get(key).cloned();
        if let Some(old) = &old {
            object["metadata"]["uid"] = old["metadata"]["uid"].clone();
            object["metadata"]["creationTimestamp"] = old["metadata"]["creationTimestamp"].clone();
            object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            object["metadata"]["generation"] = old["metadata"]["generation"].clone();
            if object == *old {
                return object;
            }
            if object["spec"] != old["spec"] {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
                object["metadata"]["generation"] = json!(generation + 1);
            }
        } else {
            state.uids += 1;
            object["metadata"]["uid"] = json!(format!("uid-{}", state.uids));
            let now = k8s_openapi::jiff::Timestamp::now();
            object["metadata"]["creationTimestamp"] = json!(now.to_string());
            object["metadata"]["generation"] = json!(1);
        }
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(key.clone(), object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(state, kind, key.clone(), object.clone());
        // Made for an owner that had gone by then: the garbage collector finds it later.
        let owners = object["metadata"]["ownerReferences"].as_array();
        let is_gone = |owner: &Value| {
            let uid = owner["uid"].as_str();
            uid.is_some_and(|uid| state.gone.contains(uid))
        };
        if owners.is_some_and(|owners| !owners.is_empty() && owners.iter().all(is_gone)) {
            self.remove(state, key);
        }
        object
    }

    /// Removes an object and, as the garbage collector does, what it owns.
    fn remove(&self, state: &mut Inner, key: &Key) {
        let Some(mut object) = state.objects.remove(key) else {
            return;
        };
        state.applied.retain(|(k, _), _| k != key);
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let uid = object["metadata"]["uid"].clone();
        state.gone.extend(uid.as_str().map(str::to_owned));
        self.tell(state, "DELETED", key.clone(), object);
        let owned: Vec<Key> = state
            .objects
            .iter()
            .filter(|(_, o)| {
                o["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|refs| refs.iter().any(|r| r["uid"] == uid))
            })
            .map(|(k, _)| k.clone())
            .collect();
        for key in owned {
            self.remove(state, &key);
        }
    }

    fn tell(&self, state: &mut Inner, kind: &'static str, key: Key, object: Value) {
        let change = Change {
            version: state.version,
            kind,
            key,
            object,
        };
        state.history.push(change.clone());
        let _ = self.events.send(change);
    }
}

struct Target {
    resource: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

fn parse(path: &str) -> Option<Target> {
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next()? {
        "api" => parts.next()?.to_owned(),
        "apis" => format!("{}/{}", parts.next()?, parts.next()?),
        _ => return None,
    };
    let mut next = parts.next()?;
    let mut namespace = String::new();
    if next == "namespaces" {
        parts.next()?.clone_into(&mut namespace);
        next = parts.next()?;
    }
    Some(Target {
        resource: format!("{group}/{next}"),
        namespace,
        name: parts.next().map(str::to_owned),
        subresource: parts.next().map(str::to_owned),
    })
}

async fn handle(
    State(cluster): State<Cluster>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let Some(target) = parse(uri.path()) else {
        return failure(404, "NotFound", "no such path");
    };
    let body: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
    {
        let mut state = cluster.state.lock().unwrap();
        state.log.push(format!("{method} {}", uri.path()));
        if method != Method::GET
            && let Some((_, (code, message))) = state
                .refuse
                .iter()
                .find(|(part, _)| format!("{method} {}", uri.path()).contains(part.as_str()))
        {
            let reason = if *code == 403 { "Forbidden" } else { "Invalid" };
            return failure(*code, reason, message);
        }
        if state.hidden.as_ref() == Some(&target.resource) {
            return failure(404, "NotFound", "the server could not find the resource");
        }
    }
    match (method, &target.name) {
        (Method::GET, None) if query.contains_key("watch") => cluster.watch(&target, &query),
        (Method::GET, None) => cluster.answer_list(&target, &query),
        (Method::GET, Some(name)) => match cluster.get(&target.resource, &target.namespace, name) {
            Some(object) => Json(object).into_response(),
            None => failure(404, "NotFound", "not found"),
        },
        (Method::POST, None) => cluster.create(&target, body),
        (Method::PUT, Some(_)) => cluster.replace(&target, body),
        (Method::PATCH, Some(_)) => {
            let kind = headers.get("content-type").unwrap().to_str().unwrap();
            // The lists that are patched so have the items of the patch afterwards.
            let merges = [
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ];
            if merges.contains(&kind) {
                return cluster.amend(&target, &body);
            }
            assert_eq!(
                kind, "application/apply-patch+yaml",
                "nothing else is known here"
            );
            let manager = query.get("fieldManager").cloned().unwrap_or_default();
            cluster.apply(&target, &manager, body)
        }
        (Method::DELETE, Some(_)) => cluster.answer_delete(&target, &body),
        _ => failure(405, "MethodNotAllowed", "not known here"),
    }
}

impl Cluster {
    fn answer_list(&self, target: &Target, query: &BTreeMap<String, String>) -> Response {
        let state = self.state.lock().unwrap();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(key, object)| is_selected(target, query, key, object))
            .map(|(_, object)| object)
            .collect();
        Json(json!({
            "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": state.version.to_string()},
        }))
        .into_response()
    }

    fn watch(&self, target: &Target, query: &BTreeMap<String, String>) -> Response {
        let after: u64 = query
            .get("resourceVersion")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let state = self.state.lock().unwrap();
        let live = BroadcastStream::new(self.events.subscribe()).map(|c| c.expect("no lag"));
        let past: Vec<Change> = state
            .history
            .iter()
            .filter(|c| c.version > after)
            .cloned()
            .collect();
        let (resource, namespace) = (target.resource.clone(), target.namespace.clone());
        let query = query.clone();
        let lines = futures::stream::iter(past)
            .chain(live)
            .filter_map(move |change| {
                let target = Target {
                    resource: resource.clone(),
                    namespace: namespace.clone(),
                    name: None,
                    subresource: None,
                };
                let line = is_selected(&target, &query, &change.key, &change.object).then(|| {
                    json!({"type": change.kind, "object": change.object}).to_string() + "\n"
                });
                async move { line.map(Ok::<_, std::convert::Infallible>) }
            });
        Response::new(Body::from_stream(lines))
    }

    fn create(&self, target: &Target, mut object: Value) -> Response {
        let mut state = self.state.lock().unwrap();
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        let key = key_of(&target.resource, &object);
        if state.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", "already exists");
        }
        (
            StatusCode::CREATED,
            Json(self.store(&mut state, &key, object)),
        )
            .into_response()
    }

    fn replace(&self, target: &Target, object: Value) -> Response {
        let mut state = self.state.lock().unwrap();
        let key = key(target);
        let Some(old) = state.objects.get(&key) else {
            return failure(404, "NotFound", "not found");
        };
        if old["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return failure(409, "Conflict", "the object has been modified");
        }
        Json(self.store(&mut state, &key, object)).into_response()
    }

    /// A merge patch, of which no test removes anything.
    fn amend(&self, target: &Target, patch: &Value) -> Response {
        let mut state = self.state.lock().unwrap();
        let key = key(target);
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        let wanted = &patch["metadata"]["uid"];
        if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
            return failure(409, "Conflict", "uid mismatch");
        }
        merge(&mut object, patch);
        Json(self.store(&mut state, &key, object)).into_response()
    }

    /// Server-side apply: fields that this manager applied before and not now are removed.
    fn apply(&self, target: &Target, manager: &str, mut patch: Value) -> Response {
        let mut state = self.state.lock().unwrap();
        let key = key(target);
        let old = state.objects.get(&key).cloned();
        let is_status = target.subresource.as_deref() == Some("status");
        if old.is_none() && is_status {
            return failure(404, "NotFound", "not found");
        }
        let wanted = patch["metadata"]["uid"].take();
        if let Some(old) = &old
            && !wanted.is_null()
            && wanted != old["metadata"]["uid"]
        {
            return failure(409, "Conflict", "uid mismatch");
        }
        strip_nulls(&mut patch);
        let mut object = old.unwrap_or_else(|| json!({}));
        let subresource = target.subresource.as_deref().unwrap_or_default();
        let slot = (key.clone(), format!("{subresource}/{manager}"));
        if let Some(before) = state.applied.get(&slot) {
            subtract(&mut object, before, &patch);
        }
        if is_status {
            merge(&mut object["status"], &patch["status"]);
        } else {
            merge(&mut object, &patch);
        }
        state.applied.insert(slot, patch);
        Json(self.store(&mut state, &key, object)).into_response()
    }

    fn answer_delete(&self, target: &Target, options: &Value) -> Response {
        let mut state = self.state.lock().unwrap();
        let key = key(target);
        let Some(object) = state.objects.get(&key).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        let wanted = &options["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
            return failure(409, "Conflict", "uid mismatch");
        }
        self.remove(&mut state, &key);
        Json(object).into_response()
    }
}

fn key(target: &Target) -> Key {
    let name = target.name.clone().expect("a request about one object");
    (target.resource.clone(), target.namespace.clone(), name)
}

fn key_of(resource: &str, object: &Value) -> Key {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    (
        resource.to_owned(),
        text(&meta["namespace"]),
        text(&meta["name"]),
    )
}

fn is_selected(
    target: &Target,
    query: &BTreeMap<String, String>,
    key: &Key,
    object: &Value,
) -> bool {
    let pairs = |name: &str| -> Vec<(String, String)> {
        let text = query.get(name).cloned().unwrap_or_default();
        text.split(',')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.trim_start_matches('=').to_owned()))
            .collect()
    };
    key.0 == target.resource
        && (target.namespace.is_empty() || key.1 == target.namespace)
        && pairs("labelSelector")
            .iter()
            .all(|(k, v)| object["metadata"]["labels"][k].as_str() == Some(v))
        && pairs("fieldSelector").iter().all(|(k, v)| {
            object
                .pointer(&format!("/{}", k.replace('.', "/")))
                .and_then(Value::as_str)
                == Some(v)
        })
}

fn strip_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, v| !v.is_null());
        map.values_mut().for_each(strip_nulls);
    }
}

fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(object.entry(name).or_insert(Value::Null), value);
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}

fn subtract(object: &mut Value, before: &Value, now: &Value) {
    let (Value::Object(object), Value::Object(before)) = (object, before) else {
        return;
    };
    for (name, value) in before {
        match now.get(name) {
            None => {
                object.remove(name);
            }
            Some(now) => {
                if let Some(inner) = object.get_mut(name) {
                    subtract(inner, value, now);
                }
            }
        }
    }
}

fn failure(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message, "metadata": {},
        "details": {"causes": if message.contains("being terminated") {
            json!([{"reason": "NamespaceTerminating", "message": message, "field": ""}])
        } else {
            json!([])
        }},
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}
