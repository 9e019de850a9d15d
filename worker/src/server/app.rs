//! What all requests share.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyprstream_engine::Observer;
use hyprstream_openai::{ApiError, ErrorKind};

use super::{
    body::Bodies,
    constraint::Grammars,
    drain::{Drain, InFlight},
    identity::Identity,
    metrics::Metrics,
    options::ApiOptions,
};
use crate::{adapters::Adapters, backend::Loaded, clock::now};

/// A worker: who it is, the model once it is loaded, and whether it still takes work.
pub struct App {
    pub(super) identity: Identity,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drain: Drain,
    pub(super) options: ApiOptions,
    pub(super) bodies: Bodies,
    pub(super) grammars: Grammars,
    /// When it started, in seconds since 1970.
    pub(super) created: u64,
    loaded: OnceLock<Loaded>,
}

/// How long a client should wait for a model that is being loaded.
const LOADING_RETRY: Duration = Duration::from_secs(2);

impl App {
    /// A worker without a model yet, which answers as `options` say.
    ///
    /// # Errors
    /// A metric cannot be registered.
    pub fn new(identity: Identity, options: ApiOptions) -> Result<Self, prometheus::Error> {
        let metrics = Arc::new(Metrics::new(&identity)?);
        let created = now();
        let drain = Drain::default();
        Ok(Self {
            identity,
            metrics,
            drain,
            bodies: Bodies::new(options.max_body_bytes),
            options,
            grammars: Grammars::default(),
            created,
            loaded: OnceLock::new(),
        })
    }

    /// What the engine is to tell its metrics to.
    pub fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.metrics) as Arc<dyn Observer>
    }

    /// Begins to answer with `loaded`. A second model is not taken.
    pub fn set_ready(&self, loaded: Loaded) {
        let adapter_loads = loaded.adapters.load_seconds();
        self.metrics.set_model(loaded.engine.spec(), adapter_loads);
        let _ = self.loaded.set(loaded);
    }

    /// The model.
    pub(super) fn loaded(&self) -> Result<&Loaded, ApiError> {
        self.loaded.get().ok_or_else(|| {
            ApiError::new(ErrorKind::Unavailable, "the model is being loaded")
                .with_code("model_loading")
                .with_retry_after(LOADING_RETRY)
        })
    }

    /// The model's adapters.
    pub(super) fn adapters(&self) -> Result<&Adapters, ApiError> {
        Ok(&self.loaded()?.adapters)
    }

    /// Lets a request in, until the returned guard is dropped.
    pub(super) fn enter(&self) -> Result<InFlight, ApiError> {
        self.drain.enter().ok_or_else(|| {
            ApiError::new(ErrorKind::Unavailable, "this worker is shutting down")
                .with_code("draining")
                .with_retry_after(Duration::from_secs(1))
        })
    }

    /// Lets no more requests in, and waits at most for `time` until those in flight have ended.
    pub async fn abandon(&self, time: Duration) {
        self.drain.begin();
        let _ = tokio::time::timeout(time, self.drain.idle()).await;
    }

    /// Whether the engine lives; a model that is still being loaded is healthy.
    pub(super) fn health(&self) -> Result<(), String> {
        self.loaded
            .get()
            .map_or(Ok(()), |loaded| loaded.engine.health())
    }

    /// Whether requests are answered.
    pub(super) fn ready(&self) -> Result<(), String> {
        if self.drain.is_draining() {
            return Err("draining".to_owned());
        }
        match self.loaded.get() {
            None => Err("the model is being loaded".to_owned()),
            Some(loaded) => {
                loaded.engine.health()?;
                loaded.adapters.ready()
            }
        }
    }
}
