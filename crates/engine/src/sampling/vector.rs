//! Passes over a whole row of logits, written so that the compiler makes vector code of them.

/// Independent running values; a multiple of any vector's width.
const LANES: usize = 16;

/// Whether any value is not a number.
pub(crate) fn has_nan(values: &[f32]) -> bool {
    values
        .iter()
        .fold(false, |found, value| found | value.is_nan())
}

/// The largest value above minus infinity with its lowest index. Values are numbers.
pub(crate) fn argmax(values: &[f32]) -> Option<(u32, f32)> {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    let max = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let at = values.iter().position(|value| *value >= max)?;
    Some((at as u32, max))
}

/// Replaces every value by `exp((value - max) * scale)`, and returns their sum. No value is above
/// `max`, which is finite.
pub(crate) fn exp_all(values: &mut [f32], max: f32, scale: f32) -> f64 {
    for value in values.iter_mut() {
        *value = exp((*value - max) * scale);
    }
    sum(values)
}

/// The natural logarithm of the sum of the exponentials of `values`, whose largest is `max`.
pub(crate) fn log_sum_exp(values: &[f32], max: f32) -> f32 {
    if !max.is_finite() {
        return max;
    }
    let mut total = 0.0;
    let mut weights = [0.0; 256];
    for chunk in values.chunks(weights.len()) {
        let weights = &mut weights[..chunk.len()];
        for (weight, value) in weights.iter_mut().zip(chunk) {
            *weight = exp(value - max);
        }
        total += sum(weights);
    }
    max + total.ln() as f32
}

/// The sum, exact enough that the order does not matter.
pub(crate) fn sum(values: &[f32]) -> f64 {
    let mut total = 0.0;
    for chunk in values.chunks(1024) {
        let mut lanes = [0.0_f64; LANES];
        let parts = chunk.chunks_exact(LANES);
        let rest = parts.remainder();
        for part in parts {
            for (lane, &value) in lanes.iter_mut().zip(part) {
                *lane += f64::from(value);
            }
        }
        total += lanes.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    total
}

/// `e^x` for `x` of at most 0, within a few units in the last place; 0 below -87. The same on
/// every machine, unlike that of a C library.
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
        fn passes_give_what_plain_loops_give(values in prop::collection::vec(-30.0..30.0_f32, 1..600)) {
            let (at, max) = argmax(&values).unwrap();
            let plain = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert!((max - plain).abs() <= 0.0);
            prop_assert_eq!(values.iter().position(|v| *v >= plain), Some(at as usize));
            let right: f64 = values.iter().map(|v| f64::from(*v).exp()).sum();
            prop_assert!((f64::from(log_sum_exp(&values, max)) - right.ln()).abs() < 1e-4);
            let mut weights = values.clone();
            let total = exp_all(&mut weights, max, 1.0);
            prop_assert!((total * f64::from(max).exp() / right - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_edges_are_met() {
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0.0_f32.to_bits());
        assert_eq!(exp(-1e30).to_bits(), 0.0_f32.to_bits());
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 40]), None);
        assert!(has_nan(&[0.0, f32::NAN]) && !has_nan(&[0.0, f32::INFINITY]));
    }
}
