//! A registry that says what a test wants.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use hyprstream_contract::{
    CommitId,
    adapters::{ADAPTERS_PATH, AdapterList, ListedModels, Stored},
    grants::{GRANTS_PATH, Grant, KeptGrants, is_handle},
    registry::{
        ApiError, Change, Credentials, EVENTS_PATH, EventPage, MIRRORS_PATH, MirrorRequest,
        MirrorState, MirrorStatus, PushEvent, RESOLVE_PATH, ResolveRequest, ResolveResponse,
        Upstream,
    },
    repositories::{FORKS_PATH, Fork, ForkRequest},
};
use tokio::sync::{Notify, watch};

/// What URLs begin with of which nothing is ever heard.
pub const SILENT: &str = "https://silent.example.org/";

#[derive(Clone, Default)]
pub struct FakeRegistry {
    state: Arc<Mutex<Inner>>,
    pushed: Arc<Notify>,
    /// Whether questions for commits wait.
    is_held: Arc<watch::Sender<bool>>,
    /// Questions for mirrors wait.
    holds_mirrors: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct Inner {
    /// What a URL resolves to.
    heads: BTreeMap<String, Result<CommitId, ApiError>>,
    /// The token that a URL wants.
    tokens: BTreeMap<String, String>,
    /// Mirrors that are not ready at once.
    mirrors: BTreeMap<String, (MirrorState, u64, Option<ApiError>)>,
    events: Vec<PushEvent>,
    resolves: usize,
    /// As `resolves`, with those that are never answered.
    asked: usize,
    is_down: bool,
    /// The commits of which a mirror was asked for with what the URL wants, one for each question.
    mirrored: Vec<CommitId>,
    /// The lists of adapters, by `NAMESPACE/MODEL`.
    lists: BTreeMap<String, AdapterList>,
    /// Each write of one: the Model, and its list unless it was deleted.
    written: Vec<(String, Option<AdapterList>)>,
    /// Repositories that were asked for.
    forks: Vec<ForkRequest>,
    refuses_forks: bool,
    /// What volumes open, by handle.
    grants: BTreeMap<String, Grant>,
    /// Each grant that was put.
    granted: Vec<(String, Grant)>,
    refuses_grants: bool,
}

impl Inner {
    /// The answer to who has not the token that the URL wants.
    fn refuse(&self, upstream: &Upstream) -> Option<Response> {
        let token = self.tokens.get(&upstream.url)?;
        if upstream.credentials == Some(Credentials::Token(token.clone())) {
            return None;
        }
        let error = refusal(
            "AuthenticationFailed",
            "the upstream wants other credentials",
            false,
        );
        Some((StatusCode::UNAUTHORIZED, Json(error)).into_response())
    }
}

impl FakeRegistry {
    pub async fn serve(&self) -> url::Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let app = Router::new()
            .route(RESOLVE_PATH, post(resolve))
            .route(MIRRORS_PATH, post(mirror))
            .route(EVENTS_PATH, get(events))
            .route(FORKS_PATH, post(fork))
            .route(GRANTS_PATH, get(list_grants))
            .route(
                &format!("{GRANTS_PATH}/{{handle}}"),
                put(put_grant).delete(delete_grant),
            )
            .route(ADAPTERS_PATH, get(list_lists))
            .route(
                &format!("{ADAPTERS_PATH}/{{namespace}}/{{model}}"),
                get(get_list).put(put_list).delete(delete_list),
            )
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    pub fn set_head(&self, url: &str, head: Result<&str, ApiError>) {
        let head = head.map(|commit| commit.parse().unwrap());
        self.state
            .lock()
            .unwrap()
            .heads
            .insert(url.to_owned(), head);
    }

    pub fn want_token(&self, url: &str, token: &str) {
        self.state
            .lock()
            .unwrap()
            .tokens
            .insert(url.to_owned(), token.to_owned());
    }

    pub fn set_mirror(&self, commit: &str, state: MirrorState, done: u64, error: Option<ApiError>) {
        let mut inner = self.state.lock().unwrap();
        inner
            .mirrors
            .insert(commit.to_owned(), (state, done, error));
    }

    /// What volumes open, by handle.
    pub fn grants(&self) -> BTreeMap<String, Grant> {
        self.state.lock().unwrap().grants.clone()
    }

    /// Each grant of a volume that was put, in order.
    pub fn granted(&self, handle: &str) -> Vec<Grant> {
        let inner = self.state.lock().unwrap();
        let own = inner.granted.iter().filter(|(of, _)| of == handle);
        own.map(|(_, grant)| grant.clone()).collect()
    }

    /// As one that lost its disk.
    pub fn forget_grants(&self) {
        self.state.lock().unwrap().grants.clear();
    }

