//! One request from its body to the worker's answer.

mod answer;
mod events;
mod hold;
mod request;
mod state;

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{Request, State as Shared},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, request::Parts};
use http_body_util::Full;
use hyprstream_contract::{
    CommitId, ModelRef,
    header::{COMMIT, DRAINING, REQUEST_ID},
};
use tracing::debug;

pub(crate) use state::{State, Visitor};

use self::{answer::Flight, hold::Hold, state::Outcome};
use crate::{
    GatewayError,
    endpoint::{Endpoint, Lease, SendError},
    headers,
    table::{Availability, ModelEntry, Table},
};

/// How often a request is sent again because kept connections turn out to be closed, or because
/// a worker closes new ones before it reads.
const MAX_STALE: u32 = 2;

/// What a request carries from attempt to attempt.
struct Attempts {
    /// Workers that are known to serve another commit than the one asked for.
    excluded: Vec<Arc<Endpoint>>,
    stale: u32,
}

/// Answers a request that names a Model in its body, by one of the Model's workers.
pub(crate) async fn forward(Shared(state): Shared<Arc<State>>, request: Request) -> Response {
    let request_id = headers::request_id(request.headers());
    let mut outcome = Outcome::new(&state.metrics);
    let result = admit(&state, request, &request_id, &mut outcome).await;
    let response = result.unwrap_or_else(|error| {
        debug!(%error, model = outcome.model, ?request_id, "request refused");
        let mut response = error.into_response();
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    });
    outcome.code = response.status();
    response
}

async fn admit(
    state: &Arc<State>,
    request: Request,
    request_id: &HeaderValue,
    outcome: &mut Outcome<'_>,
) -> Result<Response, GatewayError> {
    let slot = state.admit()?;
    let (mut parts, body) = request.into_parts();
    request::check_head(&parts.headers, state.config.max_body_bytes)?;
    let body = request::read(body, state).await?;
    let read_at = Instant::now();
    let reference = request::model(&body.bytes)?;

    let visitor = parts.extensions.get::<Visitor>().map(|visitor| visitor.0);
    // The host is set per attempt; everything else is the same for every worker.
    headers::to_worker(&mut parts.headers, visitor, request_id);
    let request_id = request_id.clone();
    let call = Call {
        state,
        parts,
        body: body.bytes.clone(),
        reference,
        request_id,
        read_at,
    };
    let flight = call.run(outcome).await?;
    drop(body);
    answer::respond(flight, slot).await
}

/// A request that is ready to be sent.
struct Call<'a> {
    state: &'a Arc<State>,
    parts: Parts,
    body: Bytes,
    reference: ModelRef,
    request_id: HeaderValue,
    read_at: Instant,
}

impl Call<'_> {
    /// Sends the request to one worker after the other until one has begun it, and waits for
    /// workers while there are none.
    async fn run(self, outcome: &mut Outcome<'_>) -> Result<Flight, GatewayError> {
        let mut tables = self.state.tables.clone();
        let mut hold = Hold::new(self.state);
        let mut attempts = Attempts {
            excluded: Vec::new(),
            stale: 0,
        };
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            let entry = self.resolve(&table)?;
            if outcome.model.is_empty() {
                outcome.model = entry.facts.key.to_string();
            }
            let Some(lease) = entry.pick(&attempts.excluded, Instant::now()) else {
                self.expect_worker(entry)?;
                let id = || table.id(&entry.facts.key);
                hold.wait(&mut tables, entry, &attempts.excluded, id)
                    .await?;
                continue;
            };
            if hold.was_needed() {
                hold.ended();
            } else if attempts.stale == 0 {
                self.state
                    .metrics
                    .added
                    .observe(self.read_at.elapsed().as_secs_f64());
            }
            let flight = Flight::new(self.state, &outcome.model, lease, self.request_id.clone());
            match self.attempt(flight, &mut attempts).await {
                Ok(Some(flight)) => return Ok(flight),
                Ok(None) => {}
                Err(error) => {
                    debug!(?error, model = outcome.model, "the worker is lost");
                    return Err(GatewayError::WorkerLost {
                        model: table.id(&entry.facts.key),
                    });
                }
            }
        }
    }

    fn resolve<'t>(&self, table: &'t Table) -> Result<&'t Arc<ModelEntry>, GatewayError> {
        table.resolve(&self.reference).map_err(|error| {
            if table.is_complete() {
                error.into()
            } else {
                GatewayError::Starting
            }
        })
    }

    fn expect_worker(&self, entry: &ModelEntry) -> Result<(), GatewayError> {
        match entry.availability() {
            Availability::Expected => Ok(()),
            Availability::Refused { reason, message } => Err(GatewayError::Unavailable {
                model: self.reference.to_string(),
                reason,
                message,
            }),
        }
    }

    /// One attempt on one worker; `None` if it did not take the request and another may.
    async fn attempt(
        &self,
        mut flight: Flight,
        attempts: &mut Attempts,
    ) -> Result<Option<Flight>, SendError> {
        let retries = &self.state.metrics.retries;
        let endpoint = Arc::clone(flight.lease().endpoint());
        let sent_at = Instant::now();
        let sent = endpoint.send(
            self.request(flight.lease()),
            self.state.config.connect_timeout,
        );
        let (response, connection) = match sent.await {
            Ok(answer) => answer,
            Err(SendError::Connect(error)) => {
                debug!(%error, worker = %endpoint.address(), "connect failed");
                endpoint.failed(sent_at, Instant::now());
                retries.with_label_values(&["connect"]).inc();
                return Ok(None);
            }
            Err(SendError::Stale(_)) if attempts.stale < MAX_STALE => {
                attempts.stale += 1;
                retries.with_label_values(&["stale"]).inc();
                return Ok(None);
            }
            Err(SendError::Unreachable(error)) if attempts.stale < MAX_STALE => {
                debug!(%error, worker = %endpoint.address(), "unreachable");
                attempts.stale += 1;
                endpoint.failed(sent_at, Instant::now());
                retries.with_label_values(&["unreachable"]).inc();
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE
            && response.headers().contains_key(DRAINING)
        {
            endpoint.drains(Instant::now());
            retries.with_label_values(&["draining"]).inc();
            return Ok(None);
        }
        endpoint.succeeded();
        let commit = response
            .headers()
            .get(COMMIT)
            .and_then(|value| value.to_str().ok());
        if let Some(commit) = commit.and_then(|text| text.parse::<CommitId>().ok()) {
            endpoint.learn_commit(&commit);
            let asked = self.reference.commit.as_deref();
            if asked.is_some_and(|asked| !commit.as_str().starts_with(asked)) {
                // During a rollout workers of two commits are ready; an answer of the wrong one
                // must not be passed off as the other's.
                attempts.excluded.push(endpoint);
                retries.with_label_values(&["commit"]).inc();
                return Ok(None);
            }
        }
        flight.answered(response, connection, sent_at.elapsed());
        Ok(Some(flight))
    }

    fn request(&self, lease: &Lease) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() = self.parts.headers.clone();
        let authority = lease.endpoint().address().to_string();
        let host = HeaderValue::from_str(&authority).expect("a socket address is a header value");
        request.headers_mut().insert(http::header::HOST, host);
        request
    }
}
