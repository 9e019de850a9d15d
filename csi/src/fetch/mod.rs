//! Bringing the files of a commit to this node, once.

mod access;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod flight;
mod registry;
mod wanted;

use std::{
    collections::HashSet,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

pub use access::{Access, Key};
pub use error::FetchError;
pub(crate) use error::chain;
pub use flight::{Checkouts, Lease};
use hyprstream_contract::{VolumeAttributes, manifest::ManifestFile};
use hyprstream_git2db::{
    Digest,
    lfs::{InvalidPointer, Pointer},
};
pub use registry::Registry;
pub(crate) use wanted::Kept;

use crate::{error::Error, layout::CheckoutKey};

/// Endings of files that hold weights.
const WEIGHTS: [&str; 5] = ["safetensors", "bin", "gguf", "pt", "pth"];
/// A pointer is shorter than this.
const POINTER_BYTES: u64 = 1024;

/// The complete files of a commit on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// The folder to mount.
    pub path: PathBuf,
    /// Its files, ordered by path. Links appear with the content of what they lead to.
    pub files: Vec<ManifestFile>,
}

impl Checkout {
    /// The first file that is gone or has another size. Reads no content.
    pub fn damaged_file(&self) -> Option<&ManifestFile> {
        self.files.iter().find(|file| {
            std::fs::metadata(self.path.join(&file.path))
                .map_or(true, |found| found.len() != file.size_bytes)
        })
    }

    /// The first file of weights whose content is the text of an LFS pointer: some server or
    /// program lost the weights on their way, and a worker must not be left to find out.
    pub fn pointer_file(&self) -> Option<&ManifestFile> {
        self.files.iter().find(|file| {
            let ending = file.path.rsplit_once('.').map_or("", |(_, ending)| ending);
            file.size_bytes < POINTER_BYTES
                && WEIGHTS.iter().any(|w| ending.eq_ignore_ascii_case(w))
                && std::fs::read(self.path.join(&file.path))
                    .is_ok_and(|text| Pointer::parse(&text) != Err(InvalidPointer::NotAPointer))
        })
    }

    /// Sizes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

/// What a commit is made of.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Its LFS objects, each once.
    pub pointers: Vec<Pointer>,
    /// The digests of these objects.
    pub objects: Arc<HashSet<Digest>>,
    /// What its other files take on the disk, in bytes, if none of them is there.
    pub blob_bytes: u64,
}

impl Plan {
    /// Sizes of all objects together.
    pub fn bytes(&self) -> u64 {
        self.pointers.iter().map(|pointer| pointer.size).sum()
    }
}

/// What a fetch has to write to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Bytes still to be written.
    pub needed_bytes: u64,
    /// Bytes of the LFS objects that are there.
    pub present_bytes: u64,
}

/// Where checkouts come from. [`Registry`] is the real one. Calls block, and are made in this
/// order. What came before an error or a kill is used by the next call.
pub trait Source: Send + Sync + 'static {
    /// The checkout, if it is complete on this node.
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError>;

    /// What the commit is made of, for which its git objects are fetched.
    fn plan(
        &self,
        key: &CheckoutKey,
        volume: &VolumeAttributes,
        progress: &Progress,
    ) -> Result<Plan, FetchError>;

    /// What of it is not on the node.
    fn missing(&self, plan: &Plan) -> Result<Missing, FetchError>;

    /// Brings the LFS objects to the node.
    fn bring(
        &self,
        volume: &VolumeAttributes,
        plan: &Plan,
        progress: &Progress,
    ) -> Result<(), FetchError>;

    /// Makes the checkout out of what is on the node; asks nobody.
    fn build(&self, key: &CheckoutKey, volume: &VolumeAttributes) -> Result<Checkout, FetchError>;
}

/// Whoever can free space on the node's disk.
pub trait Room: Send + Sync + 'static {
    /// Deletes as much of what nothing uses as it takes for `free_bytes` to be free, the least
    /// worth first; if all of that is not enough, nothing. Returns the bytes that are free then.
    /// Blocks.
    fn make_room(&self, free_bytes: u64) -> Result<u64, Error>;
}

/// How far a fetch is, and whether anyone still wants it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the files that lie on the node.
    pub bytes_done: AtomicU64,
    /// Bytes of the files; 0 while unknown.
    pub bytes_total: AtomicU64,
    /// Whether it waits for other fetches to end.
    pub waiting: AtomicBool,
    /// Set to end the fetch.
    pub cancelled: AtomicBool,
    /// By what the registry is asked: the keys of all who have asked for the fetch, so that it
    /// outlives the volume that began it.
    pub access: Access,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = self.bytes_done.load(Ordering::Relaxed);
        match self.bytes_total.load(Ordering::Relaxed) {
            0 => f.write_str("the fetch is about to begin")?,
            total => write!(f, "fetched {} of {}", MiB(done.min(total)), MiB(total))?,
        }
        if self.waiting.load(Ordering::Relaxed) {
            f.write_str("; it waits for other fetches to end")?;
        }
        Ok(())
    }
}

/// A number of bytes, shown in MiB.
pub(crate) struct MiB(pub(crate) u64);

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}
