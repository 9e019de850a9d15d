//! The bytes of an upload, from its client to the store.

use std::{
    io::{self, Read},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures::{Stream, StreamExt};
use hyprstream_git2db::{
    Digest, Observer,
    lfs::Pointer,
    store::{Part, StoreError},
};
use hyprstream_slots::Slot;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};

use super::{
    answer::Underway,
    behind::Behind,
    parts::{self, Held},
    unprocessable,
};
use crate::{
    access::Access,
    audit,
    limits::Limits,
    names::Repository,
    refusal::{Refusal, is_disk_full},
    state::State,
};

const WAIT_FOR_A_PLACE: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 256 << 10;

/// Where the bytes go until all of them are here.
pub(super) enum Onto {
    /// A file that goes if they do not all come.
    Nothing,
    /// A part that is kept, which holds as much as stands here.
    Part { held: Held, offset: u64 },
}

/// An object that a client sends.
pub(super) struct Incoming {
    pub(super) access: Access,
    pub(super) pointer: Pointer,
    pub(super) onto: Onto,
    /// Whether to end well although some bytes are still missing, since the client says when it
    /// has sent enough for now.
    pub(super) may_be_short: bool,
}

/// Begins to take the bytes, on a thread of its own: that lasts as long as the client likes, and
/// must not take a thread from what looks at the disk. What has come in whole is kept whether or
/// not the client still waits.
pub(super) async fn receive(
    state: Arc<State>,
    incoming: Incoming,
    body: Body,
) -> Result<Underway, Refusal> {
    let share = incoming.access.share();
    let place = state.uploads.places.acquire(&share, false);
    let Ok(place) = tokio::time::timeout(WAIT_FOR_A_PLACE, place).await else {
        return Err(Refusal::busy("too many uploads at once; try again"));
    };
    state.create(&incoming.access.repository).await?;
    let cancel = match &incoming.onto {
        Onto::Nothing => CancellationToken::new(),
        Onto::Part { held, .. } => held.active.cancel.clone(),
    };
    let received = state.metrics.lfs_received_bytes.clone();
    let stream = patient(body, &state.limits, cancel).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            received.inc_by(chunk.len() as u64);
        }
    });
    let mut reader = SyncIoBridge::new(StreamReader::new(Box::pin(stream)));
    let (verify, verified) = oneshot::channel();
    let (end, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("upload".to_owned())
        .spawn(move || {
            let namespace = match &incoming.access.repository {
                Repository::Pushed { namespace, .. } => Some(namespace.clone()),
                Repository::Mirror(_) => None,
            };
            let is_kept = matches!(incoming.onto, Onto::Part { .. });
            let is_short = incoming.may_be_short;
            let result = take(&state, incoming, &mut reader, verify, place);
            let is_left = is_kept && (is_short || result.is_err());
            let _ = end.send(result);
            if is_left {
                parts::tidy(&state, namespace.as_ref());
            }
        })
        .map_err(|error| Refusal::internal("an upload", &error))?;
    Ok(Underway { verified, done })
}

