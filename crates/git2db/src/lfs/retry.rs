//! Trying again.

use std::time::{Duration, Instant};

use super::{LfsError, Options, http::Failure};
use crate::Observer;

/// Attempts at one call.
pub(super) struct Retry<'a> {
    options: &'a Options,
    observer: &'a dyn Observer,
    failed: u32,
}

impl<'a> Retry<'a> {
    pub(super) fn new(options: &'a Options, observer: &'a dyn Observer) -> Self {
        Self {
            options,
            observer,
            failed: 0,
        }
    }

    /// Forgets the failures so far: something got on.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or says why there is none.
    pub(super) fn after(&mut self, failure: Failure, url: &str) -> Result<(), LfsError> {
        self.failed += 1;
        if self.failed >= self.options.attempts.max(1) || !failure.may_pass() {
            return Err(failure.into_error(url));
        }
        let backoff = self.options.backoff.saturating_mul(1 << self.failed.min(6)) / 2;
        let wait = match &failure {
            Failure::Status {
                retry_after: Some(asked),
                ..
            } => {
                if *asked > self.options.max_wait {
                    return Err(failure.into_error(url));
                }
                *asked
            }
            _ => backoff.min(self.options.max_wait),
        };
        tracing::debug!(failure = failure.detail(), ?wait, "trying again");
        let until = Instant::now() + wait;
        loop {
            if self.observer.is_cancelled() {
                return Err(LfsError::Cancelled);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
