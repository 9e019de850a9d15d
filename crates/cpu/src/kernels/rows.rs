//! What is done to one row of activations.
//!
//! Written so that the compiler makes vector code of it: the sets for particular processors are
//! the same functions, compiled with their instructions.

use super::{GROUP, LANES};
use crate::format::bf16_bits;

/// `x / sqrt(mean(x^2) + eps) * weight` (<https://arxiv.org/abs/1910.07467>).
pub(crate) struct NormArgs<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

/// `out = norm(x)`; `out` may not be `x`. NaN throughout if the squares of `x` have no finite sum.
///
/// # Safety
/// None of its own: the pointer type of a set's functions is unsafe.
#[inline(always)]
pub(crate) unsafe fn norm(args: &NormArgs<'_>, out: &mut [f32]) {
    let NormArgs { x, weight, eps } = *args;
    let mut lanes = [0.0_f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut sum: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    sum += total(lanes);
    // Squares that overflow would make a row of zeros, which looks like an answer.
    let factor = if sum.is_finite() {
        1.0 / (sum / x.len() as f32 + eps).sqrt()
    } else {
        f32::NAN
    };
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

/// A tile of gate and up: by turns 16 columns of each.
pub(crate) struct GateArgs<'a> {
    /// `[rows, columns]`.
    pub(crate) values: &'a [f32],
    /// A multiple of 32.
    pub(crate) columns: usize,
    /// Added to `values` first, `[columns]`; empty for none.
    pub(crate) bias: &'a [f32],
    pub(crate) gelu: bool,
    /// Where the gated values of the first row go.
    pub(crate) out: *mut u8,
    /// From one row of `out` to the next.
    pub(crate) out_bytes: usize,
    /// Gated values that exist, at most `columns / 2`.
    pub(crate) len: usize,
    /// `out` is bf16, not f32.
    pub(crate) half: bool,
}

/// `out = act(gate) * up`.
///
/// # Safety
/// `out` has room for it.
#[inline(always)]
pub(crate) unsafe fn gate(args: &GateArgs<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (args.gelu, args.half) {
            (false, false) => gate_with::<false, false>(args),
            (false, true) => gate_with::<false, true>(args),
            (true, false) => gate_with::<true, false>(args),
            (true, true) => gate_with::<true, true>(args),
        }
    }
}

#[inline(always)]
unsafe fn gate_with<const GELU: bool, const HALF: bool>(args: &GateArgs<'_>) {
    for (r, row) in args.values.chunks_exact(args.columns).enumerate() {
        // SAFETY: the caller's promise.
        let out = unsafe { args.out.add(r * args.out_bytes) };
        for (pair, both) in row.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
            let mut both = *both;
            if let Some(bias) = args.bias.get(pair * 2 * LANES..(pair + 1) * 2 * LANES) {
                for (value, bias) in both.iter_mut().zip(bias) {
                    *value += bias;
                }
            }
            let mut gated = [0.0; LANES];
            for lane in 0..LANES {
                let (x, up) = (both[lane], both[LANES + lane]);
                // 0.5 x (1 + tanh(z)) = x sigmoid(2 z), with z as in the tanh approximation of
                // https://arxiv.org/abs/1606.08415.
                let z = if GELU {
                    2.0 * 0.797_884_6 * (x + 0.044_715 * x * x * x)
                } else {
                    x
                };
                gated[lane] = x / (1.0 + exp(-z)) * up;
            }
            let count = LANES.min(args.len - pair * LANES);
            // SAFETY: the caller's promise.
            unsafe {
                if HALF {
                    let to = out.cast::<u16>().add(pair * LANES);
                    let halves = gated.map(bf16_bits);
                    std::ptr::copy_nonoverlapping(halves.as_ptr(), to, count);
                } else {
                    let to = out.cast::<f32>().add(pair * LANES);
                    std::ptr::copy_nonoverlapping(gated.as_ptr(), to, count);
                }
            }
        }
    }
}

/// Adds rows of a tile to rows elsewhere.
pub(crate) struct AddArgs<'a> {
    /// `[rows, columns]`.
    pub(crate) values: &'a [f32],
    pub(crate) columns: usize,
    /// Added too, `[columns]`; empty for none.
    pub(crate) bias: &'a [f32],
    pub(crate) to: *mut f32,
    /// From one row of `to` to the next, in values.
    pub(crate) stride: usize,
    /// Values of a row that exist, at most `columns`.
    pub(crate) len: usize,
}

/// `to += values + bias`.
///
/// # Safety
/// `to` has these rows.
#[inline(always)]
pub(crate) unsafe fn add_rows(args: &AddArgs<'_>) {
    for (r, row) in args.values.chunks_exact(args.columns).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(args.to.add(r * args.stride), args.len) };
        for (to, value) in to.iter_mut().zip(row) {
            *to += value;
        }
        for (to, bias) in to.iter_mut().zip(args.bias) {
            *to += bias;
        }
    }
}