fn take(
    state: &State,
    incoming: Incoming,
    reader: &mut dyn Read,
    verify: oneshot::Sender<()>,
    _place: Slot,
) -> Result<(), Refusal> {
    let Incoming {
        access,
        pointer,
        onto,
        may_be_short,
    } = incoming;
    let (repository, oid) = (&access.repository, &pointer.oid);
    let _upload = state.mirrors.claims.upload(oid);
    let opening = |error: io::Error| State::io_refusal("beginning an upload", &error);
    let key = (repository.clone(), oid.clone());
    // Removed with the value, unless it was kept.
    let mut aside = None;
    let path = match &onto {
        Onto::Nothing => {
            let file = tempfile::NamedTempFile::new_in(state.layout.tmp()).map_err(opening)?;
            aside.insert(file.into_temp_path()).to_path_buf()
        }
        Onto::Part { offset, .. } => {
            parts::prepare(&state.layout, &key, *offset).map_err(opening)?
        }
    };
    let mut part = open(state, &pointer, &onto, &path)?;
    let mut behind = Behind::default();
    let came = copy(reader, &mut part, &mut behind, (&onto, oid, &path));
    let bytes = match came {
        Ok(bytes) if may_be_short && part.missing_bytes() > 0 => {
            tracing::debug!(%repository, %oid, bytes, "a part of an upload");
            return Ok(());
        }
        other => other.map_err(refusal)?,
    };
    let mut entry = access.entry("upload");
    (entry.object, entry.bytes) = (Some(oid.to_string()), Some(bytes));
    if let Err(error) = part.verify() {
        let refusal = refusal(error);
        let _ = std::fs::remove_file(&path);
        entry.result = audit::Outcome::Failed;
        entry.reason = Some(refusal.message.clone());
        state.audit.note(&entry);
        return Err(refusal);
    }
    if let Onto::Part { held, .. } = &onto {
        held.active.is_verified.store(true, Ordering::Relaxed);
    }
    let _ = verify.send(());
    behind
        .end()
        .map_err(|error| State::io_refusal("syncing an object", &error))?;
    part.finish().map_err(refusal)?;
    if let Some(aside) = aside {
        // Its old name is free, and may be another's soon.
        let _ = aside.keep();
    }
    // The repository may have been removed since the upload began.
    state
        .layout
        .create(repository)
        .map_err(|error| Refusal::internal("making the repository", &error))?;
    state
        .layout
        .add_member(repository, oid)
        .map_err(|error| State::io_refusal("keeping an object", &error))?;
    state.audit.note(&entry);
    tracing::info!(%repository, %oid, size = pointer.size, bytes, "upload");
    Ok(())
}

/// Ends the reading of a part with its upload.
struct Ends<'a>(&'a CancellationToken);

impl Observer for Ends<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Opens what the bytes are added to; reads what is in it.
fn open(state: &State, pointer: &Pointer, onto: &Onto, path: &Path) -> Result<Box<Part>, Refusal> {
    let store = state.layout.store();
    let opened = match onto {
        Onto::Nothing => store.part_at(path, pointer, &()),
        // The client's next bytes wait in the connection meanwhile.
        Onto::Part { held, .. } => store.part_at(path, pointer, &Ends(&held.active.cancel)),
    };
    opened.map_err(refusal)
}

/// Adds all that comes. Returns how much.
fn copy(
    reader: &mut dyn Read,
    part: &mut Part,
    behind: &mut Behind,
    (onto, oid, path): (&Onto, &Digest, &Path),
) -> Result<u64, StoreError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                let oid = oid.clone();
                return Err(StoreError::Input { oid, source });
            }
        };
        part.append(&buffer[..read])?;
        bytes += read as u64;
        if let Onto::Part { held, .. } = onto {
            held.active.moved.fetch_add(read as u64, Ordering::Relaxed);
        }
        let synced = behind.wrote(read as u64, || part.handle());
        synced.map_err(|source| StoreError::Io {
            act: "sync",
            path: path.to_owned(),
            source,
        })?;
    }
}

/// The body, with an error once too little of it comes, or the upload has to end.
fn patient(
    body: Body,
    limits: &Limits,
    cancel: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let (window, least) = (limits.transfer_idle, limits.least_upload_bytes_per_second);
    let least = ((least as f64 * window.as_secs_f64()) as u64).max(1);
    let start = (body.into_data_stream(), Instant::now() + window, 0);
    futures::stream::unfold(Some(start), move |state| {
        let cancel = cancel.clone();
        async move {
            let (mut stream, mut until, mut came) = state?;
            let next = tokio::select! {
                biased;
                // What is here already is taken even then.
                next = tokio::time::timeout_at(until, stream.next()) => next,
                () = cancel.cancelled() => {
                    return Some((Err(io::ErrorKind::ConnectionAborted.into()), None));
                }
            };
            match next {
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
        }
    })
}

fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::DiskFull { .. } => Refusal::disk_full("no space is left on the registry"),
        StoreError::Mismatch { .. } => unprocessable(error.to_string()),
        StoreError::Input { .. } | StoreError::Cancelled { .. } => {
            tracing::debug!(
                error = crate::refusal::chain(&error),
                "an upload was broken off"
            );
            Refusal::new(
                axum::http::StatusCode::REQUEST_TIMEOUT,
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
