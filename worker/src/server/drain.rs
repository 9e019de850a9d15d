//! Requests in flight, and the end of taking new ones.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Counts requests in flight; once draining it lets none in.
#[derive(Clone, Debug, Default)]
pub(super) struct Drain {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    draining: AtomicBool,
    in_flight: AtomicUsize,
    idle: Notify,
}

/// One request in flight; it ends with the drop.
#[derive(Debug)]
pub(super) struct InFlight {
    state: Arc<State>,
}

impl Drain {
    /// Lets a request in, unless draining has begun.
    pub(super) fn enter(&self) -> Option<InFlight> {
        // Counted first and looked at then: whoever waits for idleness after setting the flag
        // sees either the count or a request that turns away.
        self.state.in_flight.fetch_add(1, Ordering::SeqCst);
        let guard = InFlight {
            state: Arc::clone(&self.state),
        };
        (!self.is_draining()).then_some(guard)
    }

    pub(super) fn begin(&self) {
        self.state.draining.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::SeqCst)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.state.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until nothing is in flight.
    pub(super) async fn idle(&self) {
        loop {
            let notified = self.state.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.state.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.state.idle.notify_waiters();
        }
    }
}
