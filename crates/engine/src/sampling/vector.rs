//! Passes over a whole row of logits, written so that the compiler makes vector code of them.
#![allow(
    unsafe_code,
    reason = "code for an instruction set may only be called where the processor has it"
)]
#![allow(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the caller's instruction set"
)]

/// Independent running values; a multiple of any vector's width.
const LANES: usize = 16;

/// Values that are looked at together; sums of so many are exact enough in f32.
pub(crate) const CHUNK: usize = 1024;

/// Compiles a function also for AVX2, and calls that where the processor has it. The results are
/// the same: no operation is fused or reordered.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) -> $ret {
            #[inline(always)]
            fn portable($($arg: $ty),*) -> $ret $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) -> $ret {
                    portable($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has just said that it has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}

/// What one pass finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scan {
    /// The largest value; minus infinity when there is none above it.
    pub(crate) max: f32,
    /// Its lowest index.
    pub(crate) at: u32,
    /// Whether any value is not a number.
    pub(crate) has_nan: bool,
}

vectorised! {
    /// Finds the largest value.
    fn scan(values: &[f32]) -> Scan {
        let (mut max, mut best) = (f32::NEG_INFINITY, 0);
        let mut has_nan = false;
        for (index, chunk) in values.chunks(CHUNK).enumerate() {
            let (largest, nan) = largest(chunk);
            has_nan |= nan;
            if largest > max {
                (max, best) = (largest, index);
            }
        }
        let start = best * CHUNK;
        let chunk = values.get(start..).unwrap_or_default();
        let at = chunk.iter().position(|value| *value >= max).unwrap_or(0);
        Scan { max, at: (start + at) as u32, has_nan }
    }
}

vectorised! {
    /// Fills `weights` with `exp((value - max) * scale)` of every value and `sums` with their sum
    /// for every [`CHUNK`]; returns the whole sum. No value is above `max`, which is finite.
    fn exp_all(
        values: &[f32], max: f32, scale: f32, weights: &mut Vec<f32>, sums: &mut Vec<f64>
    ) -> f64 {
        weights.resize(values.len(), 0.0);
        sums.clear();
        let mut total = 0.0;
        for (from, to) in values.chunks(CHUNK).zip(weights.chunks_mut(CHUNK)) {
            for (value, weight) in from.iter().zip(to.iter_mut()) {
                *weight = exp((*value - max) * scale);
            }
            let sum = f64::from(sum(to));
            sums.push(sum);
            total += sum;
        }
        total
    }
}

vectorised! {
    /// The natural logarithm of the sum of the exponentials of `values`, whose largest is `max`.
    fn log_sum_exp(values: &[f32], max: f32) -> f32 {
        if !max.is_finite() {
            return max;
        }
        let mut total = 0.0;
        let mut weights = [0.0; CHUNK];
        for chunk in values.chunks(CHUNK) {
            let weights = &mut weights[..chunk.len()];
            for (weight, value) in weights.iter_mut().zip(chunk) {
                *weight = exp(value - max);
            }
            total += f64::from(sum(weights));
        }
        max + total.ln() as f32
    }
}

vectorised! {
    /// Appends the indices of the values of at least `least`, which is a number, to `found`.
    fn at_least(values: &[f32], least: f32, found: &mut Vec<u32>) -> () {
        for (index, part) in values.chunks(128).enumerate() {
            // Most parts have none, which is quickly known.
            if largest(part).0 >= least {
                let start = (index * 128) as u32;
                let in_part = part.iter().zip(start..).filter(|(value, _)| **value >= least);
                found.extend(in_part.map(|(_, at)| at));
            }
        }
    }
}

vectorised! {
    /// The `count` largest values with their indices, largest first, among equals the lower index.
    fn largest_of(values: &[f32], count: usize) -> Vec<(u32, f32)> {
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
        if count == 0 {
            return best;
        }
        for (index, part) in values.chunks(128).enumerate() {
            let full = best.len() == count;
            if full && best.last().is_some_and(|last| largest(part).0 <= last.1) {
                continue;
            }
            for (&value, at) in part.iter().zip((index * 128) as u32..) {
                if best.len() == count && best.last().is_some_and(|last| value <= last.1) {
                    continue;
                }
                let place = best.partition_point(|other| other.1 >= value);
                best.insert(place, (at, value));
                best.truncate(count);
            }
        }
        best
    }
}

