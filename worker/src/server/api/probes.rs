//! What kubelets, scrapers and people look at.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::Shared;
use crate::server::respond::Failure;

pub(super) async fn health(State(app): Shared) -> Response {
    probe(app.health())
}

pub(super) async fn ready(State(app): Shared) -> Response {
    probe(app.ready())
}

fn probe(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

pub(super) async fn metrics(State(app): Shared) -> Response {
    app.metrics.render(app.adapters().ok())
}

pub(super) async fn version(State(app): Shared) -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": app.identity.commit(),
    }))
}

/// How busy the worker is; `server_load` is vLLM's name for the number of requests.
pub(super) async fn load(State(app): Shared) -> Result<Json<Value>, Failure> {
    let load = app.loaded()?.engine.load();
    Ok(Json(json!({
        "server_load": load.running + load.queued,
        "running": load.running,
        "queued": load.queued,
        "used_blocks": load.used_blocks,
        "total_blocks": load.total_blocks,
    })))
}

pub(super) async fn openapi() -> Json<Value> {
    Json(hyprstream_openai::openapi::document(env!(
        "CARGO_PKG_VERSION"
    )))
}
