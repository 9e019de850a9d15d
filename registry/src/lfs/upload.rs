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
use tokio::time::Instant;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{parse_oid, unprocessable};
use crate::{
    access::Access,
    limits::Limits,
    refusal::{Refusal, is_disk_full},
    state::State,
};

const WAIT_FOR_A_PLACE: Duration = Duration::from_secs(30);

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
    let repository = access.writable(&state).await?.clone();
    let share = access.share();
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
    let place = state.uploads.acquire(&share, false);
    let Ok(place) = tokio::time::timeout(WAIT_FOR_A_PLACE, place).await else {
        return Err(Refusal::busy("too many uploads at once; try again"));
    };
    state.create(&repository).await?;
    let received = state.metrics.lfs_received_bytes.clone();
    let stream = patient(body, &state.limits).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            received.inc_by(chunk.len() as u64);
        }
    });
    let reader = StreamReader::new(Box::pin(stream));
    let mut reader = SyncIoBridge::new(reader);
    on_thread(move || {
        let _place = place;
        let pointer = Pointer { oid, size };
        let _upload = state.mirrors.claims.upload(&pointer.oid);
        state
            .layout
            .store()
            .insert_verified(&mut reader, &pointer)
            .map_err(refusal)?;
        // The repository may have been removed since the upload began.
        state
            .layout
            .create(&repository)
            .map_err(|error| Refusal::internal("making the repository", &error))?;
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

/// Runs an upload on a thread of its own: it lasts as long as its client likes, and must not take
/// a thread from what looks at the disk.
async fn on_thread(
    work: impl FnOnce() -> Result<(), Refusal> + Send + 'static,
) -> Result<Result<(), Refusal>, Refusal> {
    let failed = |error: &dyn std::error::Error| Refusal::internal("an upload", error);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("upload".to_owned())
        .spawn(move || {
            let _ = sender.send(work());
        })
        .map_err(|error| failed(&error))?;
    receiver.await.map_err(|error| failed(&error))
}

/// The body, with an error once too little of it comes.
fn patient(body: Body, limits: &Limits) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let (window, least) = (limits.transfer_idle, limits.least_upload_bytes_per_second);
    let least = ((least as f64 * window.as_secs_f64()) as u64).max(1);
    let start = (body.into_data_stream(), Instant::now() + window, 0);
    futures::stream::unfold(Some(start), move |state| async move {
        let (mut stream, mut until, mut came) = state?;
        match tokio::time::timeout_at(until, stream.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => {
                came += chunk.len() as u64;
                if came >= least {
                    (until, came) = (Instant::now() + window, 0);
                }
                Some((Ok(chunk), Some((stream, until, came))))
            }
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
