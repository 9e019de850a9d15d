//! A worker's answer on its way to the client.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus::IntGauge;
use tracing::warn;

use super::{State, events::Events, silence::Silence};
use crate::{
    GatewayError,
    budget::Share,
    endpoint::{Connection, Lease},
    headers,
    table::ModelKey,
};

/// Largest answer that is held back until it is complete, so that a worker's death in the middle
/// is a 502 and no truncated answer. Streams are not held back.
const MAX_HELD_BACK: usize = 8 << 20;
/// Most bytes of a complete answer that are given to the connection at once, so that the rest
/// counts as held back until the client has taken the beginning.
const PIECE: usize = 64 << 10;

/// A request that a worker has. Dropping it takes the request from the worker.
pub(super) struct Flight {
    // The connection comes first: it must be closed before the lease frees its place.
    answer: Option<(http::Response<Incoming>, Connection)>,
    lease: Lease,
    sent_at: Instant,
    key: ModelKey,
    model: String,
    request_id: HeaderValue,
    state: Arc<State>,
    load: IntGauge,
}

impl Flight {
    pub(super) fn new(
        state: &Arc<State>,
        model: &str,
        key: &ModelKey,
        lease: Lease,
        request_id: HeaderValue,
    ) -> Self {
        let load = state.metrics.in_flight.with_label_values(&[model]);
        load.inc();
        let state = Arc::clone(state);
        Self {
            answer: None,
            lease,
            sent_at: Instant::now(),
            key: key.clone(),
            model: model.to_owned(),
            request_id,
            state,
            load,
        }
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    pub(super) fn model(&self) -> &ModelKey {
        &self.key
    }

    /// The head of the answer has come.
    pub(super) fn answered(
        &mut self,
        response: http::Response<Incoming>,
        connection: Connection,
        after: Duration,
    ) {
        let times = self
            .state
            .metrics
            .first_byte
            .with_label_values(&[&self.model]);
        times.observe(after.as_secs_f64());
        self.answer = Some((response, connection));
    }

    /// What the client is told of an answer that will not be complete.
    fn broken(&self, why: &Break) -> GatewayError {
        let endpoint = self.lease.endpoint();
        endpoint.answered_badly(self.sent_at, Instant::now());
        let worker = endpoint.address();
        warn!(%why, model = self.model, %worker, "a worker broke off its answer");
        self.state
            .metrics
            .truncated
            .with_label_values(&[&self.model])
            .inc();
        let model = self.model.clone();
        match why {
            Break::Lost(_) => GatewayError::WorkerLost { model },
            Break::Silent => GatewayError::WorkerSilent {
                model,
                limit: self.state.config.silence_timeout,
            },
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.load.dec();
    }
}

/// Why an answer is not complete.
#[derive(Debug, thiserror::Error)]
enum Break {
    #[error("the connection broke")]
    Lost(#[source] hyper::Error),
    #[error("the worker sends nothing any more")]
    Silent,
}

/// The body of a worker's answer.
struct Rest {
    incoming: Incoming,
    silence: Silence,
}

impl Rest {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Break>>> {
        loop {
            return match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.silence.heard();
                        Poll::Ready(Some(Ok(data)))
                    }
                    Err(_trailers) => continue,
                },
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Break::Lost(error)))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => self.silence.poll(cx).map(|()| Some(Err(Break::Silent))),
            };
        }
    }
}

/// The answer to the client: at once for streams, else when it is complete. `place` is kept until
/// the answer has ended.
pub(super) async fn respond(mut flight: Flight, place: Share) -> Result<Response, GatewayError> {
    let (response, connection) = flight
        .answer
        .take()
        .expect("a flight is sent when answered");
    let (mut parts, incoming) = response.into_parts();
    headers::to_client(&mut parts.headers, &flight.request_id);
    let mut rest = Rest {
        incoming,
        silence: Silence::new(flight.state.config.silence_timeout),
    };
    let mut first = None;
    let mut events = None;
    if is_event_stream(&parts.headers) {
        events = Some(Events::default());
    } else {
        match hold_back(&flight, &mut rest).await? {
            (data, share, true) => {
                flight.lease.endpoint().give_back(connection);
                let body = Whole {
                    data,
                    _share: share,
                    _place: place,
                };
                return Ok(Response::from_parts(parts, Body::new(body)));
            }
            (data, share, false) => first = Some((data, share)),
        }
    }
    // Server-sent events and proxies that buffer do not go together.
    if events.is_some() {
        parts
            .headers
            .insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    let body = Relay {
        rest,
        connection: Some(connection),
        first,
        events,
        flight,
        _place: place,
    };
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// Reads an answer until it is complete, or too large, or as large as the memory for answers
/// allows. Says whether it is complete.
async fn hold_back(
    flight: &Flight,
    rest: &mut Rest,
) -> Result<(Bytes, Option<Share>, bool), GatewayError> {
    let mut held = BytesMut::new();
    let mut share = flight.state.memory.take_for(&flight.key, 0).ok();
    // Until the body has ended, dropping the connection tells the worker to stop.
    while let Some(data) = poll_fn(|cx| rest.poll_data(cx)).await {
        let data = data.map_err(|why| flight.broken(&why))?;
        let fits = share
            .as_mut()
            .is_some_and(|share| share.grow(data.len()).is_ok());
        held.extend_from_slice(&data);
        if !fits || held.len() > MAX_HELD_BACK {
            let is_complete = rest.incoming.is_end_stream();
            return Ok((held.freeze(), share, is_complete));
        }
    }
    Ok((held.freeze(), share, true))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// A complete answer, which counts as held back until the client has taken it.
struct Whole {
    data: Bytes,
    _share: Option<Share>,
    _place: Share,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.data.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.data.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.data.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}

/// A body that passes on a worker's bytes as they come.
struct Relay {
    rest: Rest,
    // None once the body has ended. Dropped before, it closes the connection to the worker.
    connection: Option<Connection>,
    first: Option<(Bytes, Option<Share>)>,
    events: Option<Events>,
    flight: Flight,
    _place: Share,
}

impl Relay {
    fn ended(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.flight.lease.endpoint().give_back(connection);
        }
    }
}

/// An answer that is not passed on in events broke off, which only a broken connection can say.
#[derive(Debug, thiserror::Error)]
#[error("the worker's answer is not complete")]
struct Incomplete(#[source] Break);

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let this = &mut *self;
        if let Some((first, _share)) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        while this.connection.is_some() {
            let data = match (ready!(this.rest.poll_data(cx)), &mut this.events) {
                (Some(Ok(data)), Some(events)) => events.push(data),
                (Some(Ok(data)), None) => data,
                (None, events) => {
                    let rest = events.as_mut().map(Events::rest).unwrap_or_default();
                    this.ended();
                    rest
                }
                (Some(Err(why)), events) => {
                    this.connection = None;
                    let error = this.flight.broken(&why);
                    match events {
                        Some(events) => events.broken(&error.body()),
                        None => return Poll::Ready(Some(Err(Incomplete(why)))),
                    }
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        Poll::Ready(None)
    }
}
