//! `PUT <repository>.git/info/lfs/objects/<oid>?size=<bytes>`.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Path, Query, State as AxumState},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt};
use hyprstream_git2db::{lfs::Pointer, store::StoreError};
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{parse_oid, unprocessable};
use crate::{
    access::Access,
    refusal::{Refusal, is_disk_full},
    state::{State, blocking},
};

/// Query of an upload.
#[derive(Deserialize)]
pub(crate) struct UploadQuery {
    size: Option<u64>,
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
    let repository = access.writable()?.clone();
    let oid = parse_oid(names.get("oid").map(String::as_str).unwrap_or_default())?;
    let announced = announced_length(&headers)?;
    let size = match (query.size, announced) {
        (Some(size), Some(length)) if size != length => {
            return Err(unprocessable(format!(
                "{size} bytes were named and {length} announced"
            )));
        }
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => {
            let message = "the upload must say its length";
            return Err(Refusal::new(
                StatusCode::LENGTH_REQUIRED,
                "BadRequest",
                message,
                false,
            ));
        }
    };
    if size > state.limits.max_object_bytes {
        let message = format!(
            "objects of more than {} bytes are not taken",
            state.limits.max_object_bytes
        );
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BadRequest",
            message,
            false,
        ));
    }
    state.require_space(size)?;
    state.create(&repository).await?;
    let received = state.metrics.lfs_received_bytes.clone();
    let stream = patient(body, state.limits.transfer_idle).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            received.inc_by(chunk.len() as u64);
        }
    });
    let reader = StreamReader::new(Box::pin(stream));
    let mut reader = SyncIoBridge::new(reader);
    blocking(move || {
        let pointer = Pointer { oid, size };
        let _upload = state.mirrors.claims.upload(&pointer.oid);
        state
            .layout
            .store()
            .insert_verified(&mut reader, &pointer)
            .map_err(refusal)?;
        state
            .layout
            .add_member(&repository, &pointer.oid)
            .map_err(|error| State::io_refusal("keeping an object", &error))?;
        tracing::info!(%repository, oid = %pointer.oid, size, "upload");
        Ok(())
    })
    .await??;
    Ok(StatusCode::OK.into_response())
}

fn announced_length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length
        .map(Some)
        .ok_or_else(|| Refusal::bad_request("the content length cannot be read"))
}

/// The body, with an error in place of a wait that is too long.
fn patient(body: Body, idle: Duration) -> impl Stream<Item = io::Result<Bytes>> {
    let stream = body.into_data_stream();
    futures::stream::unfold(Some(stream), move |stream| async move {
        let mut stream = stream?;
        match tokio::time::timeout(idle, stream.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(stream))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    })
}

fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::DiskFull { .. } => Refusal::disk_full("no space is left on the registry"),
        StoreError::Mismatch { .. } => unprocessable(error.to_string()),
        StoreError::Input { .. } => {
            tracing::debug!(
                error = crate::refusal::chain(&error),
                "an upload was broken off"
            );
            Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "Incomplete",
                "the upload broke off",
                true,
            )
        }
        StoreError::Io { ref source, .. } if is_disk_full(source) => {
            Refusal::disk_full("no space is left on the registry")
        }
        other => Refusal::internal("storing an object", &other),
    }
}
