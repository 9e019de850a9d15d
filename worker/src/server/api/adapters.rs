//! Adapters, which cannot be loaded yet, and say so.

use axum::Json;
use hyprstream_openai::{ApiError, ErrorKind};
use serde_json::{Value, json};

use crate::server::respond::Failure;

pub(super) async fn refuse() -> Failure {
    let why = "adapters are not supported by this server yet";
    Failure(ApiError::new(ErrorKind::NotImplemented, why).with_code("adapters_unsupported"))
}

pub(super) async fn list() -> Json<Value> {
    Json(json!({"object": "list", "data": []}))
}
