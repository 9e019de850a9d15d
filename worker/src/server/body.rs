//! Reading a request's body.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, Request, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyprstream_openai::{ApiError, ErrorKind};

/// Longest time for a body to come in whole.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The JSON text in the body of `request`.
///
/// # Errors
/// 415 when it is not declared as JSON, 413 when it is longer than `limit` bytes, 400 when it
/// breaks off or takes too long.
pub(super) async fn json(request: Request<Body>, limit: usize) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::new(
            ErrorKind::UnsupportedMediaType,
            "the body must be sent with content-type: application/json",
        ));
    }
    let body = Limited::new(request.into_body(), limit);
    match tokio::time::timeout(READ_TIMEOUT, body.collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::new(
            ErrorKind::TooLarge,
            format!("the body is longer than {limit} bytes"),
        )),
        Ok(Err(_)) => Err(ApiError::new(ErrorKind::Invalid, "the body broke off")),
        Err(_) => Err(ApiError::new(
            ErrorKind::Invalid,
            "the body took too long to come",
        )),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let kind = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
