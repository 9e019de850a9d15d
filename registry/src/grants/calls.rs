//! The operator's calls about grants.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Path as AxumPath, State as AxumState},
    http::{StatusCode, request::Parts},
};
use hyprstream_contract::grants::{Grant, KeptGrants, MAX_HANDLE_BYTES, Opens, is_handle};

use super::{Changed, PutError};
use crate::{
    api::{Admin, parse},
    audit::Entry,
    auth::Principal,
    refusal::Refusal,
    state::{State, blocking},
};

/// Longest body of a grant, in bytes.
pub(crate) const MAX_BODY_BYTES: usize = 16 << 10;

/// The handle of a path.
pub(crate) struct Handle(String);

impl FromRequestParts<Arc<State>> for Handle {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let handle = AxumPath::<String>::from_request_parts(parts, state).await;
        let AxumPath(handle) =
            handle.map_err(|_| Refusal::bad_request("the path cannot be read"))?;
        if is_handle(&handle) {
            return Ok(Self(handle));
        }
        let shown: String = handle.chars().take(140).collect();
        Err(Refusal::bad_request(format!(
            "{shown:?} is no handle of a volume: use lower-case letters, digits, '-' and '.', at \
             most {MAX_HANDLE_BYTES}, beginning with a letter or digit"
        )))
    }
}

/// `GET /api/v1/grants`
pub(crate) async fn list(AxumState(state): AxumState<Arc<State>>, _: Admin) -> Json<KeptGrants> {
    Json(state.grants.list())
}

/// `PUT /api/v1/grants/HANDLE`
pub(crate) async fn put(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    Handle(handle): Handle,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let grant: Grant = parse(&body)?;
    grant
        .check()
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    let opens = grant.opens.clone();
    let (keeping, named) = (Arc::clone(&state), handle.clone());
    let put = blocking(move || keeping.grants.put(&named, grant)).await?;
    match put {
        Ok(Changed::Yes) => state.audit.note(&entry("grant", &opens, handle)),
        Ok(Changed::No) => {}
        Err(error) => return Err(refusal(&error)),
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /api/v1/grants/HANDLE`
pub(crate) async fn remove(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    Handle(handle): Handle,
) -> Result<StatusCode, Refusal> {
    let (removing, named) = (Arc::clone(&state), handle.clone());
    let removed = blocking(move || removing.grants.remove(&named)).await?;
    let opened = removed.map_err(|error| State::io_refusal("taking the grant away", &error))?;
    if let Some(opens) = opened {
        state.audit.note(&entry("revoke", &opens, handle));
    }
    Ok(StatusCode::NO_CONTENT)
}

fn entry(action: &'static str, opens: &Opens, handle: String) -> Entry {
    let mut entry = Entry::new(action, &Principal::Admin, opens);
    entry.volume = Some(handle);
    entry
}

fn refusal(error: &PutError) -> Refusal {
    let message = error.to_string();
    match error {
        PutError::TooMany(_) => Refusal::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "TooManyGrants",
            format!("{message}: delete Models and TrainingJobs that nobody needs"),
            true,
        ),
        PutError::Shared { .. } => Refusal::new(
            StatusCode::CONFLICT,
            "WordTaken",
            format!("{message}: make another word"),
            false,
        ),
        PutError::Io(error) => State::io_refusal("keeping the grant", error),
    }
}
