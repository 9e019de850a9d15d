//! The LFS client.

use crate::{
    Credentials, Observer, RemoteUrl,
    lfs::{LfsError, ObjectSource, Pointer},
    store::ObjectStore,
};

/// Downloads and uploads the LFS objects of one repository.
///
/// Credentials go only to the endpoint's own origin (scheme, host and port), never along a
/// redirect or an action to another one. A `.lfsconfig` in the repository is not read.
pub struct Client {
    endpoint: String,
    credentials: Credentials,
    options: Options,
}

/// How a [`Client`] works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Transfers at the same time.
    pub parallel: usize,
    /// Objects in one batch call.
    pub batch_objects: usize,
    /// Attempts per call after failures that may pass.
    pub attempts: u32,
    /// Time to connect.
    pub connect_timeout: std::time::Duration,
    /// Time without a byte after which a transfer is broken off and continued.
    pub stall_timeout: std::time::Duration,
    /// Longest wait that a server may ask for (`Retry-After`).
    pub max_wait: std::time::Duration,
}

impl Default for Options {
    /// 4 transfers, 100 objects, 5 attempts, 15 s to connect, 60 s without a byte, 60 s of wait.
    fn default() -> Self {
        use std::time::Duration;
        Self {
            parallel: 4,
            batch_objects: 100,
            attempts: 5,
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            max_wait: Duration::from_secs(60),
        }
    }
}

/// What a transfer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Objects that were there already.
    pub objects_present: u64,
    /// Objects that this call transferred.
    pub objects_moved: u64,
    /// Bytes that came or went over the network for content, wasted ones included.
    pub bytes_moved: u64,
}

impl Client {
    /// A client for the LFS API beside `url`.
    pub fn new(
        url: &RemoteUrl,
        credentials: Credentials,
        options: Options,
    ) -> Result<Self, LfsError> {
        let endpoint = url
            .lfs_endpoint()
            .ok_or_else(|| LfsError::UnsupportedRemote { url: url.to_string() })?;
        Ok(Self { endpoint, credentials, options })
    }

    /// Brings `objects` into `store`, verified by size and SHA-256.
    pub fn download(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        let _ = (&self.endpoint, &self.credentials, &self.options, objects, store, observer);
        unimplemented!("not done yet")
    }

    /// Brings `objects` from `store` to the server, which is told the full name of the ref they
    /// belong to. Those that it has are not sent.
    pub fn upload(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        reference: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        let _ = (objects, store, reference, observer);
        unimplemented!("not done yet")
    }
}

impl ObjectSource for Client {
    fn fetch(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        self.download(objects, store, observer)
    }
}
