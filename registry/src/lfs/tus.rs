//! `HEAD` and `PATCH <repository>.git/info/lfs/uploads/<oid>?size=<bytes>`: uploads that go on
//! where they broke off, as tus 1.0 has them (<https://tus.io/protocols/resumable-upload>).
//!
//! git-lfs speaks it where it is told to (`lfs.tustransfers`), and our own client always; the
//! batch call says which uploads go this way. Of the protocol's core there are the two requests
//! that these clients make. Nothing is created: the batch call gives the address, and an upload
//! that was not begun stands at 0.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, Query, State as AxumState},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyprstream_git2db::lfs::Pointer;

use super::{
    answer::answer,
    parse_oid,
    parts::{self, Standing},
    receive::{Incoming, Onto, receive},
    unprocessable,
    upload::{UploadQuery, announced_length, length_required, require_size},
};
use crate::{access::Access, refusal::Refusal, state::State};

const VERSION: &str = "1.0.0";
const RESUMABLE: &str = "tus-resumable";
const OFFSET: &str = "upload-offset";
const CONTENT_TYPE: &str = "application/offset+octet-stream";

/// Says how much of an object is here: all of it only once it is in its repository.
pub(crate) async fn offset(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    Path(names): Path<HashMap<String, String>>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    require_version(&headers)?;
    access.writable(&state).await?;
    let pointer = pointer(&state, &names, &query)?;
    let key = (access.repository.clone(), pointer.oid.clone());
    let standing = state.uploads.standing(&key).await;
    // From here on it stays, since the client is told how little need be sent.
    state.promised.promise(&access.repository, &pointer.oid);
    let offset = if is_here(&state, &access, &pointer)? {
        pointer.size
    } else {
        state.promised.forget(&access.repository, &pointer.oid);
        match standing {
            Standing::Free => parts::offset(&state.layout, &access.repository, &pointer),
            Standing::Moving => 0,
            Standing::Settling => return Err(settling()),
        }
    };
    let mut response = reached(StatusCode::OK, offset);
    let headers = response.headers_mut();
    headers.insert("upload-length", HeaderValue::from(pointer.size));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Takes the bytes of an object from an offset on. It is visible once digest and size are found
/// right; wrong bytes are thrown away, all of them.
pub(crate) async fn append(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    Path(names): Path<HashMap<String, String>>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    require_version(&headers)?;
    access.writable(&state).await?;
    let pointer = pointer(&state, &names, &query)?;
    let offset = wanted_offset(&headers)?;
    let rest = pointer.size.checked_sub(offset).ok_or_else(conflict)?;
    let announced = announced_length(&headers)?;
    if announced.is_some_and(|length| length > rest) {
        return Err(unprocessable(format!(
            "{rest} bytes are missing and more are announced"
        )));
    }
    if is_here(&state, &access, &pointer)? {
        return match rest {
            0 => Ok(reached(StatusCode::NO_CONTENT, offset)),
            _ => Err(conflict()),
        };
    }
    state.require_space(rest)?;
    let key = (access.repository.clone(), pointer.oid.clone());
    let onto = match state.uploads.standing(&key).await {
        Standing::Settling => return Err(settling()),
        // Others have not taken it meanwhile.
        Standing::Free => match state.uploads.hold(&key) {
            Some(held) => Onto::Part { held, offset },
            None => beside(offset)?,
        },
        Standing::Moving => beside(offset)?,
    };
    let is_part = matches!(onto, Onto::Part { .. });
    if is_part && parts::offset(&state.layout, &access.repository, &pointer) != offset {
        return Err(conflict());
    }
    let end = offset + announced.unwrap_or(rest);
    let incoming = Incoming {
        access,
        pointer,
        onto,
        may_be_short: is_part && announced.is_some_and(|length| length < rest),
    };
    let underway = receive(state, incoming, body).await?;
    answer(underway, reached(StatusCode::NO_CONTENT, end)).await
}

/// Whoever comes while another sends the same object sends all of it, or nothing.
fn beside(offset: u64) -> Result<Onto, Refusal> {
    match offset {
        0 => Ok(Onto::Nothing),
        _ => Err(conflict()),
    }
}

fn is_here(state: &State, access: &Access, pointer: &Pointer) -> Result<bool, Refusal> {
    let size = state
        .layout
        .member_size(&access.repository, &pointer.oid)
        .map_err(|error| Refusal::internal("looking for an object", &error))?;
    Ok(size == Some(pointer.size))
}

fn pointer(
    state: &State,
    names: &HashMap<String, String>,
    query: &UploadQuery,
) -> Result<Pointer, Refusal> {
    let oid = parse_oid(names.get("oid").map(String::as_str).unwrap_or_default())?;
    let size = query.size.ok_or_else(length_required)?;
    require_size(state, size)?;
    Ok(Pointer { oid, size })
}

fn require_version(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.get(RESUMABLE).is_some_and(|asked| asked == VERSION) {
        return Ok(());
    }
    let message = "uploads here are of tus 1.0.0, which Tus-Resumable must say";
    let status = StatusCode::PRECONDITION_FAILED;
    Err(Refusal::new(status, "BadRequest", message, false))
}

fn wanted_offset(headers: &HeaderMap) -> Result<u64, Refusal> {
    let content_type = headers.get(header::CONTENT_TYPE);
    if content_type.is_none_or(|value| value != CONTENT_TYPE) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let message = format!("the content type must be {CONTENT_TYPE}");
        return Err(Refusal::new(status, "BadRequest", message, false));
    }
    headers
        .get(OFFSET)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .ok_or_else(|| Refusal::bad_request("Upload-Offset must say where the bytes begin"))
}

fn reached(status: StatusCode, offset: u64) -> Response {
    let mut response = status.into_response();
    let headers = response.headers_mut();
    headers.insert(RESUMABLE, HeaderValue::from_static(VERSION));
    headers.insert(OFFSET, HeaderValue::from(offset));
    response
}

fn conflict() -> Refusal {
    let message = "the upload does not stand there: ask where it does, and go on from there";
    Refusal::new(StatusCode::CONFLICT, "Conflict", message, true)
}

fn settling() -> Refusal {
    Refusal::busy("the object has come, and is being written to the disk; ask again")
}
