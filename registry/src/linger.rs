//! Lets clients hear why a body is too large.
//!
//! Who sends a body looks for the answer when all is sent. A connection that is closed on unread
//! bytes is reset, and the answer is lost with it: the client tells of a broken pipe, and nobody of
//! the limit. So the rest of a refused body is read and thrown away first, within bounds.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::StatusCode,
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt;

/// Most that is thrown away.
const MOST_BYTES: usize = 64 << 20;
/// Longest that this may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that somebody else may go on reading.
#[derive(Clone)]
struct Lent(Arc<Mutex<Body>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.size_hint()
    }
}

/// Answers 413 only once the client has sent all, or more than is waited for.
pub(crate) async fn linger(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let mut body = Lent(Arc::new(Mutex::new(body)));
    let lent = Body::new(body.clone());
    let response = next.run(Request::from_parts(parts, lent)).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        // What is left then is for the kernel to drop, and the answer with it.
        let _ = tokio::time::timeout(PATIENCE, throw_away(&mut body)).await;
    }
    response
}

async fn throw_away(body: &mut Lent) {
    let mut left = MOST_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
