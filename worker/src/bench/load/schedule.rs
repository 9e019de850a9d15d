//! When requests are sent.

use std::time::Duration;

/// The times of requests, from the start.
pub(super) struct Schedule(Vec<Duration>);

impl Schedule {
    /// Arrivals that know nothing of each other: gaps of an exponential distribution whose mean
    /// is `1 / rate` seconds. The same seed gives the same times.
    pub(super) fn poisson(rate: f64, requests: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut at = 0.0;
        let offsets = (0..requests)
            .map(|_| {
                // 1 - u is never 0, so its logarithm is finite.
                at -= (1.0 - random.f64()).ln() / rate;
                Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX)
            })
            .collect();
        Self(offsets)
    }

    /// All as soon as a client is free.
    pub(super) fn at_once(requests: usize) -> Self {
        Self(vec![Duration::ZERO; requests])
    }

    /// The times in order.
    pub(super) fn offsets(&self) -> impl Iterator<Item = Duration> + '_ {
        // Later than anybody waits, and little enough to be added to a moment.
        let latest = Duration::from_hours(365 * 24);
        self.0.iter().map(move |offset| (*offset).min(latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_come_at_their_rate_and_bunch() {
        let schedule = Schedule::poisson(50.0, 10_000, 7);
        let times: Vec<f64> = schedule.offsets().map(|d| d.as_secs_f64()).collect();
        assert!(times.is_sorted());
        let rate = times.len() as f64 / times.last().unwrap();
        assert!((rate - 50.0).abs() < 2.0, "{rate}");
        // The share of gaps above their mean is 1/e in an exponential distribution.
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let long = gaps.iter().filter(|gap| **gap > 0.02).count() as f64 / gaps.len() as f64;
        assert!((long - (-1.0f64).exp()).abs() < 0.02, "{long}");
    }

    #[test]
    fn a_seed_gives_the_same_arrivals() {
        let times = |seed| {
            Schedule::poisson(3.0, 20, seed)
                .offsets()
                .collect::<Vec<_>>()
        };
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }
}
