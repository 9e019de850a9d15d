//! Paths of the gateway.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Request, State as Shared},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{StatusCode, header};
use serde_json::json;

use crate::{
    GatewayError,
    fine_tuning::{self, FineTuning},
    forward::{State, forward},
    models,
};

/// Paths that are forwarded to the worker of the Model that the body names. What is not here,
/// such as loading an adapter into one worker, is not for clients of the cluster.
const FORWARDED: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
];

/// All paths. Layers for keys and quotas belong around [`FORWARDED`].
pub(super) fn router(state: Arc<State>, api: Option<Arc<FineTuning>>) -> Router {
    let fine_tuning = fine_tuning::router(fine_tuning::Shared {
        state: Arc::clone(&state),
        api,
    });
    let mut forwarded = Router::new();
    for path in FORWARDED {
        forwarded = forwarded.route(path, post(forward));
    }
    Router::new()
        .merge(forwarded)
        .route("/v1/models", get(list))
        .route("/v1/models/{*id}", get(show))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .with_state(state)
        .merge(fine_tuning)
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
}

async fn list(Shared(state): Shared<Arc<State>>) -> Result<Response, GatewayError> {
    let table = Arc::clone(&state.tables.borrow());
    if !table.is_complete() {
        return Err(GatewayError::Starting);
    }
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok((json, models::list(&table)).into_response())
}

async fn show(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
) -> Result<Response, GatewayError> {
    let table = Arc::clone(&state.tables.borrow());
    if !table.is_complete() {
        return Err(GatewayError::Starting);
    }
    Ok(Json(models::get(&table, &id)?).into_response())
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    match state.ready() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

async fn version() -> Response {
    Json(json!({"version": env!("CARGO_PKG_VERSION")})).into_response()
}

async fn no_route(request: Request) -> GatewayError {
    GatewayError::NoRoute {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}

async fn wrong_method(request: Request) -> GatewayError {
    GatewayError::WrongMethod {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}
