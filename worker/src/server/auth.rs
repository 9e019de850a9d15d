//! Who may ask.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyprstream_contract::worker;
use hyprstream_openai::{ApiError, ErrorKind};

use super::{app::App, respond::Failure};

/// Paths for kubelets and scrapers, which carry no key: they tell nothing but that and how much.
const OPEN: [&str; 4] = [worker::HEALTH_PATH, worker::READY_PATH, "/ping", "/metrics"];

/// Lets a request pass that shows a key, or needs none. Paths that do not exist need one too, so
/// that nobody can find out which do.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let keys = &app.options.keys;
    let open = keys.is_empty() || OPEN.contains(&request.uri().path());
    let key = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key.trim_ascii());
    if open || key.is_some_and(|key| keys.accept(key)) {
        return next.run(request).await;
    }
    let why = match key {
        None => "an API key is required: send it as a bearer token",
        Some(_) => "the API key is wrong",
    };
    let error = ApiError::new(ErrorKind::Unauthenticated, why).with_code("invalid_api_key");
    let mut response = Failure(error).into_response();
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
