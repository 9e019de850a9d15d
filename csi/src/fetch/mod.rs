//! Bringing the files of a commit to this node, once.

mod error;
mod flight;
mod registry;

use std::{
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use hyprstream_contract::manifest::ManifestFile;

pub use error::FetchError;
pub use flight::{Checkouts, Lease};
use hyprstream_contract::VolumeAttributes;
pub use registry::Registry;

use crate::layout::CheckoutKey;

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

    /// Sizes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

/// Where checkouts come from. [`Registry`] is the real one. Calls block.
pub trait Source: Send + Sync + 'static {
    /// The checkout, if it is complete on this node.
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError>;

    /// Brings the checkout to this node. What came before an error or a kill is used by the next
    /// call.
    fn fetch(
        &self,
        key: &CheckoutKey,
        volume: &VolumeAttributes,
        progress: &Progress,
    ) -> Result<Checkout, FetchError>;
}

/// How far a fetch is, and whether anyone still wants it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the files that lie on the node.
    pub bytes_done: AtomicU64,
    /// Bytes of the files; 0 while unknown.
    pub bytes_total: AtomicU64,
    /// Set to end the fetch.
    pub cancelled: AtomicBool,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = self.bytes_done.load(Ordering::Relaxed);
        match self.bytes_total.load(Ordering::Relaxed) {
            0 => f.write_str("the fetch is about to begin"),
            total => write!(f, "fetched {} of {}", MiB(done.min(total)), MiB(total)),
        }
    }
}

/// A number of bytes, shown in MiB.
pub(crate) struct MiB(pub(crate) u64);

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}
