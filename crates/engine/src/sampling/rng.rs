//! Random numbers that depend on a seed and a position and on nothing else.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Random numbers of one request, by position. There is no state to lose when a request is
/// preempted, and no order between requests of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CounterRng {
    seed: u64,
}

impl CounterRng {
    /// The numbers of `seed`, or of one picked by chance.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Self { seed: mix(seed) }
    }

    /// A number from 0 to below 1 for position `index`.
    pub(crate) fn uniform(self, index: u64) -> f64 {
        let bits = mix(self.seed ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        // The upper 53 bits fill the mantissa of a double.
        (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

/// SplitMix64's finaliser, <https://prng.di.unimi.it/splitmix64.c>.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_and_depend_on_seed_and_position_alone() {
        let rng = CounterRng::new(Some(7));
        let mut buckets = [0_u32; 10];
        for index in 0..100_000 {
            let number = rng.uniform(index);
            assert!((0.0..1.0).contains(&number));
            buckets[(number * 10.0) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (9_600..10_400).contains(count)),
            "{buckets:?}"
        );
        assert!((rng.uniform(5) - CounterRng::new(Some(7)).uniform(5)).abs() < f64::EPSILON);
        assert!((rng.uniform(5) - CounterRng::new(Some(8)).uniform(5)).abs() > f64::EPSILON);
    }

    #[test]
    fn two_requests_without_a_seed_differ() {
        let (a, b) = (CounterRng::new(None), CounterRng::new(None));
        assert!((a.uniform(0) - b.uniform(0)).abs() > 0.0);
    }
}