/// The largest value, or minus infinity, and whether any is not a number.
#[inline(always)]
fn largest(values: &[f32]) -> (f32, bool) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nans = [0_u32; LANES];
    let parts = values.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        for ((lane, nan), &value) in lanes.iter_mut().zip(&mut nans).zip(part) {
            *lane = larger(*lane, value);
            *nan |= u32::from(value.is_nan());
        }
    }
    let max = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    let nan = nans.iter().any(|nan| *nan != 0) || rest.iter().any(|value| value.is_nan());
    (max, nan)
}

/// The sum of not many more than [`CHUNK`] values.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let parts = values.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        for (lane, &value) in lanes.iter_mut().zip(part) {
            *lane += value;
        }
    }
    lanes.iter().chain(rest).sum()
}

/// `e^x` for `x` of at most 0, within a few units in the last place; 0 below -87. The same on
/// every machine, unlike that of a C library.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    /// ln 2 in two parts, so that the subtraction is exact (Cody and Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;

    let clamped = if x < -87.0 { -87.0 } else { x };
    let rounded = clamped * LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = clamped - whole * LN2_HIGH - whole * LN2_LOW;
    // Taylor's series to the 7th power; |rest| <= ln(2) / 2.
    let series = 1.0
        + rest
            * (1.0
                + rest
                    * (0.5
                        + rest
                            * (1.0 / 6.0
                                + rest
                                    * (1.0 / 24.0
                                        + rest
                                            * (1.0 / 120.0
                                                + rest * (1.0 / 720.0 + rest / 5040.0))))));
    // The whole number stands in the lowest bits of `rounded`; a cast would check its range.
    let exponent = rounded
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    let power = f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_right_to_the_last_places(x in -87.0..=0.0_f32) {
            let right = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) / right - 1.0).abs() < 5e-7, "{x}");
        }

        #[test]
        fn passes_give_what_plain_loops_give(
            values in prop::collection::vec(-30.0..30.0_f32, 1..3000), count in 0..40_usize,
            least in -30.0..30.0_f32, scale in 0.1..3.0_f32,
        ) {
            let found = scan(&values);
            let plain = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert!((found.max - plain).abs() <= 0.0 && !found.has_nan);
            prop_assert_eq!(values.iter().position(|v| *v >= plain), Some(found.at as usize));

            let right: f64 = values.iter().map(|v| f64::from(*v).exp()).sum();
            prop_assert!((f64::from(log_sum_exp(&values, plain)) - right.ln()).abs() < 1e-4);

            let (mut weights, mut sums) = (vec![9.0; 7], vec![9.0; 7]);
            let total = exp_all(&values, plain, scale, &mut weights, &mut sums);
            let weight = |v: &f32| f64::from((*v - plain) * scale).exp();
            let right: f64 = values.iter().map(weight).sum();
            prop_assert!((total / right - 1.0).abs() < 1e-5);
            prop_assert_eq!((weights.len(), sums.len()), (values.len(), values.len().div_ceil(CHUNK)));
            prop_assert!((sums.iter().sum::<f64>() - total).abs() < 1e-9 * total);

            let mut sorted: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(count);
            prop_assert_eq!(largest_of(&values, count), sorted);

            let mut found = Vec::new();
            at_least(&values, least, &mut found);
            let plain = (0..values.len() as u32).filter(|i| values[*i as usize] >= least);
            prop_assert_eq!(found, plain.collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_edges_are_met() {
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0.0_f32.to_bits());
        assert_eq!(exp(-1e30).to_bits(), 0.0_f32.to_bits());
        for len in [0, 40, 5000] {
            let max = scan(&vec![f32::NEG_INFINITY; len]).max;
            assert_eq!(max.to_bits(), f32::NEG_INFINITY.to_bits());
        }
        for at in [0, 1, 15, 16, 1023, 1024, 2999] {
            let mut values = vec![0.0; 3000];
            values[at] = f32::NAN;
            assert!(scan(&values).has_nan, "{at}");
            values[at] = f32::INFINITY;
            let found = scan(&values);
            assert_eq!((found.at as usize, found.has_nan), (at, false));
        }
    }
}
