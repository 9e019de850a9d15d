//! How slow the other side of a transfer may be.

use std::time::{Duration, Instant};

/// How slow the other side of a transfer may be. What is slower ends with an error that may pass.
///
/// A timeout per read is not enough: a byte a second defeats it, and holds a thread for ever. Only
/// the time that we wait for the other side counts, not that in which we work on what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Fewer bytes a second, over a window, are too few.
    pub min_bytes_per_second: u64,
    /// The window.
    pub window: Duration,
    /// The window until the content itself begins to come. Servers collect objects then, and
    /// send little.
    pub patience: Duration,
    /// Longest transfer from its beginning, whatever its rate.
    pub deadline: Duration,
}

impl Default for Pace {
    /// 1 KiB/s over 60 s, and over 5 min until content comes; 12 h in all.
    fn default() -> Self {
        Self {
            min_bytes_per_second: 1024,
            window: Duration::from_mins(1),
            patience: Duration::from_mins(5),
            deadline: Duration::from_hours(12),
        }
    }
}

/// The other side is too slow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooSlow {
    #[error("it is too slow: {bytes} bytes in {} s, at least {min_bytes_per_second} a second are wanted", waited.as_secs())]
    Rate {
        bytes: u64,
        waited: Duration,
        min_bytes_per_second: u64,
    },
    #[error("the transfer took longer than {} s", .0.as_secs())]
    Deadline(Duration),
}

/// Watches one transfer.
#[derive(Debug)]
pub(crate) struct Meter {
    pace: Pace,
    begin: Instant,
    flows: bool,
    waited: Duration,
    bytes: u64,
    verdict: Option<TooSlow>,
}

impl Meter {
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            pace,
            begin: Instant::now(),
            flows: false,
            waited: Duration::ZERO,
            bytes: 0,
            verdict: None,
        }
    }

    /// From now on the content itself comes.
    pub(crate) fn flows(&mut self) {
        if !std::mem::replace(&mut self.flows, true) {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
    }

    /// Takes note of `bytes` that were waited for so long; says whether that is too slow. Once it
    /// was, it stays so.
    pub(crate) fn waited(&mut self, time: Duration, bytes: u64) -> Result<(), TooSlow> {
        self.waited += time;
        self.bytes += bytes;
        let window = if self.flows {
            self.pace.window
        } else {
            self.pace.patience
        };
        if self.waited >= window {
            let (bytes, waited) = (self.bytes, self.waited);
            let min_bytes_per_second = self.pace.min_bytes_per_second;
            (self.waited, self.bytes) = (Duration::ZERO, 0);
            if u128::from(bytes) * 1000 < u128::from(min_bytes_per_second) * waited.as_millis() {
                self.verdict.get_or_insert(TooSlow::Rate {
                    bytes,
                    waited,
                    min_bytes_per_second,
                });
            }
        }
        if self.begin.elapsed() >= self.pace.deadline {
            self.verdict
                .get_or_insert(TooSlow::Deadline(self.pace.deadline));
        }
        self.verdict().map_or(Ok(()), Err)
    }

    /// What was found so far.
    pub(crate) fn verdict(&self) -> Option<TooSlow> {
        self.verdict.clone()
    }

    /// Until this time may be waited without a byte before there is a verdict.
    pub(crate) fn left(&self) -> Duration {
        let window = if self.flows {
            self.pace.window
        } else {
            self.pace.patience
        };
        window
            .saturating_sub(self.waited)
            .min(self.pace.deadline.saturating_sub(self.begin.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> Meter {
        Meter::new(Pace {
            min_bytes_per_second: 100,
            window: Duration::from_secs(10),
            patience: Duration::from_secs(50),
            deadline: Duration::from_hours(1),
        })
    }

    #[test]
    fn a_byte_a_second_is_too_slow_once_its_window_is_over() {
        let mut meter = meter();
        meter.flows();
        for _ in 0..9 {
            meter.waited(Duration::from_secs(1), 1).unwrap();
        }
        let error = meter.waited(Duration::from_secs(1), 1).unwrap_err();
        assert!(error.to_string().contains("10 bytes in 10 s"), "{error}");
        assert!(meter.waited(Duration::ZERO, 1 << 20).is_err());
    }

    #[test]
    fn the_asked_rate_is_enough_and_a_burst_does_not_last_for_ever() {
        let mut meter = meter();
        meter.flows();
        for _ in 0..100 {
            meter.waited(Duration::from_secs(1), 100).unwrap();
        }
        meter.waited(Duration::from_secs(5), 1 << 40).unwrap();
        let result = (0..4).try_for_each(|_| meter.waited(Duration::from_secs(5), 0));
        assert!(result.is_err());
    }

    #[test]
    fn a_server_has_more_time_until_content_comes() {
        let mut meter = meter();
        meter.waited(Duration::from_secs(49), 0).unwrap();
        assert!(meter.waited(Duration::from_secs(1), 0).is_err());
    }

    #[test]
    fn the_deadline_ends_what_is_fast_enough() {
        let pace = Pace {
            deadline: Duration::ZERO,
            ..Pace::default()
        };
        let error = Meter::new(pace).waited(Duration::ZERO, 1 << 30);
        assert!(matches!(error, Err(TooSlow::Deadline(_))));
    }
}
