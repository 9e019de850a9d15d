//! Server-sent events.

use std::{convert::Infallible, io::Write, time::Duration};

use async_stream::stream;
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hyprstream_engine::{FinishReason, TextPiece};
use hyprstream_openai::{ApiError, Usage};
use serde::Serialize;

use super::{
    generate::{ChoiceEvent, Choices, UsageCount},
    respond::generation_error,
};

/// A comment is sent after so long without data: it keeps proxies from closing the connection,
/// and shows a client that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What is ready at once goes out as one piece, up to so many bytes.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// How one kind of answer is written as events. Everything is appended to `out`, which goes out
/// whenever the engine has nothing more at hand.
pub(super) trait Chunks: Send + 'static {
    /// Before anything was generated.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// A choice goes on. Says false when what else it generates is of no interest.
    fn piece(
        &mut self,
        index: usize,
        piece: TextPiece,
        usage: &UsageCount,
        out: &mut Vec<u8>,
    ) -> bool;
    /// A choice is complete.
    fn end(&mut self, index: usize, reason: FinishReason, usage: &UsageCount, out: &mut Vec<u8>);
    /// The answer broke off.
    fn broken(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, &error.body());
        done(out);
    }
    /// All choices are complete.
    fn finish(&mut self, usage: Usage, out: &mut Vec<u8>);
}

/// Appends one event.
pub(super) fn event(out: &mut Vec<u8>, data: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    json(out, data);
    out.extend_from_slice(b"\n\n");
}

/// Appends `data` as JSON.
pub(super) fn json(out: &mut Vec<u8>, data: &impl Serialize) {
    let begin = out.len();
    // Types of ours have string keys and no failing parts, so this does not fail.
    if serde_json::to_writer(&mut *out, data).is_err() {
        out.truncate(begin);
        out.extend_from_slice(b"null");
    }
}

/// Appends the event that ends a stream of the OpenAI API.
pub(super) fn done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Appends a number.
pub(super) fn number(out: &mut Vec<u8>, number: usize) {
    // Writing to memory does not fail.
    let _ = write!(out, "{number}");
}

/// The answer that `chunks` writes of `choices`. `held` is dropped at its end.
pub(super) fn answer(
    mut chunks: impl Chunks,
    mut choices: Choices,
    mut usage: UsageCount,
    held: impl Send + 'static,
) -> Response {
    response(stream! {
        let _held = held;
        let mut out = Vec::with_capacity(512);
        chunks.begin(&mut out);
        if !out.is_empty() {
            yield Bytes::from(std::mem::take(&mut out));
        }
        let mut next = choices.next().await;
        while let Some((index, event)) = next {
            let unbroken = take(&mut chunks, &mut choices, &mut usage, index, event, &mut out);
            if !unbroken {
                yield Bytes::from(out);
                return;
            }
            next = match choices.try_next() {
                Some(ready) if out.len() < MAX_FRAME_BYTES => ready,
                ready => {
                    if !out.is_empty() {
                        yield Bytes::from(std::mem::take(&mut out));
                    }
                    match ready {
                        Some(ready) => ready,
                        None => choices.next().await,
                    }
                }
            };
        }
        chunks.finish(usage.usage(), &mut out);
        yield Bytes::from(out);
    })
}

/// Writes all of `choices` with `chunks`, for what it keeps of them and not for the events.
///
/// # Errors
/// One of them broke off.
pub(super) async fn gather(
    chunks: &mut impl Chunks,
    mut choices: Choices,
    mut usage: UsageCount,
) -> Result<(), ApiError> {
    let mut unheard = Vec::new();
    chunks.begin(&mut unheard);
    while let Some((index, event)) = choices.next().await {
        if let ChoiceEvent::Broken(error) = &event {
            return Err(generation_error(error));
        }
        take(chunks, &mut choices, &mut usage, index, event, &mut unheard);
        unheard.clear();
    }
    chunks.finish(usage.usage(), &mut unheard);
    Ok(())
}

/// Writes one event of the engine, and says whether the answer goes on.
fn take(
    chunks: &mut impl Chunks,
    choices: &mut Choices,
    usage: &mut UsageCount,
    index: usize,
    event: ChoiceEvent,
    out: &mut Vec<u8>,
) -> bool {
    match event {
        ChoiceEvent::Piece(piece) => {
            usage.piece(index, &piece);
            if !chunks.piece(index, piece, usage, out)
                && let Some(stats) = choices.close(index)
            {
                usage.end(index, &stats);
                chunks.end(index, FinishReason::Stop, usage, out);
            }
        }
        ChoiceEvent::End(reason, stats) => {
            usage.end(index, &stats);
            chunks.end(index, reason, usage, out);
        }
        ChoiceEvent::Broken(error) => {
            chunks.broken(&generation_error(&error), out);
            return false;
        }
    }
    true
}

/// `events` as an answer.
fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
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
