//! `PUT <repository>.git/info/lfs/objects/<oid>?size=<bytes>`.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, Query, State as AxumState},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyprstream_git2db::lfs::Pointer;
use serde::Deserialize;

use super::{
    answer::answer,
    parse_oid,
    receive::{Incoming, Onto, receive},
    unprocessable,
};
use crate::{access::Access, refusal::Refusal, state::State};

/// Query of an upload.
#[derive(Deserialize)]
pub(crate) struct UploadQuery {
    pub(super) size: Option<u64>,
}

/// Takes the bytes of an object. It is visible once digest and size are found right.
pub(crate) async fn upload(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    Path(names): Path<HashMap<String, String>>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    access.writable(&state).await?;
    let oid = parse_oid(names.get("oid").map(String::as_str).unwrap_or_default())?;
    let announced = announced_length(&headers)?;
    let size = match (query.size, announced) {
        (Some(size), Some(length)) if size != length => {
            return Err(unprocessable(format!(
                "{size} bytes were named and {length} announced"
            )));
        }
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => return Err(length_required()),
    };
    require_size(&state, size)?;
    state.require_space(size)?;
    let incoming = Incoming {
        access,
        pointer: Pointer { oid, size },
        onto: Onto::Nothing,
        may_be_short: false,
    };
    let underway = receive(state, incoming, body).await?;
    answer(underway, StatusCode::OK.into_response()).await
}

pub(super) fn length_required() -> Refusal {
    let message = "the upload must say its length";
    Refusal::new(StatusCode::LENGTH_REQUIRED, "BadRequest", message, false)
}

/// Refuses objects that are too large.
pub(super) fn require_size(state: &State, size: u64) -> Result<(), Refusal> {
    if size <= state.limits.max_object_bytes {
        return Ok(());
    }
    let message = format!(
        "objects of more than {} bytes are not taken",
        state.limits.max_object_bytes
    );
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    Err(Refusal::new(status, "BadRequest", message, false))
}

/// How many bytes the request says that it sends.
pub(super) fn announced_length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length
        .map(Some)
        .ok_or_else(|| Refusal::bad_request("the content length cannot be read"))
}
