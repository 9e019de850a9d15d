//! Weights in fewer bits: the scale of a group, and the level of each of its weights.
//!
//! Several scales are tried and the one with the least squared error is taken. The largest range
//! is rarely the best, and weights that lie on a grid already are met by a scale that fits it.

use super::{
    GROUP, LANES,
    rows::{ROUND, total},
};
use crate::format::{f16_bits, f16_value};

/// A group in fewer bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Levels {
    /// f16.
    pub(crate) scale: u16,
    /// The value of the level 0 in f16; for 8 bits 0, and the level 128 stands for 0.
    pub(crate) minimum: u16,
    pub(crate) values: [u8; GROUP],
}

/// Ranges that are tried, as how many levels lie between 0 and the largest weight.
const STEPS_8: [f32; 24] = {
    let mut steps = [0.0; 24];
    let mut i = 0;
    while i < 24 {
        steps[i] = (104 + i) as f32;
        i += 1;
    }
    steps
};
/// All weights count alike.
const ALIKE: [f32; GROUP] = [1.0; GROUP];
/// How often 4-bit scales are fitted to the levels and the levels to the scales.
const FITS: usize = 4;
/// Shares of the range of a group that 4 bits are spread over.
const SHARES_4: [f32; 5] = [1.0, 0.96, 0.92, 0.88, 0.84];
/// Numbers of levels that the range of a group is taken for, where not all of them are used:
/// weights that came from fewer bits lie so.
const STEPS_4: [f32; 9] = [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0];

/// 8 bits: levels 1..=255, around 128.
///
/// # Safety
/// None of its own: the pointer type of a set's functions is unsafe.
#[inline(always)]
pub(crate) unsafe fn levels8(group: &[f32; GROUP]) -> Levels {
    let mut largest = 0.0_f32;
    for x in group {
        largest = largest.max(x.abs());
    }
    // All errors first: choosing as they come waits for each.
    let mut errors = [0.0; STEPS_8.len()];
    for (error, steps) in errors.iter_mut().zip(STEPS_8) {
        let scale = near_f16(largest / steps);
        *error = spread(group, &ALIKE, (scale, 0.0), (-127.0, 127.0)).1;
    }
    let mut best = (f32::INFINITY, 0.0);
    for (error, steps) in errors.into_iter().zip(STEPS_8) {
        // The largest number of steps wins where it makes no difference.
        if error <= best.0 {
            best = (error, steps);
        }
    }
    let scale = f16_bits(largest / best.1);
    let (levels, _) = spread(group, &ALIKE, (f16_value(scale), 0.0), (-127.0, 127.0));
    Levels {
        scale,
        minimum: 0,
        values: bytes(&levels, 128),
    }
}

/// Whole numbers as bytes.
#[inline(always)]
fn bytes(levels: &[f32; GROUP], zero: i32) -> [u8; GROUP] {
    let mut bytes = [0; GROUP];
    for i in 0..GROUP {
        // SAFETY: levels are whole numbers of at most three digits.
        bytes[i] = (unsafe { levels[i].to_int_unchecked::<i32>() } + zero) as u8;
    }
    bytes
}

/// 4 bits: levels 0..=15. The square of what a weight loses counts `importance` times.
///
/// # Safety
/// As for [`levels8`].
#[inline(always)]
pub(crate) unsafe fn levels4(group: &[f32; GROUP], importance: &[f32; GROUP]) -> Levels {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for x in group {
        low = low.min(*x);
        high = high.max(*x);
    }
    let range = high - low;
    let mut tried = [(0.0, 0.0); SHARES_4.len() + STEPS_4.len()];
    for (kept, share) in tried.iter_mut().zip(SHARES_4) {
        *kept = (range * share / 15.0, low + range * (1.0 - share) / 2.0);
    }
    for (kept, steps) in tried[SHARES_4.len()..].iter_mut().zip(STEPS_4) {
        *kept = (range / steps, low);
    }
    // All errors first: choosing as they come waits for each.
    let mut errors = [0.0; SHARES_4.len() + STEPS_4.len()];
    for (error, kept) in errors.iter_mut().zip(tried) {
        let kept = (near_f16(kept.0), near_f16(kept.1));
        *error = spread(group, importance, kept, (0.0, 15.0)).1;
    }
    let (mut least, mut first) = (f32::INFINITY, tried[0]);
    for (error, kept) in errors.into_iter().zip(tried) {
        if error < least {
            (least, first) = (error, kept);
        }
    }
    let mut best = (f16_bits(first.0), f16_bits(first.1));
    let (mut levels, mut least) = spread(group, importance, values(best), (0.0, 15.0));
    for _ in 0..FITS {
        let kept = fit(group, importance, &levels);
        let (fitting, error) = spread(group, importance, values(kept), (0.0, 15.0));
        if error >= least {
            break;
        }
        (best, least, levels) = (kept, error, fitting);
    }
    Levels {
        scale: best.0,
        minimum: best.1,
        values: bytes(&levels, 0),
    }
}

/// A number of the precision of f16 near `x`, without a look at its exponent: Veltkamp's splitting.
#[inline(always)]
fn near_f16(x: f32) -> f32 {
    let shifted = x * ((1 << 13) + 1) as f32;
    shifted - (shifted - x)
}

/// The values of a scale and of a minimum.
#[inline(always)]
fn values((scale, minimum): (u16, u16)) -> (f32, f32) {
    (f16_value(scale), f16_value(minimum))
}

/// The scale and the minimum in f16 with which `levels` lose least: a line through the weights
/// over their levels, by weighted least squares.
#[inline(always)]
fn fit(group: &[f32; GROUP], importance: &[f32; GROUP], levels: &[f32; GROUP]) -> (u16, u16) {
    let mut sums = [[0.0; LANES]; 5];
    for half in 0..GROUP / LANES {
        for lane in 0..LANES {
            let i = half * LANES + lane;
            let (x, level, weight) = (group[i], levels[i], importance[i]);
            sums[0][lane] += weight * x;
            sums[1][lane] += weight * level;
            sums[2][lane] += weight * level * level;
            sums[3][lane] += weight * level * x;
            sums[4][lane] += weight;
        }
    }
    let [x, level, squares, products, count] = sums.map(total);
    let spread = count * squares - level * level;
    let scale = if spread > 0.0 {
        (count * products - level * x) / spread
    } else {
        0.0
    };
    let scale = f16_bits(scale);
    (scale, f16_bits((x - f16_value(scale) * level) / count))
}

/// The nearest levels within `range`, and the weighted sum of the squares of what is lost.
#[inline(always)]
fn spread(
    group: &[f32; GROUP],
    importance: &[f32; GROUP],
    (scale, minimum): (f32, f32),
    range: (f32, f32),
) -> ([f32; GROUP], f32) {
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // One loop over the whole group: of a loop over 16 lanes the compiler makes pieces of 4.
    let (mut levels, mut lost) = ([0.0; GROUP], [0.0; GROUP]);
    for i in 0..GROUP {
        let level = ((group[i] - minimum) * inverse).max(range.0).min(range.1);
        // Rounds: see `ROUND`.
        let level = (level + ROUND) - ROUND;
        levels[i] = level;
        let off = level * scale + minimum - group[i];
        lost[i] = importance[i] * off * off;
    }
    (
        levels,
        total(std::array::from_fn(|lane| lost[lane] + lost[lane + LANES])),
    )
}
