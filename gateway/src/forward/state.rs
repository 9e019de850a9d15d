//! What all requests share.

use std::{net::IpAddr, sync::Arc};

use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{Config, GatewayError, Metrics, table::Table};

/// Address of the client of a connection, as an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor(pub(crate) IpAddr);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) tables: watch::Receiver<Arc<Table>>,
    pub(crate) metrics: Metrics,
    /// Slots for requests.
    requests: Arc<Semaphore>,
    /// Slots for requests that wait for a worker.
    pub(super) held: Arc<Semaphore>,
    /// Bytes of request bodies that may still be taken into memory.
    pub(super) body_bytes: Arc<Semaphore>,
    /// Cancelled when the shutdown begins.
    pub(crate) shutdown: CancellationToken,
}

impl State {
    pub(crate) fn new(
        config: Config,
        tables: watch::Receiver<Arc<Table>>,
        metrics: Metrics,
    ) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(config.max_requests)),
            held: Arc::new(Semaphore::new(config.max_held)),
            body_bytes: Arc::new(Semaphore::new(config.max_buffered_bytes)),
            shutdown: CancellationToken::new(),
            config,
            tables,
            metrics,
        }
    }

    /// Ok when requests can be routed, else why not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.shutdown.is_cancelled() {
            Err("shutting down".to_owned())
        } else if self.tables.borrow().is_complete() {
            Ok(())
        } else {
            Err("the models and their workers have not been listed yet".to_owned())
        }
    }

    /// A slot for one more request, held until its answer has ended.
    pub(super) fn admit(&self) -> Result<OwnedSemaphorePermit, GatewayError> {
        let slot = Arc::clone(&self.requests).try_acquire_owned();
        slot.map_err(|_| GatewayError::Overloaded("concurrent requests"))
    }
}

/// Counts a request when it is dropped.
pub(super) struct Outcome<'a> {
    metrics: &'a Metrics,
    /// `NAMESPACE/NAME`, empty until the Model is known.
    pub(super) model: String,
    /// Status of the answer. 499, as nginx counts it, for a client that went away before.
    pub(super) code: StatusCode,
}

impl<'a> Outcome<'a> {
    pub(super) fn new(metrics: &'a Metrics) -> Self {
        let gone = StatusCode::from_u16(499).expect("499 is a status");
        Self {
            metrics,
            model: String::new(),
            code: gone,
        }
    }
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        self.metrics
            .requests
            .with_label_values(&[&self.model, self.code.as_str()])
            .inc();
    }
}
