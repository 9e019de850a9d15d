//! What the engine's thread and those who give it work both see.

use std::sync::{OnceLock, atomic::AtomicUsize};

use tokio::sync::watch;

use super::pace::Pace;

/// What the thread lets others see.
#[derive(Default)]
pub(crate) struct Shared {
    /// Accepted requests that had no step yet.
    pub(crate) queued: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) used_blocks: AtomicUsize,
    /// Whether the thread is gone.
    pub(crate) dead: watch::Sender<bool>,
    cause: OnceLock<String>,
    pub(crate) pace: Pace,
}

impl Shared {
    /// Says that the thread is gone or will be at once, and why if that is known.
    pub(crate) fn die(&self, cause: Option<String>) {
        if let Some(cause) = cause {
            self.cause.get_or_init(|| cause);
        }
        self.dead.send_replace(true);
    }

    /// Nothing, or why the thread has stopped.
    pub(crate) fn health(&self) -> Result<(), String> {
        if !*self.dead.borrow() {
            return Ok(());
        }
        let cause = self.cause.get().cloned();
        Err(cause.unwrap_or_else(|| "the engine has stopped".to_owned()))
    }
}