    /// Keeps a grant that no operator put there.
    pub fn restore_grant(&self, handle: &str, grant: Grant) {
        let mut inner = self.state.lock().unwrap();
        inner.grants.insert(handle.to_owned(), grant);
    }

    pub fn refuse_grants(&self, refuses: bool) {
        self.state.lock().unwrap().refuses_grants = refuses;
    }

    /// The list of adapters of `NAMESPACE/MODEL`.
    pub fn list(&self, model: &str) -> Option<AdapterList> {
        self.state.lock().unwrap().lists.get(model).cloned()
    }

    /// Keeps a list that no operator put there, as one that was restored.
    pub fn restore_list(&self, model: &str, list: AdapterList) {
        let mut inner = self.state.lock().unwrap();
        inner.lists.insert(model.to_owned(), list);
    }

    /// Served names on the list of `NAMESPACE/MODEL`.
    pub fn names(&self, model: &str) -> Vec<String> {
        let list = self.list(model).unwrap_or_default();
        list.adapters.into_iter().map(|entry| entry.name).collect()
    }

    /// Each write of a list of `NAMESPACE/MODEL`: how many adapters it has.
    pub fn written(&self, model: &str) -> Vec<usize> {
        let inner = self.state.lock().unwrap();
        let own = inner.written.iter().filter(|(name, _)| name == model);
        own.map(|(_, list)| list.as_ref().map_or(0, |list| list.adapters.len()))
            .collect()
    }

    /// Repositories that were asked for and made.
    pub fn forks(&self) -> Vec<ForkRequest> {
        self.state.lock().unwrap().forks.clone()
    }

    pub fn refuse_forks(&self, refuses: bool) {
        self.state.lock().unwrap().refuses_forks = refuses;
    }

    pub fn set_down(&self, is_down: bool) {
        self.state.lock().unwrap().is_down = is_down;
    }

    /// Lets questions for commits wait, or no longer.
    pub fn hold(&self, is_held: bool) {
        self.is_held.send_replace(is_held);
    }

    /// Lets questions for mirrors wait, or no longer.
    pub fn hold_mirrors(&self, is_held: bool) {
        self.holds_mirrors.send_replace(is_held);
    }

    pub fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    /// How often a mirror of the commit was asked for.
    pub fn asked_for(&self, commit: &str) -> usize {
        let inner = self.state.lock().unwrap();
        let asked = inner.mirrored.iter();
        asked.filter(|asked| asked.as_str() == commit).count()
    }

    pub fn resolves(&self) -> usize {
        self.state.lock().unwrap().resolves
    }

    /// A push to `hyprstream://namespace/name`, of which the registry does not say who made it.
    pub fn push(&self, namespace: &str, name: &str, commit: &str) {
        self.set_head(&format!("hyprstream://{namespace}/{name}"), Ok(commit));
        self.tell(namespace, name, None);
    }

    /// A change of `hyprstream://namespace/name` of which the registry says who made it.
    pub fn change(&self, namespace: &str, name: &str, change: Change) {
        if let Some(commit) = &change.new {
            self.set_head(&format!("hyprstream://{namespace}/{name}"), Ok(commit));
        }
        self.tell(namespace, name, Some(change));
    }

