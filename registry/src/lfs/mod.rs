//! The server's side of Git LFS: batch, download, upload, verify.
//!
//! An object is given away only by the repositories that have it, see
//! [`Layout::member`](crate::layout::Layout::member): to push a pointer to somebody else's object
//! gives no access to it, because the upload asks for the bytes even if the store has them.

mod answer;
mod batch;
mod behind;
mod download;
pub(crate) mod parts;
mod range;
mod receive;
mod tus;
mod upload;

use axum::{
    body::Bytes,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyprstream_git2db::{Digest, lfs::batch::CONTENT_TYPE};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use batch::{batch, verify};
pub(crate) use download::download;
pub(crate) use tus::{append, offset};
pub(crate) use upload::upload;

use crate::{access::Access, let_go, names::Repository, refusal::Refusal, state::State};

/// Longest body of a batch or verify call, in bytes.
pub(crate) const MAX_JSON_BYTES: usize = 4 << 20;

/// Answers calls of the locking API, which is not offered; git-lfs goes on without.
pub(crate) async fn locks(_: Access) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "NotFound",
        "file locking is not offered",
        false,
    )
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the body is not a message of LFS: {error}")))
}

fn json<T: Serialize>(value: &T) -> Result<Response, Refusal> {
    let body =
        serde_json::to_vec(value).map_err(|error| Refusal::internal("writing JSON", &error))?;
    let mut response = (StatusCode::OK, body).into_response();
    let content_type = HeaderValue::from_static(CONTENT_TYPE);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// An oid as LFS writes it: 64 lower-case digits.
pub(crate) fn parse_oid(text: &str) -> Result<Digest, Refusal> {
    let oid: Digest = text
        .parse()
        .map_err(|_| unprocessable("an oid has 64 hexadecimal digits"))?;
    if oid.as_str() == text {
        Ok(oid)
    } else {
        Err(unprocessable("an oid is written in lower case"))
    }
}

fn unprocessable(message: impl Into<String>) -> Refusal {
    Refusal::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "BadRequest",
        message,
        false,
    )
}

/// Why the repository does not have an object.
fn object_missing(state: &State, repository: &Repository, oid: &Digest) -> Refusal {
    if let Some(why) = let_go::why(&state.layout, repository, oid) {
        return Refusal::new(StatusCode::GONE, "MissingLFSObject", why, false);
    }
    let message = format!("object {oid} is not in this repository");
    Refusal::new(StatusCode::NOT_FOUND, "MissingLFSObject", message, false)
}
