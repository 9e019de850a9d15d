//! Kept connections to one worker.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::Connection;

/// Most idle connections to one worker.
const MAX_IDLE: usize = 256;
/// Longest time that a connection is kept idle.
const MAX_IDLE_TIME: Duration = Duration::from_secs(30);

/// Idle connections, the one used last at the back.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<VecDeque<(Instant, Connection)>>);

impl Pool {
    /// The live connection that was used last, since it is the least likely to be closed.
    pub(super) fn take(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.0.lock();
        while let Some((since, connection)) = idle.pop_back() {
            if now.saturating_duration_since(since) < MAX_IDLE_TIME && connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection that is ready for another request.
    pub(super) fn put(&self, connection: Connection, now: Instant) {
        let mut idle = self.0.lock();
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back((now, connection));
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// Closes what has been idle too long or is closed already.
    pub(super) fn prune(&self, now: Instant) {
        self.0.lock().retain(|(since, connection)| {
            now.saturating_duration_since(*since) < MAX_IDLE_TIME && connection.is_ready()
        });
    }
}