/// `values = cap * tanh(values / cap)`; what is not finite becomes a NaN, so that nothing hides it.
///
/// # Safety
/// As for [`norm`].
#[inline(always)]
pub(crate) unsafe fn softcap(cap: f32, values: &mut [f32]) {
    for value in values {
        let capped = cap * (1.0 - 2.0 / (1.0 + exp(2.0 * *value / cap)));
        *value = capped + *value * 0.0;
    }
}

/// `to += values`.
///
/// # Safety
/// As for [`norm`].
#[inline(always)]
pub(crate) unsafe fn add(to: &mut [f32], values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}

/// What is multiplied, and where to.
pub(crate) struct ScaleArgs<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) factor: f32,
    /// As many values as there are, f32 or bf16.
    pub(crate) to: *mut u8,
    /// `to` is bf16.
    pub(crate) half: bool,
}

/// `to = values * factor`.
///
/// # Safety
/// `to` has room for it, aligned.
#[inline(always)]
pub(crate) unsafe fn scale(args: &ScaleArgs<'_>) {
    let len = args.values.len();
    // SAFETY: the caller's promise.
    unsafe {
        if args.half {
            let to = std::slice::from_raw_parts_mut(args.to.cast::<u16>(), len);
            for (to, value) in to.iter_mut().zip(args.values) {
                *to = bf16_bits(value * args.factor);
            }
        } else {
            let to = std::slice::from_raw_parts_mut(args.to.cast::<f32>(), len);
            for (to, value) in to.iter_mut().zip(args.values) {
                *to = value * args.factor;
            }
        }
    }
}

/// Rounds to bf16.
///
/// # Safety
/// As for [`norm`].
#[inline(always)]
pub(crate) unsafe fn to_bf16(values: &[f32], out: &mut [u16]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = bf16_bits(*value);
    }
}

/// Quantises to 8 bits: `values.len()` bytes, then one f32 scale for each group, then the sum of
/// each group's bytes as i32. The scale of a group with a value that is not finite is not finite
/// either, and so is every product with it.
///
/// # Safety
/// `out` has room for that, aligned to 4 bytes.
#[inline(always)]
pub(crate) unsafe fn quantize(values: &[f32], out: *mut u8) {
    let groups = values.len() / GROUP;
    // SAFETY: the caller's promise.
    let (bytes, scales, sums) = unsafe {
        let scales = out.add(values.len()).cast::<f32>();
        (
            std::slice::from_raw_parts_mut(out.cast::<i8>(), values.len()),
            std::slice::from_raw_parts_mut(scales, groups),
            std::slice::from_raw_parts_mut(scales.add(groups).cast::<i32>(), groups),
        )
    };
    let each = values
        .chunks_exact(GROUP)
        .zip(bytes.chunks_exact_mut(GROUP));
    for ((values, bytes), (scale, sum)) in each.zip(scales.iter_mut().zip(sums)) {
        // Magnitudes are ordered as their bits are, with what is not finite above all others,
        // which `f32::max` would overlook.
        let mut lanes = [0_i32; LANES];
        for half in values.chunks_exact(LANES) {
            for (lane, value) in lanes.iter_mut().zip(half) {
                *lane = (*lane).max((value.to_bits() & 0x7fff_ffff) as i32);
            }
        }
        let largest = lanes.iter().fold(0, |a, b| a.max(*b));
        let largest = f32::from_bits(largest as u32);
        *scale = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut total = 0;
        for (byte, value) in bytes.iter_mut().zip(values) {
            // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, whose two's
            // complement then is in the lowest bits. What is not finite gives any number, which
            // the scale makes as little finite.
            let rounded = (value * inverse + ROUND).to_bits() as i8;
            *byte = rounded;
            total += i32::from(rounded);
        }
        *sum = total;
    }
}

/// 1.5 * 2^23: adding it leaves no bits for a fraction, so that adding it and taking it away rounds.
pub(super) const ROUND: f32 = 12_582_912.0;

/// `e^x` with a relative error below 3e-7 for x in -87..=88; clamped outside.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that the remainder is exact.
    let f = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    // Minimax polynomial of Cephes' expf.
    let p = 1.987_569_2e-4_f32;
    let p = p * f + 1.398_199_9e-3;
    let p = p * f + 8.333_452e-3;
    let p = p * f + 4.166_579_6e-2;
    let p = p * f + 1.666_666_6e-1;
    let p = p * f + 0.5;
    let p = p * f * f + f + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    p * f32::from_bits(exponent.wrapping_add(127) << 23)
}

/// Turns scores into their exponentials, less the greatest. Returns the greatest score and the sum
/// of the exponentials.
#[inline(always)]
pub(crate) fn exponentials(row: &mut [f32]) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    for (lane, score) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = lane.max(*score);
    }
    for chunk in chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*score);
        }
    }
    let greatest = lanes.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut lanes = [0.0; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *score = exp(*score - greatest);
            *lane += *score;
        }
    }
    for (lane, score) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *score = exp(*score - greatest);
        *lane += *score;
    }
    (greatest, total(lanes))
}

/// Sum of 16 values, always in the same order.
#[inline(always)]
pub(crate) fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
