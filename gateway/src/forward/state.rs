//! What all requests share.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderValue, StatusCode};
use hyprstream_contract::WorkerKeys;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, GatewayError, Metrics,
    budget::{Budget, Exhausted, Share},
    table::{ModelKey, Table},
};

/// What a budget is of, for clients.
const REQUESTS: &str = "concurrent requests";
const MEMORY: &str = "memory for request bodies";
const HELD: &str = "waiting requests";

/// Address of the client of a connection, as an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor(pub(crate) IpAddr);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) tables: watch::Receiver<Arc<Table>>,
    pub(crate) metrics: Metrics,
    /// Places for requests.
    requests: Budget,
    /// Places for requests that wait for a worker.
    held: Budget,
    /// Bytes of request bodies and of answers that are held back.
    pub(super) memory: Budget,
    /// From which the keys of the workers come.
    keys: RwLock<Option<Arc<WorkerKeys>>>,
    /// Cancelled when the shutdown begins.
    pub(crate) shutdown: CancellationToken,
    /// Cancelled when the shutdown is about to cut connections off.
    pub(crate) last_call: CancellationToken,
}

impl State {
    pub(crate) fn new(
        config: Config,
        tables: watch::Receiver<Arc<Table>>,
        metrics: Metrics,
    ) -> Self {
        Self {
            requests: Budget::new(config.max_requests),
            held: Budget::new(config.max_held),
            memory: Budget::new(config.max_buffered_bytes),
            keys: RwLock::new(None),
            shutdown: CancellationToken::new(),
            last_call: CancellationToken::new(),
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

    /// A place for one more request, held until its answer has ended, or until it makes way for
    /// others while its body is still coming.
    pub(super) fn admit(&self) -> Result<Claims, GatewayError> {
        let gives_way = CancellationToken::new();
        match self.requests.take(1, &gives_way) {
            Ok(place) => Ok(Claims {
                place,
                body: None,
                gives_way,
            }),
            Err(_) => Err(GatewayError::Overloaded(REQUESTS)),
        }
    }

    /// A place for a request that is about a namespace and no Model, held until it is dropped.
    pub(crate) fn place(&self, namespace: &str) -> Result<Share, GatewayError> {
        // No Model has an empty name.
        let owner = ModelKey::new(namespace, "");
        self.requests.take_for(&owner, 1).map_err(|why| match why {
            Exhausted::Whole => GatewayError::Overloaded(REQUESTS),
            Exhausted::Share => GatewayError::Contended(REQUESTS),
        })
    }

    /// A place for a request that waits for a worker.
    pub(super) fn hold(&self, model: &ModelKey) -> Result<Share, GatewayError> {
        self.held.take_for(model, 1).map_err(|why| match why {
            Exhausted::Whole => GatewayError::TooManyHeld,
            Exhausted::Share => GatewayError::Contended(HELD),
        })
    }

    pub(crate) fn set_worker_keys(&self, keys: WorkerKeys) {
        *self.keys.write() = Some(Arc::new(keys));
    }

    /// The `Authorization` that the workers of a Model ask for, if they are asked with a key.
    pub(super) fn authorization(&self, model: &ModelKey) -> Option<HeaderValue> {
        let keys = self.keys.read().clone()?;
        let text = format!("Bearer {}", keys.of(&model.namespace, &model.name));
        let mut value = HeaderValue::from_str(&text).expect("a key fits into a header");
        value.set_sensitive(true);
        Some(value)
    }
}

/// What a request has of the budgets.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) place: Share,
    /// The bytes of its body, which may have to be sent again.
    pub(super) body: Option<Share>,
    /// Cancelled when others need them before it is known which Model they are for.
    pub(super) gives_way: CancellationToken,
}

impl Claims {
    /// Takes `more` bytes for the request's body.
    pub(super) fn grow(&mut self, state: &State, more: usize) -> Result<(), GatewayError> {
        let grown = match &mut self.body {
            Some(body) => body.grow(more),
            none => {
                let taken = state.memory.take(more, &self.gives_way);
                taken.map(|share| *none = Some(share))
            }
        };
        grown.map_err(|_| GatewayError::Overloaded(MEMORY))?;
        // It has not stalled.
        let place = self.place.grow(0);
        place.map_err(|_| GatewayError::BodyGaveWay)
    }

    /// Counts them for the Model that the request turned out to name.
    pub(super) fn assign(&mut self, model: &ModelKey) -> Result<(), GatewayError> {
        let refused = |what| {
            move |why| match why {
                Exhausted::Whole => GatewayError::BodyGaveWay,
                Exhausted::Share => GatewayError::Contended(what),
            }
        };
        let place = self.place.assign(model);
        place.map_err(refused(REQUESTS))?;
        let body = self.body.as_mut().map_or(Ok(()), |body| body.assign(model));
        body.map_err(refused(MEMORY))
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
