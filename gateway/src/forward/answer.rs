//! A worker's answer on its way to the client.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::{State, events::Events};
use crate::{
    GatewayError,
    endpoint::{Connection, Lease},
    headers,
};

/// Largest answer that is held back until it is complete, so that a worker's death in the middle
/// is a 502 and no truncated answer. Streams are not held back.
const MAX_HELD_BACK: usize = 8 << 20;

/// A request that a worker has. Dropping it takes the request from the worker.
pub(super) struct Flight {
    // The connection comes first: it must be closed before the lease frees its place.
    answer: Option<(http::Response<Incoming>, Connection)>,
    lease: Lease,
    model: String,
    request_id: HeaderValue,
    state: Arc<State>,
    load: IntGauge,
}

impl Flight {
    pub(super) fn new(
        state: &Arc<State>,
        model: &str,
        lease: Lease,
        request_id: HeaderValue,
    ) -> Self {
        let load = state.metrics.in_flight.with_label_values(&[model]);
        load.inc();
        let state = Arc::clone(state);
        Self {
            answer: None,
            lease,
            model: model.to_owned(),
            request_id,
            state,
            load,
        }
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
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

    fn lost(&self, error: &hyper::Error) -> GatewayError {
        let worker = self.lease.endpoint().address();
        warn!(%error, model = self.model, %worker, "a worker broke off its answer");
        self.state
            .metrics
            .truncated
            .with_label_values(&[&self.model])
            .inc();
        GatewayError::WorkerLost {
            model: self.model.clone(),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.load.dec();
    }
}

/// The answer to the client: at once for streams, else when it is complete.
pub(super) async fn respond(
    mut flight: Flight,
    slot: OwnedSemaphorePermit,
) -> Result<Response, GatewayError> {
    let (response, connection) = flight
        .answer
        .take()
        .expect("a flight is sent when answered");
    let (mut parts, mut incoming) = response.into_parts();
    headers::to_client(&mut parts.headers, &flight.request_id);
    let mut events = None;
    let mut held_back = BytesMut::new();
    if is_event_stream(&parts.headers) {
        events = Some(Events::default());
    } else {
        // Until the body has ended, dropping the connection tells the worker to stop.
        while let Some(frame) = incoming.frame().await {
            if let Ok(data) = frame.map_err(|error| flight.lost(&error))?.into_data() {
                held_back.extend_from_slice(&data);
            }
            if held_back.len() > MAX_HELD_BACK {
                break;
            }
        }
        if incoming.is_end_stream() || held_back.len() <= MAX_HELD_BACK {
            flight.lease.endpoint().give_back(connection);
            return Ok(Response::from_parts(parts, Body::from(held_back.freeze())));
        }
    }
    // Server-sent events and proxies that buffer do not go together.
    if events.is_some() {
        parts
            .headers
            .insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    let first = (!held_back.is_empty()).then(|| held_back.freeze());
    let body = Relay {
        incoming,
        connection: Some(connection),
        first,
        events,
        flight,
        _slot: slot,
    };
    Ok(Response::from_parts(parts, Body::new(body)))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// A body that passes on a worker's bytes as they come.
struct Relay {
    incoming: Incoming,
    // None once the body has ended. Dropped before, it closes the connection to the worker.
    connection: Option<Connection>,
    first: Option<Bytes>,
    events: Option<Events>,
    flight: Flight,
    _slot: OwnedSemaphorePermit,
}

impl Relay {
    fn ended(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.flight.lease.endpoint().give_back(connection);
        }
    }
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        while this.connection.is_some() {
            let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
            let data = match (frame, &mut this.events) {
                (Some(Ok(frame)), events) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    match events {
                        Some(events) => events.push(data),
                        None => data,
                    }
                }
                (None, events) => {
                    let rest = events.as_mut().map(Events::rest).unwrap_or_default();
                    this.ended();
                    rest
                }
                (Some(Err(error)), events) => {
                    this.connection = None;
                    let lost = this.flight.lost(&error);
                    match events {
                        Some(events) => events.broken(&lost.body()),
                        None => return Poll::Ready(Some(Err(error))),
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
