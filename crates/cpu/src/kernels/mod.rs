//! What computes: one set of functions for each kind of processor.
//!
//! All sets give the same results up to rounding, and within a set the result of a row does not
//! depend on which rows are computed with it: every output is summed by one chain of additions in
//! the order of `k`, however many rows and columns a tile has.
#![allow(unsafe_code)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "rows, panels and blocks begin at cache lines, and offsets are whole values"
)]
#![allow(
    clippy::inline_always,
    reason = "what is not inlined is compiled without the caller's instructions"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "an iterator over registers takes them out of the registers"
)]

mod attend;
mod dot;
mod learn;
mod levels;
mod quantized;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{fmt, str::FromStr};

pub(crate) use attend::{
    AttendArgs, CHUNK, MAX_HEAD, MAX_ROWS, SCRATCH, merge_chunks, partial_len,
};
pub(crate) use learn::{LearnOps, NormBackArgs, SoftmaxArgs, TurnArgs};
pub(crate) use levels::Levels;
pub(crate) use rows::{AddArgs, GateArgs, NormArgs, ScaleArgs};

use crate::format::{GROUP, RowKind};

/// Columns of a panel of weights, positions of a block of the cache.
pub(crate) const LANES: usize = 16;
/// Bytes of one step through a panel: one 32-bit word for each column.
pub(crate) const STEP_BYTES: usize = 64;
/// Bytes of a cache line.
pub(crate) const CACHE_LINE: usize = 64;

/// Asks for the cache line at `at`, to be written soon. Any address will do.
#[inline(always)]
pub(crate) fn fetch_to_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it changes no memory and never faults; a processor that does not know the
    // instruction does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line at `at`, to be read soon. Any address will do.
#[inline(always)]
pub(crate) fn fetch_to_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it changes no memory and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A set of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernels {
    /// Plain Rust, for any processor.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 with BF16 and VNNI (Zen 4, Sapphire Rapids and later).
    Avx512,
    /// AMX with BF16 and INT8 beside all of [`Self::Avx512`] (Sapphire Rapids and later).
    Amx,
}

impl Kernels {
    /// All of them, slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// Whether this processor has them.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.available() && x86::amx::usable(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        let mut sets = Self::ALL.into_iter().rev();
        sets.find(|set| set.available()).unwrap_or(Self::Portable)
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        })
    }
}

/// The text names no set of kernels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a set of kernels: portable, avx2, avx512 or amx is needed")]
pub struct InvalidKernels(String);

impl FromStr for Kernels {
    type Err = InvalidKernels;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|set| set.to_string() == text)
            .ok_or_else(|| InvalidKernels(text.chars().take(80).collect()))
    }
}

/// Some rows of activations times some panels of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// First panel: `steps` steps of [`STEP_BYTES`].
    pub(crate) panels: *const u8,
    /// From one panel to the next.
    pub(crate) panel_bytes: usize,
    /// Steps of a panel.
    pub(crate) steps: usize,
    /// Quantised weights: the scale of each group and column of the first panel, in f16.
    pub(crate) scales: *const u16,
    /// 4-bit weights: the value of the level 0, as `scales`.
    pub(crate) minima: *const u16,
    /// From the scales of one panel to those of the next.
    pub(crate) panel_scales: usize,
    /// First row of activations, in the form of [`Ops::row_kind`].
    pub(crate) rows: *const u8,
    /// From one row to the next.
    pub(crate) row_bytes: usize,
    /// Distance from a step to the one that is asked for meanwhile.
    pub(crate) ahead: usize,
    /// Number of rows, at most [`Shape::rows`].
    pub(crate) m: usize,
    /// Number of panels, at most [`Shape::panels`].
    pub(crate) n: usize,
    /// The outputs of the first row and panel.
    pub(crate) out: *mut f32,
    /// From the outputs of one row to those of the next, in values.
    pub(crate) out_stride: usize,
    /// From the outputs of one panel to those of the next, in values.
    pub(crate) out_panel: usize,
    /// There are outputs already, which the sums begin with. Not for quantised weights.
    pub(crate) begun: bool,
}

/// Largest tile of a kernel for some number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) panels: usize,
}

/// Values in the largest tile of any kernel.
pub(crate) const MAX_TILE: usize = 64 * LANES;

/// Computes a [`Tile`].
pub(crate) type TileFn = unsafe fn(&Tile);

