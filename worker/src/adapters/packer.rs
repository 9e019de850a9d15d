//! Making an adapter's files ready for the backend that runs the model, beside its work.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
};

use hyprstream_engine::PackedAdapter;
use hyprstream_models::adapter::{
    Adapter, AdapterDigest, AdapterError, AdapterFiles, AdapterLimits,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

/// Makes adapters ready for one model on one kind of backend. It is called on threads of its own,
/// while the backend computes.
pub trait Packer: Send + Sync {
    /// Reads the adapter in `files`, checks that it fits the model, and packs it.
    ///
    /// # Errors
    /// [`PackError`]: it is not to be served, or not now.
    fn read(&self, files: &AdapterFiles, limits: PackLimits) -> Result<Packed, PackError>;

    /// Packs an adapter that is in memory already.
    ///
    /// # Errors
    /// [`PackError`]: the backend does not compute it, or there is no memory.
    fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, PackError>;

    /// Bytes that are free where adapters lie, where that is not the memory of the machine.
    fn gpu_free_bytes(&self) -> Option<u64> {
        None
    }
}

/// What an adapter may take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackLimits {
    /// Its files.
    pub files: AdapterLimits,
    /// Bytes of what it becomes.
    pub bytes: u64,
}

/// An adapter that is ready to be attached.
#[derive(Debug)]
pub struct Packed {
    /// For the engine.
    pub content: PackedAdapter,
    /// What it computes.
    pub digest: AdapterDigest,
    /// Its largest rank.
    pub rank: usize,
    /// The revision of the model that it says it was trained on.
    pub revision: Option<String>,
}

/// An adapter is not to be had from its files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PackError {
    /// CamelCase, for a condition.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Whether the same files give the same error again.
    pub is_final: bool,
}

impl PackError {
    pub(super) fn new(reason: &str, message: impl Into<String>, is_final: bool) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
            is_final,
        }
    }

    /// It takes more than there is for all of them.
    pub fn too_large(bytes: u64, limit: u64) -> Self {
        let message = format!(
            "the adapter takes {bytes} bytes of memory, but all together may take {limit}: \
             --adapter-memory-bytes is that limit"
        );
        Self::new("TooLarge", message, true)
    }
}

impl From<AdapterError> for PackError {
    fn from(error: AdapterError) -> Self {
        Self::new(error.reason(), chain(&error), error.is_final())
    }
}

/// The error and its cause, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What was read, and of which files.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) packed: Packed,
    /// Of the file of tensors, in hexadecimal.
    pub(super) sha256: String,
    /// Of the file of tensors, in bytes.
    pub(super) size: u64,
}

/// By what it is told that a file is another: device, inode, time of change and size.
pub(super) type Stamp = (u64, u64, i64, i64, u64);

/// Those of both files of an adapter; `None` of one that is not there.
pub(super) type Stamps = [Option<Stamp>; 2];

pub(super) fn stamps(files: &AdapterFiles) -> Stamps {
    [&files.tensors, &files.config].map(|path| stamp(path))
}

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    Some(stamp_of(&fs::metadata(path).ok()?))
}

pub(super) fn stamp_of(found: &Metadata) -> Stamp {
    (
        found.dev(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.size(),
    )
}

/// Reads and hashes `files`, and makes sure that both saw the same.
pub(super) fn read_files(
    packer: &dyn Packer,
    files: &AdapterFiles,
    limits: PackLimits,
) -> Result<Unpacked, PackError> {
    let before = stamps(files);
    let packed = packer.read(files, limits)?;
    if packed.content.bytes() > limits.bytes {
        return Err(PackError::too_large(packed.content.bytes(), limits.bytes));
    }
    let (sha256, size) = hash(&files.tensors).map_err(|error| {
        let message = format!("cannot read {}: {error}", files.tensors.display());
        PackError::new("InternalError", message, false)
    })?;
    if stamps(files) != before {
        let message = format!("{} was changed while it was read", files.tensors.display());
        return Err(PackError::new("FilesChanged", message, false));
    }
    Ok(Unpacked {
        packed,
        sha256,
        size,
    })
}

fn hash(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    // As it is written.
    Ok((AdapterDigest::from(digest).to_string(), size))
}

/// How much the threads that pack give way to those that compute.
const NICE: i32 = 10;

/// What `work` returns, computed on a thread of its own that gives way to others.
///
/// # Errors
/// There is no thread, or it panicked.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PackError> {
    let failed = |why: String| PackError::new("InternalError", why, false);
    let (told, hears) = oneshot::channel();
    let name = "adapter".to_owned();
    let spawned = thread::Builder::new().name(name).spawn(move || {
        // On Linux this is the thread's own, and without it the work is just done less politely.
        let _ = rustix::process::setpriority_process(None, NICE);
        // Nobody hears it any more when the server has ended meanwhile.
        let _ = told.send(work());
    });
    spawned.map_err(|error| failed(format!("no thread can be started: {error}")))?;
    let panicked = |_| failed("reading the adapter ended in a panic".to_owned());
    hears.await.map_err(panicked)
}
