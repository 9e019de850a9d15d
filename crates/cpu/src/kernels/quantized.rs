//! Rows times panels, for weights of 8 and 4 bits.
//!
//! Rows are quantised too, so that the products are of small integers. For one group of 32
//! inputs, with weights `s q + z`, and a row `x_s x_q`:
//! `sum(w x) = x_s (s sum(q x_q) + z sum(x_q))`.

use super::{GROUP, LANES, STEP_BYTES, Tile};
use crate::format::f16_value;

/// One kind of quantised weights.
pub(crate) trait Quantized {
    /// Steps through one group.
    const STEPS: usize;
    /// Whether there are minima; otherwise the level 128 is 0.
    const MINIMA: bool;
    /// The dot products of one group of a panel with the bytes of a row, 128 times their sum
    /// taken away where there are no minima.
    unsafe fn dots(panel: *const u8, row: *const i8, sum: i32) -> [i32; LANES];
}

/// A row as [`super::rows::quantize`] leaves it.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) bytes: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) sums: *const i32,
}

impl Row {
    /// Row `i` of a tile.
    ///
    /// # Safety
    /// The tile has it.
    #[inline(always)]
    pub(crate) unsafe fn of(tile: &Tile, i: usize, groups: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = tile.rows.add(i * tile.row_bytes);
            let scales = bytes.add(groups * GROUP).cast::<f32>();
            Self {
                bytes: bytes.cast(),
                scales,
                sums: scales.add(groups).cast(),
            }
        }
    }
}

/// A tile of one panel.
#[inline(always)]
pub(crate) unsafe fn tile_plain<Q: Quantized>(tile: &Tile) {
    let groups = tile.steps / Q::STEPS;
    debug_assert!(tile.n == 1);
    for i in 0..tile.m {
        let mut sums = [0.0_f32; LANES];
        // SAFETY: the caller's promise: all of it lies in memory.
        unsafe {
            let row = Row::of(tile, i, groups);
            for g in 0..groups {
                let (scale, sum) = (*row.scales.add(g), *row.sums.add(g));
                let panel = tile.panels.add(g * Q::STEPS * STEP_BYTES);
                let dots = Q::dots(panel, row.bytes.add(g * GROUP), sum);
                let weights = tile.scales.add(g * LANES).cast::<[u16; LANES]>();
                let weights = weights.read_unaligned();
                for lane in 0..LANES {
                    sums[lane] += dots[lane] as f32 * (f16_value(weights[lane]) * scale);
                }
                if Q::MINIMA {
                    let minima = tile.minima.add(g * LANES).cast::<[u16; LANES]>();
                    let minima = minima.read_unaligned();
                    for lane in 0..LANES {
                        sums[lane] += f16_value(minima[lane]) * (scale * sum as f32);
                    }
                }
            }
            let out = tile.out.add(i * tile.out_stride).cast::<[f32; LANES]>();
            out.write_unaligned(sums);
        }
    }
}

/// 8 bits in plain Rust.
pub(crate) struct PlainInt8;
/// 4 bits in plain Rust.
pub(crate) struct PlainInt4;

impl Quantized for PlainInt8 {
    const STEPS: usize = GROUP / 4;
    const MINIMA: bool = false;

    #[inline(always)]
    unsafe fn dots(panel: *const u8, row: *const i8, sum: i32) -> [i32; LANES] {
        let mut dots = [-128 * sum; LANES];
        for s in 0..Self::STEPS {
            // SAFETY: the caller's promise.
            let (step, row) = unsafe {
                (
                    panel.add(s * STEP_BYTES).cast::<[[u8; 4]; LANES]>().read(),
                    row.add(s * 4).cast::<[i8; 4]>().read(),
                )
            };
            for (dot, word) in dots.iter_mut().zip(step) {
                for (weight, x) in word.into_iter().zip(row) {
                    *dot += i32::from(weight) * i32::from(x);
                }
            }
        }
        dots
    }
}

impl Quantized for PlainInt4 {
    const STEPS: usize = GROUP / 8;
    const MINIMA: bool = true;

    #[inline(always)]
    unsafe fn dots(panel: *const u8, row: *const i8, _: i32) -> [i32; LANES] {
        let mut dots = [0; LANES];
        for s in 0..Self::STEPS {
            // SAFETY: the caller's promise.
            let (step, row) = unsafe {
                (
                    panel.add(s * STEP_BYTES).cast::<[[u8; 4]; LANES]>().read(),
                    row.add(s * 8).cast::<[i8; 8]>().read(),
                )
            };
            for (dot, word) in dots.iter_mut().zip(step) {
                for (i, pair) in word.into_iter().enumerate() {
                    *dot += i32::from(pair & 15) * i32::from(row[i])
                        + i32::from(pair >> 4) * i32::from(row[i + 4]);
                }
            }
        }
        dots
    }
}
