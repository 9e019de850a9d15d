//! Git LFS: pointers, attributes, the batch API, downloads and uploads.

pub mod batch;
mod client;
mod error;
mod pointer;

pub use client::{Client, Options, Transfer};
pub use error::LfsError;
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
