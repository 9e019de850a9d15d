//! Numbers that follow from where they are used, not from what was drawn before.

/// Philox4x32-10: four words of 32 bits for a counter and a key
/// (<https://www.thesalmons.org/john/random123/papers/random123sc11.pdf>).
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// What numbers are drawn for. Each has a sequence of its own under the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The first values of an adapter's part.
    Initial = 1,
    /// The order of an epoch.
    Order = 2,
    /// Which records are held back for evaluation.
    HoldOut = 3,
}

/// A sequence of numbers for a seed, a purpose, and a number within that purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    key: [u32; 2],
    purpose: Purpose,
    number: u32,
}

impl Sequence {
    pub(crate) fn new(seed: u64, purpose: Purpose, number: u32) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            purpose,
            number,
        }
    }

    /// Four words at this place of the sequence.
    fn words(&self, index: u64) -> [u32; 4] {
        let counter = [
            index as u32,
            (index >> 32) as u32,
            self.number,
            self.purpose as u32,
        ];
        philox(counter, self.key)
    }

    /// Below `bound`, at this place.
    pub(crate) fn below(&self, index: u64, bound: u64) -> u64 {
        let [low, high, ..] = self.words(index);
        let word = u128::from(low) | u128::from(high) << 32;
        // Lemire's multiplication; what it is uneven by is 2^-32 for what fits into memory.
        ((word * u128::from(bound)) >> 64) as u64
    }

    /// `len` numbers, evenly spread over [-bound, bound).
    pub(crate) fn uniform(self, bound: f64, len: usize) -> impl Iterator<Item = f32> {
        let unit = move |word: u32| f64::from(word) / f64::from(1_u32 << 31) / 2.0;
        (0..len.div_ceil(4) as u64)
            .flat_map(move |index| self.words(index))
            .map(move |word| ((2.0 * unit(word) - 1.0) * bound) as f32)
            .take(len)
    }

    /// `len` numbers of the standard normal distribution, by Box and Muller.
    pub(crate) fn normal(self, len: usize) -> impl Iterator<Item = f32> {
        // In (0, 1], so that the logarithm is finite.
        let unit = move |word: u32| (f64::from(word) + 1.0) / 4_294_967_296.0;
        let pair = move |a: u32, b: u32| {
            let length = (-2.0 * unit(a).ln()).sqrt();
            let (sine, cosine) = (std::f64::consts::TAU * unit(b)).sin_cos();
            [(length * cosine) as f32, (length * sine) as f32]
        };
        (0..len.div_ceil(4) as u64)
            .flat_map(move |index| {
                let [a, b, c, d] = self.words(index);
                pair(a, b).into_iter().chain(pair(c, d))
            })
            .take(len)
    }
}

/// The numbers below `len` in an order that follows from the seed, the purpose and the number.
pub(crate) fn permutation(len: usize, seed: u64, purpose: Purpose, number: u32) -> Vec<u32> {
    let sequence = Sequence::new(seed, purpose, number);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for index in (1..len).rev() {
        let other = sequence.below(index as u64, index as u64 + 1) as usize;
        order.swap(index, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_numbers() {
        // kat_vectors of Random123.
        let all = u32::MAX;
        for (counter, key, expected) in [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [all; 4],
                [all; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn an_order_holds_each_once_and_differs_by_epoch_and_seed() {
        let order = |seed, epoch| permutation(1000, seed, Purpose::Order, epoch);
        let mut sorted = order(7, 0);
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(at, x)| at == *x as usize));
        assert_eq!(order(7, 0), order(7, 0));
        assert_ne!(order(7, 0), order(7, 1));
        assert_ne!(order(7, 0), order(8, 0));
    }

    #[test]
    fn drawn_numbers_have_the_spread_that_was_asked_for() {
        let sequence = Sequence::new(3, Purpose::Initial, 0);
        let even: Vec<f32> = sequence.uniform(0.5, 10_001).collect();
        assert_eq!(even.len(), 10_001);
        assert!(even.iter().all(|x| (-0.5..0.5).contains(x)));
        let spread = |values: &[f32]| {
            let squares = values.iter().map(|x| f64::from(*x) * f64::from(*x));
            (squares.sum::<f64>() / values.len() as f64).sqrt()
        };
        assert!((spread(&even) - 0.5 / 3_f64.sqrt()).abs() < 0.01);
        let normal: Vec<f32> = sequence.normal(10_001).collect();
        assert!((spread(&normal) - 1.0).abs() < 0.03);
    }
}
