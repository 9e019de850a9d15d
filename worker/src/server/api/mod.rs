//! The routes.

mod chat;
mod completions;
pub(super) mod context;
mod embeddings;
mod logprobs;
mod lora;
mod offsets;
mod probes;
mod prompt;
mod responses;
mod tokenize;

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyprstream_contract::{header, worker, worker_adapters::WORKER_ADAPTERS_PATH};
use hyprstream_engine::TokenizerError;
use hyprstream_openai::{ApiError, ErrorKind, Ignored, Model, ModelList, StreamOptions};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::debug;

use self::context::check_length;
use super::{app::App, auth, respond::Failure, sse, unread};
use crate::backend::Loaded;

/// Longest id of a request that is sent back.
const MAX_ID_BYTES: usize = 128;

type Shared = State<Arc<App>>;

/// Everything that a worker answers.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/load_lora_adapter", post(lora::load))
        .route("/v1/unload_lora_adapter", post(lora::unload))
        .route(WORKER_ADAPTERS_PATH, get(lora::list))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route(worker::HEALTH_PATH, get(probes::health))
        .route(worker::READY_PATH, get(probes::ready))
        .route("/ping", get(probes::health).post(probes::health))
        .route("/load", get(probes::load))
        .route("/openapi.json", get(probes::openapi))
        .route("/metrics", get(probes::metrics))
        .route("/version", get(probes::version))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            auth::check,
        ))
        .layer(CatchPanicLayer::custom(|_| {
            Failure(ApiError::new(
                ErrorKind::Internal,
                "this server made a mistake",
            ))
            .into_response()
        }))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), label))
        .layer(middleware::from_fn(unread::tell))
        .with_state(app)
}

/// Puts the commit on every answer, carries the request's id over, and counts.
async fn label(State(app): Shared, request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(header::REQUEST_ID)
        .filter(|id| id.len() <= MAX_ID_BYTES)
        .cloned();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let started = Instant::now();
    let mut response = next.run(request).await;
    debug!(route, status = response.status().as_u16(), elapsed = ?started.elapsed(), "answered");
    app.metrics
        .count_response(&route, response.status().as_u16());
    let headers = response.headers_mut();
    if let Some(commit) = app.identity.commit_header() {
        headers.insert(HeaderName::from_static(header::COMMIT), commit);
    }
    let id = id.or_else(|| HeaderValue::from_str(&new_id("req-")).ok());
    if let Some(id) = id {
        headers.insert(HeaderName::from_static(header::REQUEST_ID), id);
    }
    response
}

async fn models(State(app): Shared) -> Json<ModelList> {
    let model = entry(&app);
    let adapters = lora::models(&app, &model);
    Json(ModelList::new(
        std::iter::once(model).chain(adapters).collect(),
    ))
}

async fn model(State(app): Shared, Path(id): Path<String>) -> Result<Json<Model>, Failure> {
    let model = entry(&app);
    let adapters = lora::models(&app, &model);
    let find = |name: &str| adapters.iter().find(|adapter| adapter.id == name).cloned();
    if let Some(adapter) = find(&id) {
        return Ok(Json(adapter));
    }
    let found = match &app.identity.adapters_of(&id)?[..] {
        [] => Some(model),
        [one] if one.scale.is_none() => find(&one.name),
        // A scale and a stack are ways to ask.
        _ => None,
    };
    let why =
        || ApiError::model_not_found("the list of models has no such adapter, or it is a stack");
    Ok(Json(found.ok_or_else(why)?))
}

fn entry(app: &App) -> Model {
    let max_model_len = app
        .loaded()
        .ok()
        .map(|loaded| loaded.engine.max_model_len());
    app.identity.entry(app.created, max_model_len)
}

async fn unknown_path() -> Failure {
    Failure(ApiError::new(
        ErrorKind::NotFound,
        "there is nothing at this path",
    ))
}

async fn wrong_method() -> Failure {
    Failure(ApiError::new(
        ErrorKind::MethodNotAllowed,
        "this path does not know that method",
    ))
}

/// Runs `work`, which computes, off the threads that move bytes.
async fn compute<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Loaded) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || work(app.loaded()?))
        .await
        .unwrap_or_else(|_| {
            Err(ApiError::new(
                ErrorKind::Internal,
                "the prompt could not be read",
            ))
        })
}

/// `answer` to a request, with the names of what its past messages hold beside.
fn with_ignored(mut answer: Response, ignored: &Ignored) -> Response {
    let value = ignored.header().map(|names| HeaderValue::from_str(&names));
    if let Some(Ok(value)) = value {
        answer
            .headers_mut()
            .insert(HeaderName::from_static(header::IGNORED), value);
    }
    answer
}

/// The tokens of a text that the field `param` has, unless they are too many.
fn encode(
    loaded: &Loaded,
    text: &str,
    add_special: bool,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    let limit = loaded.engine.max_model_len();
    let tokens = loaded.tokenizer.encode_within(text, add_special, limit);
    tokens.map_err(|error| tokenizer_error(&error, param))
}

/// The answer to a text that the field `param` has and that cannot be tokenized.
fn tokenizer_error(error: &TokenizerError, param: &str) -> ApiError {
    match error {
        TokenizerError::TooLong { limit } => {
            let found = format!("the prompt has more than {limit} tokens");
            context::too_long(param, *limit, &found)
        }
        other => ApiError::invalid(param, other),
    }
}

/// A name for an answer, different from all others.
pub(super) fn new_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};

    let random = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}

/// `value` with the digits that an f32 is told with, not those that are behind it in an f64.
fn exact(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// This program and its version.
const PROGRAM: &str = concat!("hyprstream-", env!("CARGO_PKG_VERSION"));

/// What stays the same in all pieces of an answer.
struct Answer {
    id: String,
    created: u64,
    model: String,
    fingerprint: Option<String>,
    include_usage: bool,
    continuous_usage: bool,
}

impl Answer {
    fn new(app: &App, prefix: &str, model: &str, options: StreamOptions) -> Self {
        Self {
            id: new_id(prefix),
            created: crate::clock::now(),
            model: model.to_owned(),
            // What answers: the model's commit, or without one the program.
            fingerprint: Some(app.identity.commit().unwrap_or(PROGRAM).to_owned()),
            include_usage: options.include_usage || options.continuous_usage,
            continuous_usage: options.continuous_usage,
        }
    }

    /// What all events of a stream begin with, up to the bracket of the choices.
    fn head(&self, object: &str) -> Vec<u8> {
        let mut head = b"data: {\"id\":".to_vec();
        sse::json(&mut head, &self.id);
        head.extend_from_slice(b",\"object\":");
        sse::json(&mut head, &object);
        head.extend_from_slice(b",\"created\":");
        sse::json(&mut head, &self.created);
        head.extend_from_slice(b",\"model\":");
        sse::json(&mut head, &self.model);
        head.extend_from_slice(b",\"system_fingerprint\":");
        sse::json(&mut head, &self.fingerprint);
        head.extend_from_slice(b",\"choices\":[");
        head
    }
}
