//! Git LFS: pointers, attributes, the batch API, downloads and uploads.

mod attributes;
pub mod batch;
mod client;
mod download;
mod error;
mod guard;
mod http;
mod pointer;
mod retry;
mod upload;
mod work;

pub use attributes::TooCostly;
pub(crate) use attributes::{Attributes, is_lfs_in_worktree, track_line};
pub use client::{Client, Options, Transfer};
pub use error::LfsError;
pub use guard::{Guard, guarded_agent};
pub use http::tls_config;
pub(crate) use pointer::MAX_POINTER_BYTES;
pub use pointer::{InvalidPointer, Pointer};

use crate::{Observer, store::ObjectStore};

/// Brings objects into a store. [`Client`] does it over LFS; other ways of transfer (XET, a peer)
/// are other implementations.
pub trait ObjectSource {
    /// Brings every one of `objects` into `store`, verified by size and SHA-256.
    ///
    /// After an error the objects that came in stay, and parts are continued by the next call.
    fn fetch(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError>;
}
