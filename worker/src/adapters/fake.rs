//! Adapters of [`FakeBackend`](hyprstream_engine::fake::FakeBackend), for tests of what stands above
//! the store.

use std::{
    fs,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyprstream_engine::{PackedAdapter, fake::FakeAdapter};
use hyprstream_models::adapter::{Adapter, AdapterDigest, AdapterError, AdapterFiles};
use sha2::{Digest as _, Sha256};

use super::{PackError, PackLimits, Packed, Packer};

/// Takes any file of tensors for an adapter: what it does depends on the bytes, it takes as much
/// memory as they do, and its rank is 8. A file that begins with `damaged` is refused, one that
/// begins with `panic` panics. The configuration is JSON, of which the `revision` counts.
#[derive(Debug, Default)]
pub struct FakePacker {
    reads: AtomicUsize,
    held: Mutex<bool>,
    let_go: Condvar,
}

impl FakePacker {
    /// How often files were read.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Acquire)
    }

    /// From now on reading waits (or no longer).
    pub fn hold(&self, hold: bool) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = hold;
        self.let_go.notify_all();
    }
}

/// The adapter of a file of this content.
pub fn adapter_of(tensors: &[u8]) -> FakeAdapter {
    let digest: [u8; 32] = Sha256::digest(tensors).into();
    number(&digest)
}

fn number(digest: &[u8; 32]) -> FakeAdapter {
    // The largest numbers mean something to the backend.
    let bytes = digest.first_chunk().expect("32 are at least 8");
    FakeAdapter(u64::from_le_bytes(*bytes) >> 1)
}

impl Packer for FakePacker {
    fn read(&self, files: &AdapterFiles, limits: PackLimits) -> Result<Packed, PackError> {
        self.reads.fetch_add(1, Ordering::AcqRel);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.let_go.wait_while(held, |held| *held);
        drop(held);
        let read = |path: &std::path::Path| {
            fs::read(path).map_err(|_| AdapterError::MissingFile {
                path: path.to_owned(),
            })
        };
        let tensors = read(&files.tensors)?;
        let config = read(&files.config)?;
        let invalid = |why: String| AdapterError::InvalidConfig {
            path: files.config.clone(),
            why,
        };
        let config = serde_json::from_slice::<serde_json::Value>(&config);
        let config = config.map_err(|error| invalid(error.to_string()))?;
        if tensors.starts_with(b"damaged") {
            let why = "it begins with \"damaged\"".to_owned();
            let path = files.tensors.clone();
            return Err(AdapterError::Damaged { path, why }.into());
        }
        assert!(!tensors.starts_with(b"panic"), "it was asked for");
        let bytes = tensors.len() as u64;
        if bytes > limits.bytes {
            return Err(PackError::too_large(bytes, limits.bytes));
        }
        let digest: [u8; 32] = Sha256::digest(&tensors).into();
        Ok(Packed {
            content: PackedAdapter::new(number(&digest), bytes),
            digest: AdapterDigest::from(digest),
            rank: 8,
            revision: config["revision"].as_str().map(str::to_owned),
        })
    }

    fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, PackError> {
        Ok(number(adapter.digest().as_bytes()).packed())
    }
}