/// A multiplication by one kind of weights.
#[derive(Clone, Copy)]
pub(crate) struct Multiply {
    /// What it takes as activations.
    pub(crate) rows: RowKind,
    pub(crate) tile: TileFn,
    /// Tiles by number of rows: the last entry whose `rows` is not more than what is left.
    pub(crate) shapes: &'static [Shape],
}

impl Multiply {
    /// The tile for many rows.
    pub(crate) fn largest(&self) -> Shape {
        self.shapes[self.shapes.len() - 1]
    }

    /// The tile for `rows` rows that are left.
    pub(crate) fn shape(&self, rows: usize) -> Shape {
        let largest = self.largest();
        if rows >= largest.rows {
            return largest;
        }
        // The smallest tile that takes all of them at once.
        let fits = self.shapes.iter().find(|shape| shape.rows >= rows);
        fits.copied().unwrap_or(largest)
    }
}

/// The functions of one set.
#[derive(Clone, Copy)]
pub(crate) struct Ops {
    pub(crate) f32: Multiply,
    pub(crate) bf16: Multiply,
    pub(crate) int8: Multiply,
    pub(crate) int4: Multiply,
    /// Keys and values in f32.
    pub(crate) attend_f32: unsafe fn(&AttendArgs<'_>),
    /// Keys and values in bf16.
    pub(crate) attend_bf16: unsafe fn(&AttendArgs<'_>),
    pub(crate) norm: unsafe fn(&NormArgs<'_>, &mut [f32]),
    pub(crate) gate: unsafe fn(&GateArgs<'_>),
    pub(crate) add_rows: unsafe fn(&AddArgs<'_>),
    pub(crate) to_bf16: unsafe fn(&[f32], &mut [u16]),
    pub(crate) quantize: unsafe fn(&[f32], *mut u8),
    pub(crate) levels8: unsafe fn(&[f32; GROUP]) -> Levels,
    pub(crate) levels4: unsafe fn(&[f32; GROUP], &[f32; GROUP]) -> Levels,
    pub(crate) softcap: unsafe fn(f32, &mut [f32]),
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    pub(crate) scale: unsafe fn(&ScaleArgs<'_>),
    pub(crate) learn: LearnOps,
    /// What a thread does at the end of its part of a step.
    pub(crate) leave: fn(),
}

/// Nothing is to be done at the end.
fn stay() {}

impl Ops {
    /// The functions of `kernels`, which this processor must have.
    pub(crate) fn of(kernels: Kernels) -> Self {
        assert!(kernels.available(), "this processor has no {kernels}");
        match kernels {
            Kernels::Portable => portable(),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2 => x86::avx2::ops(),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512 => x86::avx512::ops(),
            #[cfg(target_arch = "x86_64")]
            Kernels::Amx => x86::amx::ops(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable(),
        }
    }
}

fn portable() -> Ops {
    use dot::{PlainBf16, PlainF32};
    use quantized::{PlainInt4, PlainInt8};

    const SHAPES: &[Shape] = &[Shape { rows: 1, panels: 1 }, Shape { rows: 2, panels: 1 }];
    let multiply = |rows, tile| Multiply {
        rows,
        tile,
        shapes: SHAPES,
    };
    Ops {
        f32: multiply(RowKind::F32, dot::tile_small::<PlainF32>),
        bf16: multiply(RowKind::F32, dot::tile_small::<PlainBf16>),
        int8: multiply(RowKind::Q8, quantized::tile_plain::<PlainInt8>),
        int4: multiply(RowKind::Q8, quantized::tile_plain::<PlainInt4>),
        attend_f32: attend::attend_small::<PlainF32>,
        attend_bf16: attend::attend_small::<PlainBf16>,
        norm: rows::norm,
        gate: rows::gate,
        add_rows: rows::add_rows,
        to_bf16: rows::to_bf16,
        quantize: rows::quantize,
        levels8: levels::levels8,
        levels4: levels::levels4,
        softcap: rows::softcap,
        add: rows::add,
        scale: rows::scale,
        learn: LearnOps {
            norm_back: learn::norm_back,
            gated: learn::gated,
            gate_back: learn::gate_back,
            softmax: learn::softmax,
            softmax_back: learn::softmax_back,
            turn: learn::turn,
            likelihood: learn::likelihood,
            likelihood_back: learn::likelihood_back,
            widen: learn::widen,
            turn_panel: learn::turn_panel,
            turn_halves: learn::turn_halves,
            round: learn::round,
            copy_panel: learn::copy_panel,
        },
        leave: stay,
    }
}
