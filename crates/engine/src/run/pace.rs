//! When there will be room for another request.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How often requests have begun lately, written by the engine's thread and read by others.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Mean time from one beginning to the next; 0 when nothing is known.
    interval_micros: AtomicU64,
}

/// The thread's side of a [`Pace`].
#[derive(Debug, Default)]
pub(crate) struct Beginnings {
    latest: Option<Instant>,
}

impl Beginnings {
    /// Notes that `count` requests began at `now`, while `others` still wait.
    pub(crate) fn note(&mut self, pace: &Pace, now: Instant, count: usize, others: bool) {
        if count == 0 {
            return;
        }
        if let Some(latest) = self.latest {
            let each = (now - latest).as_micros() as u64 / count as u64;
            let before = pace.interval_micros.load(Ordering::Relaxed);
            let mean = if before == 0 {
                each
            } else {
                (before * 3 + each) / 4
            };
            pace.interval_micros.store(mean, Ordering::Relaxed);
        }
        // An empty queue says how often requests come, not how often they could begin.
        self.latest = others.then_some(now);
    }
}

impl Pace {
    /// How long a client is to wait when `max_queue` requests wait: until about a quarter of them
    /// have begun, so that not everybody comes back for the first free place.
    pub(crate) fn retry_after(&self, max_queue: usize) -> Duration {
        let interval = self.interval_micros.load(Ordering::Relaxed);
        let micros = interval.saturating_mul((max_queue as u64 / 4).max(1));
        Duration::from_micros(micros).clamp(Duration::from_secs(1), Duration::from_mins(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_how_often_requests_begin() {
        let pace = Pace::default();
        let mut beginnings = Beginnings::default();
        assert_eq!(
            pace.retry_after(256),
            Duration::from_secs(1),
            "nothing known"
        );
        let start = Instant::now();
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            beginnings.note(&pace, now, 2, true);
        }
        assert_eq!(pace.retry_after(40), Duration::from_secs(5));
        assert_eq!(pace.retry_after(1_000_000), Duration::from_mins(1));
        // After a pause without any waiting, the pause does not count.
        beginnings.note(&pace, start + Duration::from_secs(20), 2, false);
        beginnings.note(&pace, start + Duration::from_mins(150), 2, true);
        assert_eq!(pace.retry_after(40), Duration::from_secs(5));
    }
}
