//! Reading a request's body.

mod room;

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, Request, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyprstream_openai::{ApiError, ErrorKind};
use tokio::time::{Instant, timeout_at};

use self::room::{Part, Room};

/// Longest time for a body to come in whole.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of all bodies at once, that many connections cannot take all memory.
const MAX_BYTES_AT_ONCE: usize = 256 << 20;

/// How bodies are read.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    limit: usize,
    room: Room,
}

/// A body in memory, and its share of the memory for bodies.
#[derive(Debug)]
pub(super) struct Whole {
    bytes: Bytes,
    _part: Part,
}

impl std::ops::Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Bodies {
    /// Bodies of at most `limit` bytes each.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            room: Room::new(MAX_BYTES_AT_ONCE),
        }
    }

    /// The JSON text in the body of `request`.
    ///
    /// # Errors
    /// 415 when it is not declared as JSON, 413 when it is too long, 408 when it takes too long,
    /// 400 when it breaks off, 503 when there is no memory for it, or it stalls while others need
    /// that.
    pub(super) async fn json(&self, request: Request<Body>) -> Result<Whole, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                ErrorKind::UnsupportedMediaType,
                "the body must be sent with content-type: application/json",
            ));
        }
        let deadline = Instant::now() + READ_TIMEOUT;
        let mut body = request.into_body();
        let mut bytes = BytesMut::new();
        let mut part = self.room.begin();
        loop {
            let frame = tokio::select! {
                biased;
                () = part.gives_way() => return Err(no_room()),
                frame = timeout_at(deadline, body.frame()) => frame,
            };
            let frame = frame
                .map_err(|_| ApiError::new(ErrorKind::Timeout, "the body took too long to come"))?;
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|_| ApiError::new(ErrorKind::Invalid, "the body broke off"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.limit {
                let why = format!("the body is longer than {} bytes", self.limit);
                return Err(ApiError::new(ErrorKind::TooLarge, why).with_code("request_too_large"));
            }
            if !part.grow(data.len()) {
                return Err(no_room());
            }
            bytes.extend_from_slice(&data);
        }
        if !part.complete() {
            return Err(no_room());
        }
        Ok(Whole {
            bytes: bytes.freeze(),
            _part: part,
        })
    }
}

fn no_room() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "too many bodies are being read")
        .with_code("overloaded")
        .with_retry_after(Duration::from_secs(1))
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