    fn tell(&self, namespace: &str, name: &str, change: Option<Change>) {
        let mut inner = self.state.lock().unwrap();
        let sequence = inner.events.len() as u64 + 1;
        inner.events.push(PushEvent {
            sequence,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            change,
        });
        drop(inner);
        self.pushed.notify_waiters();
    }
}

pub fn refusal(reason: &str, message: &str, retriable: bool) -> ApiError {
    ApiError {
        reason: reason.to_owned(),
        message: message.to_owned(),
        retriable,
    }
}

async fn resolve(
    State(registry): State<FakeRegistry>,
    Json(request): Json<ResolveRequest>,
) -> Response {
    registry.state.lock().unwrap().asked += 1;
    if request.upstream.url.starts_with(SILENT) {
        std::future::pending::<()>().await;
    }
    let mut held = registry.is_held.subscribe();
    held.wait_for(|is_held| !is_held).await.unwrap();
    let mut inner = registry.state.lock().unwrap();
    inner.resolves += 1;
    if inner.is_down {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    if let Some(refused) = inner.refuse(&request.upstream) {
        return refused;
    }
    match inner.heads.get(&request.upstream.url) {
        Some(Ok(commit)) => Json(ResolveResponse {
            commit: commit.clone(),
        })
        .into_response(),
        Some(Err(error)) => (StatusCode::NOT_FOUND, Json(error.clone())).into_response(),
        None => {
            let error = refusal("RepositoryNotFound", "there is no such repository", false);
            (StatusCode::NOT_FOUND, Json(error)).into_response()
        }
    }
}

async fn mirror(
    State(registry): State<FakeRegistry>,
    Json(request): Json<MirrorRequest>,
) -> Response {
    {
        let mut inner = registry.state.lock().unwrap();
        if inner.is_down {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        if let Some(refused) = inner.refuse(&request.upstream) {
            return refused;
        }
        inner.mirrored.push(request.commit.clone());
    }
    let mut held = registry.holds_mirrors.subscribe();
    held.wait_for(|is_held| !is_held).await.unwrap();
    let inner = registry.state.lock().unwrap();
    let (state, bytes_done, error) = inner
        .mirrors
        .get(request.commit.as_str())
        .cloned()
        .unwrap_or((MirrorState::Ready, 1000, None));
    let repository = "mirror/0123".to_owned();
    Json(MirrorStatus {
        repository,
        state,
        bytes_done,
        bytes_total: 1000,
        error,
    })
    .into_response()
}

async fn fork(State(registry): State<FakeRegistry>, Json(request): Json<ForkRequest>) -> Response {
    let mut inner = registry.state.lock().unwrap();
    if inner.refuses_forks {
        let error = refusal("BadRequest", "there is no such commit", false);
        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
    }
    let fork = Fork {
        repository: format!("git/{}", request.to),
        objects: 1,
        shared_bytes: 1000,
    };
    inner.forks.push(request);
    Json(fork).into_response()
}

async fn list_grants(State(registry): State<FakeRegistry>) -> Response {
    let inner = registry.state.lock().unwrap();
    if inner.is_down {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let grants = inner.grants.iter();
    let grants = grants.map(|(handle, grant)| (handle.clone(), Some(grant.revision())));
    Json(KeptGrants {
        grants: grants.collect(),
    })
    .into_response()
}

async fn put_grant(
    State(registry): State<FakeRegistry>,
    Path(handle): Path<String>,
    Json(grant): Json<Grant>,
) -> StatusCode {
    let mut inner = registry.state.lock().unwrap();
    if inner.is_down || inner.refuses_grants {
        return StatusCode::BAD_GATEWAY;
    }
    if !is_handle(&handle) || grant.check().is_err() {
        return StatusCode::BAD_REQUEST;
    }
    inner.granted.push((handle.clone(), grant.clone()));
    inner.grants.insert(handle, grant);
    StatusCode::NO_CONTENT
}

async fn delete_grant(
    State(registry): State<FakeRegistry>,
    Path(handle): Path<String>,
) -> StatusCode {
    let mut inner = registry.state.lock().unwrap();
    if inner.is_down || inner.refuses_grants {
        return StatusCode::BAD_GATEWAY;
    }
    inner.grants.remove(&handle);
    StatusCode::NO_CONTENT
}

async fn list_lists(State(registry): State<FakeRegistry>) -> Response {
    let inner = registry.state.lock().unwrap();
    if inner.is_down {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let models = inner.lists.keys().map(|model| model.parse().unwrap());
    let models = models.collect();
    Json(ListedModels { models }).into_response()
}

async fn get_list(
    State(registry): State<FakeRegistry>,
    Path((namespace, model)): Path<(String, String)>,
) -> Response {
    if registry.state.lock().unwrap().is_down {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let list = registry.list(&format!("{namespace}/{model}"));
    Json(list.unwrap_or_default()).into_response()
}

async fn put_list(
    State(registry): State<FakeRegistry>,
    Path((namespace, model)): Path<(String, String)>,
    Json(list): Json<AdapterList>,
) -> Response {
    let mut inner = registry.state.lock().unwrap();
    if inner.is_down {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    if let Err(error) = list.check() {
        let error = refusal("BadRequest", &error.to_string(), false);
        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
    }
    let (model, revision) = (format!("{namespace}/{model}"), list.revision());
    inner.written.push((model.clone(), Some(list.clone())));
    inner.lists.insert(model, list);
    Json(Stored { revision }).into_response()
}

async fn delete_list(
    State(registry): State<FakeRegistry>,
    Path((namespace, model)): Path<(String, String)>,
) -> StatusCode {
    let mut inner = registry.state.lock().unwrap();
    if inner.is_down {
        return StatusCode::BAD_GATEWAY;
    }
    let model = format!("{namespace}/{model}");
    inner.lists.remove(&model);
    inner.written.push((model, None));
    StatusCode::NO_CONTENT
}

async fn events(
    State(registry): State<FakeRegistry>,
    Query(query): Query<BTreeMap<String, u64>>,
) -> Json<EventPage> {
    let after = query["after"];
    let notified = registry.pushed.notified();
    let page = |events: &Vec<PushEvent>| EventPage {
        events: events
            .iter()
            .filter(|e| e.sequence > after)
            .cloned()
            .collect(),
        last: events.len() as u64,
        reset: after > events.len() as u64,
    };
    let first = page(&registry.state.lock().unwrap().events);
    if !first.events.is_empty() || first.reset {
        return Json(first);
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), notified).await;
    Json(page(&registry.state.lock().unwrap().events))
}
