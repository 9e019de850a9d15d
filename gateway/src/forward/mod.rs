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
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyprstream_contract::{
    CommitId,
    header::{COMMIT, DRAINING, MISSING_ADAPTERS, REQUEST_ID},
};
use tokio::time::timeout;
use tracing::{debug, warn};

pub(crate) use state::{State, Visitor};

use self::{
    answer::Flight,
    attempts::{Attempts, Last, Verdict},
    hold::{Hold, Needs},
    request::Wish,
    state::{Claims, Outcome},
};
use crate::{
    GatewayError, headers,
    table::{AdapterFacts, ModelKey, Route, Table},
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
    let wish = request::wish(&body)?;

    let peer = parts.extensions.get::<Visitor>().map(|visitor| visitor.0);
    // Host and key are set per attempt; everything else is the same for every worker.
    let proxies = &state.config.trusted_proxies;
    headers::to_worker(&mut parts.headers, peer, proxies, request_id);
    let call = Call {
        state,
        parts,
        body,
        rewritten: None,
        wish,
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
    /// The `model` that the body got in place of the client's.
    rewritten: Option<String>,
    wish: Wish,
    request_id: HeaderValue,
    read_at: Instant,
}

impl Call<'_> {
    /// Sends the request to one worker after the other until one has begun it, and waits for
    /// workers while there are none.
    async fn run(
        mut self,
        outcome: &mut Outcome<'_>,
        claims: &mut Claims,
    ) -> Result<Flight, GatewayError> {
        let mut tables = self.state.tables.clone();
        let mut hold = Hold::new(self.state);
        let mut attempts = Attempts::default();
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            let route = self.route(&table)?;
            let entry = route.entry;
            let key = &entry.facts.key;
            if outcome.model.is_empty() {
                outcome.model = key.to_string();
                claims.assign(key)?;
            }
            let adapters = self.adapters(&table, &route, &attempts.missing);
            let Some(lease) = attempts.next(entry, &adapters) else {
                if let Some(last) = attempts.last.take() {
                    return last.into_result(table.id(key));
                }
                let id = || table.id(key);
                let needs = Needs {
                    entry,
                    excluded: &attempts.excluded,
                    adapters: &adapters,
                };
                hold.wait(&mut tables, needs, id).await?;
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
            self.name_the_model(&route);
            let id = self.request_id.clone();
            let flight = Flight::new(self.state, &outcome.model, key, lease, id);
            let sent = self.attempt(flight, &mut attempts, &table, &adapters);
            if let Some(flight) = sent.await? {
                return Ok(flight);
            }
        }
    }

    fn route<'t>(&self, table: &'t Table) -> Result<Route<'t>, GatewayError> {
        table.route(&self.wish.asked).map_err(|error| {
            if table.is_complete() {
                error.into()
            } else {
                GatewayError::Starting
            }
        })
    }

    /// Of the adapters that the request names, and of those that workers said they lack, those
    /// that workers may be expected to have: it goes to a worker that did not say it lacks one,
    /// and waits for one. Of others the gateway knows nothing, and the first worker's word counts.
    fn adapters<'t>(
        &self,
        table: &'t Table,
        route: &Route<'t>,
        missing: &[String],
    ) -> Vec<&'t Arc<AdapterFacts>> {
        let key = &route.entry.facts.key;
        let named = self.wish.asked.adapters();
        let named = named.chain(self.wish.adapters.iter().map(String::as_str));
        let named = named.chain(missing.iter().map(String::as_str));
        let found = named.filter_map(|name| expected(table, key, name));
        let routed = route.adapter.filter(|facts| !facts.is_refused());
        let mut adapters: Vec<&Arc<AdapterFacts>> = Vec::new();
        for facts in routed.into_iter().chain(found) {
            if !adapters.iter().any(|other| Arc::ptr_eq(other, facts)) {
                adapters.push(facts);
            }
        }
        adapters
    }

    /// Workers take a served name alone for an adapter, and a namespace for that of a Model. Where
    /// both are given the body is changed, which no other request's is.
    fn name_the_model(&mut self, route: &Route<'_>) {
        if let (Some(adapter), Some(_)) = (route.adapter, self.wish.asked.namespace()) {
            let model = format!("{}+{}", adapter.model, adapter.served);
            if self.rewritten.as_ref() != Some(&model) {
                self.body = request::with_model(&self.body, &model);
                self.rewritten = Some(model);
            }
        }
    }

    /// One attempt on one worker; `None` if it did not take the request and another may.
    async fn attempt(
        &self,
        mut flight: Flight,
        attempts: &mut Attempts,
        table: &Table,
        adapters: &[&Arc<AdapterFacts>],
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
            let asked = self.wish.asked.commit();
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
        if status == StatusCode::NOT_FOUND {
            let missing = missing(response.headers(), table, flight.model());
            if !missing.is_empty() {
                for facts in &missing {
                    endpoint.lacks(facts, sent_at, Instant::now());
                }
                self.count_retry("adapter");
                attempts.lack(&missing);
                return Ok(None);
            }
        } else if status.is_success() {
            endpoint.has(adapters);
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

/// The adapter that a Model has by this served name, unless it was refused.
fn expected<'t>(table: &'t Table, model: &ModelKey, served: &str) -> Option<&'t Arc<AdapterFacts>> {
    let facts = table.adapter(model, served)?;
    (!facts.is_refused()).then_some(facts)
}

/// The adapters that a worker's answer says it lacks, if the gateway knows that it should have each
/// of them. Otherwise none: waiting would be in vain.
fn missing<'t>(
    headers: &HeaderMap,
    table: &'t Table,
    model: &ModelKey,
) -> Vec<&'t Arc<AdapterFacts>> {
    let names = headers.get(MISSING_ADAPTERS).map(HeaderValue::to_str);
    let Some(Ok(names)) = names else {
        return Vec::new();
    };
    let known = names
        .split(',')
        .map(|name| expected(table, model, name.trim()));
    known.collect::<Option<_>>().unwrap_or_default()
}
