//! Waiting for a worker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::sleep_until,
};

use super::State;
use crate::{
    GatewayError,
    endpoint::Endpoint,
    table::{ModelEntry, Table},
};

/// Longest time between looks at workers that failed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The waiting of one request, over all of its attempts.
pub(super) struct Hold<'a> {
    state: &'a State,
    waiting: Option<Waiting<'a>>,
}

struct Waiting<'a> {
    state: &'a State,
    since: Instant,
    _slot: OwnedSemaphorePermit,
}

impl<'a> Hold<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self {
            state,
            waiting: None,
        }
    }

    /// Whether the request had to wait.
    pub(super) fn was_needed(&self) -> bool {
        self.waiting.is_some()
    }

    /// A worker was found. The time of another wait counts from the first one.
    pub(super) fn ended(&mut self) {
        if let Some(waiting) = &self.waiting {
            self.state
                .metrics
                .hold
                .observe(waiting.since.elapsed().as_secs_f64());
        }
    }

    /// Returns when it is worth looking again: another table, or a worker that is worth another
    /// try.
    ///
    /// # Errors
    /// The time is up, too many requests wait, or the gateway shuts down.
    pub(super) async fn wait(
        &mut self,
        tables: &mut watch::Receiver<Arc<Table>>,
        entry: &ModelEntry,
        excluded: &[Arc<Endpoint>],
        id: impl FnOnce() -> String,
    ) -> Result<(), GatewayError> {
        let limit = self.state.config.hold_timeout;
        let waiting = match &mut self.waiting {
            Some(waiting) => waiting,
            none => none.insert(Waiting::new(self.state)?),
        };
        let deadline = waiting.since + limit;
        // A worker that failed is fit again at once when somebody else's request reaches it.
        let look_again = || Instant::now() + LOOK_AGAIN;
        let retry = entry
            .next_fit(excluded)
            .map_or(deadline, |fit| fit.min(look_again()));
        tokio::select! {
            biased;
            () = self.state.shutdown.cancelled() => return Err(GatewayError::ShuttingDown),
            // A closed channel means that nobody watches the cluster any more.
            changed = tables.changed() => return changed.map_err(|_| GatewayError::ShuttingDown),
            () = sleep_until(retry.min(deadline).into()) => {}
        }
        if Instant::now() < deadline {
            return Ok(());
        }
        Err(GatewayError::HoldTimeout {
            model: id(),
            reason: entry.facts.reason.clone(),
            message: entry.facts.message.clone(),
            waited: limit,
        })
    }
}

impl<'a> Waiting<'a> {
    fn new(state: &'a State) -> Result<Self, GatewayError> {
        let slot = Arc::clone(&state.held)
            .try_acquire_owned()
            .map_err(|_| GatewayError::TooManyHeld)?;
        state.metrics.held.inc();
        Ok(Self {
            state,
            since: Instant::now(),
            _slot: slot,
        })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.state.metrics.held.dec();
    }
}
