//! Server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;

/// A comment is sent after so long without data: it keeps proxies from closing the connection,
/// and shows a client that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event.
pub(super) fn event(data: &impl Serialize) -> Bytes {
    let mut text = b"data: ".to_vec();
    // Types of ours have string keys and no failing parts, so this does not fail.
    if serde_json::to_writer(&mut text, data).is_err() {
        text.truncate(6);
        text.extend_from_slice(b"{}");
    }
    text.extend_from_slice(b"\n\n");
    Bytes::from(text)
}

/// The event that ends a stream of the OpenAI API.
pub(super) fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// `events` as an answer.
pub(super) fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let kept = stream::unfold(Box::pin(events), |mut events| async move {
        match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
            Ok(Some(event)) => Some((event, events)),
            Ok(None) => None,
            Err(_) => Some((Bytes::from_static(b": waiting\n\n"), events)),
        }
    });
    let mut response = Response::new(Body::from_stream(kept.map(Ok::<_, Infallible>)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
