//! One request from its body to the worker's answer.

mod answer;
mod attempts;
mod events;
mod hold;
mod request;
mod silence;
mod state;

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{Request, State as Shared},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyprstream_contract::{
    CommitId, ModelRef,
    header::{COMMIT, DRAINING, REQUEST_ID},
};
use tokio::time::timeout;
use tracing::{debug, warn};

pub(crate) use state::{State, Visitor};

use self::{
    answer::Flight,
    attempts::{Attempts, Last, Verdict},
    hold::Hold,
    state::{Claims, Outcome},
};
use crate::{
    GatewayError, headers,
    table::{ModelEntry, Table},
};

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
    let mut claims = state.admit()?;
    let (mut parts, body) = request.into_parts();
    request::check_head(&parts.headers, state.config.max_body_bytes)?;
    let body = request::read(body, state, &mut claims).await?;
    let read_at = Instant::now();
    let reference = request::model(&body)?;

    let peer = parts.extensions.get::<Visitor>().map(|visitor| visitor.0);
    // Host and key are set per attempt; everything else is the same for every worker.
    let proxies = &state.config.trusted_proxies;
    headers::to_worker(&mut parts.headers, peer, proxies, request_id);
    let call = Call {
        state,
        parts,
        body,
        reference,
        request_id: request_id.clone(),
        read_at,
    };
    let flight = call.run(outcome, &mut claims).await?;
    // The body is not sent again, so that its share of the memory is free for others.
    answer::respond(flight, claims.place).await
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
    async fn run(
        self,
        outcome: &mut Outcome<'_>,
        claims: &mut Claims,
    ) -> Result<Flight, GatewayError> {
        let mut tables = self.state.tables.clone();
        let mut hold = Hold::new(self.state);
        let mut attempts = Attempts::default();
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            let entry = self.resolve(&table)?;
            let key = &entry.facts.key;
            if outcome.model.is_empty() {
                outcome.model = key.to_string();
                claims.assign(key)?;
            }
            let Some(lease) = attempts.next(entry) else {
                if let Some(last) = attempts.last.take() {
                    return last.into_result(table.id(key));
                }
                let id = || table.id(key);
                hold.wait(&mut tables, entry, &attempts.excluded, id)
                    .await?;
                continue;
            };
            if hold.was_needed() {
                hold.ended();
            } else if attempts.is_first() {
                self.state
                    .metrics
                    .added
                    .observe(self.read_at.elapsed().as_secs_f64());
            }
            let id = self.request_id.clone();
            let flight = Flight::new(self.state, &outcome.model, key, lease, id);
            if let Some(flight) = self.attempt(flight, &mut attempts, &table).await? {
                return Ok(flight);
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

    /// One attempt on one worker; `None` if it did not take the request and another may.
    async fn attempt(
        &self,
        mut flight: Flight,
        attempts: &mut Attempts,
        table: &Table,
    ) -> Result<Option<Flight>, GatewayError> {
        let config = &self.state.config;
        let endpoint = Arc::clone(flight.lease().endpoint());
        let sent_at = Instant::now();
        let sent = endpoint.send(self.request(&flight), config.connect_timeout);
        let Ok(sent) = timeout(config.silence_timeout, sent).await else {
            endpoint.answered_badly(sent_at, Instant::now());
            return Err(GatewayError::WorkerSilent {
                model: table.id(flight.model()),
                limit: config.silence_timeout,
            });
        };
        let (response, connection) = match sent {
            Ok(answer) => answer,
            Err(error) => {
                let again = attempts
                    .again_after(error, &endpoint, sent_at)
                    .map_err(|error| {
                        debug!(?error, model = %flight.model(), "the worker is lost");
                        endpoint.answered_badly(sent_at, Instant::now());
                        GatewayError::WorkerLost {
                            model: table.id(flight.model()),
                        }
                    })?;
                self.count_retry(again);
                return Ok(None);
            }
        };
        let status = response.status();
        if status == StatusCode::SERVICE_UNAVAILABLE && response.headers().contains_key(DRAINING) {
            endpoint.drains(Instant::now());
            self.count_retry("draining");
            return Ok(None);
        }
        let verdict = Verdict::of(status);
        match verdict {
            Verdict::Good => endpoint.succeeded(),
            Verdict::Busy => endpoint.is_busy(Instant::now()),
            Verdict::Bad | Verdict::KeyRefused => {
                endpoint.answered_badly(sent_at, Instant::now());
            }
        }
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
                self.count_retry("commit");
                return Ok(None);
            }
        }
        if verdict == Verdict::KeyRefused {
            let worker = endpoint.address();
            warn!(model = %flight.model(), %worker, "a worker refuses the gateway's key");
            self.count_retry("key");
            attempts.turned_down(endpoint, Last::KeyRefused);
            return Ok(None);
        }
        flight.answered(response, connection, sent_at.elapsed());
        if verdict == Verdict::Busy {
            self.count_retry("busy");
            attempts.turned_down(endpoint, Last::Busy(Box::new(flight)));
            return Ok(None);
        }
        Ok(Some(flight))
    }

    fn count_retry(&self, reason: &str) {
        let retries = &self.state.metrics.retries;
        retries.with_label_values(&[reason]).inc();
    }

    fn request(&self, flight: &Flight) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() = self.parts.headers.clone();
        let authority = flight.lease().endpoint().address().to_string();
        let host = HeaderValue::from_str(&authority).expect("a socket address is a header value");
        request.headers_mut().insert(header::HOST, host);
        if let Some(key) = self.state.authorization(flight.model()) {
            request.headers_mut().insert(header::AUTHORIZATION, key);
        }
        request
    }
}
