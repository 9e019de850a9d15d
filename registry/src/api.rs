//! The API of the control plane, see `hyprstream_contract::registry`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Query, State as AxumState},
    http::request::Parts,
};
use hyprstream_contract::registry::{
    EventPage, MirrorRequest, MirrorState, MirrorStatus, ResolveRequest, ResolveResponse,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    auth::Principal,
    mirrors::{self, Failure},
    refusal::Refusal,
    state::State,
};

/// Longest body of a call, in bytes. Include lists and ssh keys are short.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;

const EVENT_PATIENCE: Duration = Duration::from_secs(30);

/// Proof that the control plane asks.
pub(crate) struct Admin;

impl FromRequestParts<Arc<State>> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        require(state, parts, |who| *who == Principal::Admin)
            .await
            .map(|()| Self)
    }
}

/// Proof that the control plane or a node asks.
pub(crate) struct Reader;

impl FromRequestParts<Arc<State>> for Reader {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let may = |who: &Principal| matches!(who, Principal::Admin | Principal::Node { .. });
        require(state, parts, may).await.map(|()| Self)
    }
}

async fn require(
    state: &State,
    parts: &Parts,
    may: impl FnOnce(&Principal) -> bool,
) -> Result<(), Refusal> {
    if may(&state.auth.principal(&parts.headers).await?) {
        Ok(())
    } else {
        Err(Refusal::forbidden("this token does not allow the API"))
    }
}

/// `POST /api/v1/resolve`
pub(crate) async fn resolve(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    body: Bytes,
) -> Result<Json<ResolveResponse>, Refusal> {
    let request: ResolveRequest = parse(&body)?;
    mirrors::resolve(&state, request)
        .await
        .map(Json)
        .map_err(Failure::into_refusal)
}

/// `POST /api/v1/mirrors`
pub(crate) async fn mirror(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    body: Bytes,
) -> Result<Json<MirrorStatus>, Refusal> {
    let request: MirrorRequest = parse(&body)?;
    // What is wrong with the source is the state of the mirror, and not of the call.
    let failed = |failure: Failure| MirrorStatus {
        repository: String::new(),
        state: MirrorState::Failed,
        bytes_done: 0,
        bytes_total: 0,
        error: Some(failure.api_error()),
    };
    Ok(Json(
        mirrors::mirror(&state, request)
            .await
            .unwrap_or_else(failed),
    ))
}

/// Query of the events.
#[derive(Deserialize)]
pub(crate) struct EventsQuery {
    #[serde(default)]
    after: u64,
}

/// `GET /api/v1/events?after=N`
pub(crate) async fn events(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    Query(query): Query<EventsQuery>,
) -> Json<EventPage> {
    tokio::select! {
        page = state.events.after(query.after, EVENT_PATIENCE) => Json(page),
        () = state.shutdown.cancelled() => Json(state.events.after(query.after, Duration::ZERO).await),
    }
}

/// Every path of the API that there is not.
pub(crate) async fn unknown(_: Admin) -> Refusal {
    Refusal::not_found("there is no such call")
}

pub(crate) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    // The error must not quote the body, which may hold credentials.
    serde_json::from_slice(body).map_err(|error| {
        Refusal::bad_request(format!(
            "the body is not the JSON of this call, at line {} column {}",
            error.line(),
            error.column()
        ))
    })
}
