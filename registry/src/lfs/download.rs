//! `GET <repository>.git/info/lfs/objects/<oid>`, whole or in part.

use std::{collections::HashMap, io, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, State as AxumState},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use hyprstream_git2db::Digest;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{object_missing, parse_oid, range};
use crate::{access::Access, refusal::Refusal, scrub, state::State};

const CHUNK_BYTES: usize = 256 << 10;

/// The bytes of an object.
pub(crate) async fn download(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    Path(names): Path<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let repository = access.readable(&state).await?;
    let text = names.get("oid").map(String::as_str).unwrap_or_default();
    let oid = parse_oid(text)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => object_missing(&state, repository, &oid),
        _ => Refusal::internal("reading an object", &error),
    };
    let path = state.layout.member(repository, &oid);
    let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
    let size = file.metadata().await.map_err(failed)?.len();
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = format!("\"{oid}\"");
    // A part of another version of the content would be of no use to the client.
    let usable = value(header::IF_RANGE).is_none_or(|wanted| wanted == etag);
    let wanted = range::parse(value(header::RANGE).filter(|_| usable), size);
    let common = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, etag),
        (
            header::CACHE_CONTROL,
            "private, immutable, max-age=31536000".to_owned(),
        ),
    ];
    let (status, first, length, content_range) = match wanted {
        range::Wanted::All => (StatusCode::OK, 0, size, None),
        range::Wanted::Part { first, last } => {
            let content_range = format!("bytes {first}-{last}/{size}");
            (
                StatusCode::PARTIAL_CONTENT,
                first,
                last - first + 1,
                Some(content_range),
            )
        }
        range::Wanted::Impossible => {
            let content_range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, content_range).into_response());
        }
    };
    if first > 0 {
        file.seek(io::SeekFrom::Start(first))
            .await
            .map_err(failed)?;
    }
    file.set_max_buf_size(CHUNK_BYTES);
    let served = state.metrics.lfs_served_bytes.clone();
    let mut check = (length == size).then(|| Check::new(Arc::clone(&state), oid, size));
    let stream = ReaderStream::with_capacity(file.take(length), CHUNK_BYTES).map(move |chunk| {
        let chunk = chunk?;
        if let Some(check) = &mut check {
            check.next(&chunk)?;
        }
        served.inc_by(chunk.len() as u64);
        Ok::<_, io::Error>(chunk)
    });
    let length = [(header::CONTENT_LENGTH, length.to_string())];
    let content_range = content_range.map(|value| [(header::CONTENT_RANGE, value)]);
    let mut response = (status, common, length, Body::from_stream(stream)).into_response();
    for (name, value) in content_range.into_iter().flatten() {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Hashes an object on its way out, so that bytes that went bad on the disk are noticed.
struct Check {
    state: Arc<State>,
    oid: Digest,
    left: u64,
    hasher: Sha256,
}

impl Check {
    fn new(state: Arc<State>, oid: Digest, size: u64) -> Self {
        Self {
            state,
            oid,
            left: size,
            hasher: Sha256::new(),
        }
    }

    /// Takes the next bytes. The last ones are held back if the whole is bad, so that the client
    /// sees an answer that breaks off.
    fn next(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.hasher.update(chunk);
        self.left = self.left.saturating_sub(chunk.len() as u64);
        if self.left > 0 {
            return Ok(());
        }
        let found = hex::encode(std::mem::take(&mut self.hasher).finalize());
        if found == self.oid.as_str() {
            return Ok(());
        }
        let (state, oid) = (Arc::clone(&self.state), self.oid.clone());
        tokio::task::spawn_blocking(move || scrub::set_aside(&state, &oid));
        Err(io::Error::other("the object went bad on the disk"))
    }
}
