//! Waiting for a worker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};

use super::State;
use crate::{
    GatewayError,
    budget::Share,
    endpoint::Endpoint,
    table::{AdapterFacts, Availability, Hope, ModelEntry, Refusal, Table},
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
    _place: Share,
}

/// What a request waits for.
pub(super) struct Needs<'t> {
    /// A worker of this Model.
    pub(super) entry: &'t ModelEntry,
    /// None of these.
    pub(super) excluded: &'t [Arc<Endpoint>],
    /// With these adapters.
    pub(super) adapters: &'t [&'t Arc<AdapterFacts>],
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
    /// try. A gateway that shuts down lets requests wait on until it is about to cut them off.
    ///
    /// # Errors
    /// No worker will come, the time is up, too many requests wait, or the gateway ends.
    pub(super) async fn wait(
        &mut self,
        tables: &mut watch::Receiver<Arc<Table>>,
        needs: Needs<'_>,
        id: impl FnOnce() -> String,
    ) -> Result<(), GatewayError> {
        let Needs {
            entry,
            excluded,
            adapters,
        } = needs;
        let long = self.state.config.hold_timeout;
        let short = long.min(self.state.config.doubtful_hold_timeout);
        let unavailable = |id: String, why: Refusal| GatewayError::Unavailable {
            model: id,
            reason: why.reason,
            message: why.message,
        };
        let lacking = entry.lacking(excluded, adapters, Instant::now());
        let (limit, doubt) = match (lacking, entry.availability()) {
            (Some(adapter), _) if adapter.hope == Hope::Good => (long, None),
            (Some(_doubtful), _) => (short, None),
            (None, Availability::Expected) => (long, None),
            (None, Availability::Doubtful(why)) => (short, Some(why)),
            (None, Availability::Refused(why)) => return Err(unavailable(id(), why)),
        };
        let waiting = match &mut self.waiting {
            Some(waiting) => waiting,
            none => none.insert(Waiting::new(self.state, entry)?),
        };
        let deadline = waiting.since + limit;
        // A worker that failed is fit again at once when somebody else's request reaches it, and
        // so is one that has got an adapter.
        let look_again = || Instant::now() + LOOK_AGAIN;
        let retry = entry
            .next_fit(excluded, adapters)
            .map_or(deadline, |fit| fit.min(look_again()));
        tokio::select! {
            biased;
            () = self.state.last_call.cancelled() => return Err(GatewayError::ShuttingDown),
            // A closed channel means that nobody watches the cluster any more.
            changed = tables.changed() => return changed.map_err(|_| GatewayError::ShuttingDown),
            () = sleep_until(retry.min(deadline).into()) => {}
        }
        if Instant::now() < deadline {
            return Ok(());
        }
        if let Some(adapter) = lacking {
            return Err(GatewayError::AdapterTimeout {
                model: id(),
                adapter: adapter.served.to_string(),
                reason: adapter.reason.clone(),
                message: adapter.message.clone(),
                waited: limit,
            });
        }
        if let Some(why) = doubt {
            return Err(unavailable(id(), why));
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
    fn new(state: &'a State, entry: &ModelEntry) -> Result<Self, GatewayError> {
        let place = state.hold(&entry.facts.key)?;
        state.metrics.held.inc();
        Ok(Self {
            state,
            since: Instant::now(),
            _place: place,
        })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.state.metrics.held.dec();
    }
}
