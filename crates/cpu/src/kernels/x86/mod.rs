//! The sets for x86-64.
#![allow(
    clippy::wildcard_imports,
    reason = "the instructions are a language of their own"
)]

use std::arch::x86_64::*;

use super::{
    GROUP, LANES, Multiply, Ops, STEP_BYTES, Shape, Tile,
    attend::{self, AttendArgs, unreachable_rows, with_rows},
    dot::{Dot, multiply_tile, panels},
    learn::{self, LearnOps, Likelihood, NormBackArgs, SoftmaxArgs, TurnArgs},
    levels::{self, Levels},
    quantized::Row,
    rows::{self, AddArgs, GateArgs, NormArgs, ScaleArgs},
    stay,
};
use crate::format::RowKind;

pub(super) mod amx;
pub(super) mod avx2;
pub(super) mod avx512;

/// Weights of 8 bits or of 4.
trait Bits {
    const FOUR: bool;
}
struct Int8;
struct Int4;
impl Bits for Int8 {
    const FOUR: bool = false;
}
impl Bits for Int4 {
    const FOUR: bool = true;
}

/// Functions compiled with some instructions.
macro_rules! compiled {
    ($features:tt: $($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $function:expr;)*) => {$(
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name($($arg: $type),*) $(-> $result)? {
            // SAFETY: the caller's promise.
            unsafe { $function($($arg),*) }
        }
    )*};
}
use compiled;

/// As [`compiled`], with what [`avx512`] needs.
macro_rules! compiled_for_avx512 {
    ($($functions:tt)*) => {
        compiled! {
            "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c": $($functions)*
        }
    };
}
use compiled_for_avx512;

/// The functions of a set and [`Ops`] of them, compiled by `$compile` for `$features`.
///
/// Beside it stand the types and functions `F32`, `Bf16`, `tile`, `tile_quantized`, `attend_with`,
/// `turn_with`, and the constants `BF16_ROWS` (what a multiplication by bf16 takes), `SHAPES` and
/// `QUANTIZED_SHAPES`.
macro_rules! set {
    ($compile:ident $($features:tt)*) => {
        $compile! { $($features)*
            norm(args: &NormArgs<'_>, out: &mut [f32]) = rows::norm;
            gate(args: &GateArgs<'_>) = rows::gate;
            add_rows(args: &AddArgs<'_>) = rows::add_rows;
            to_bf16(values: &[f32], out: &mut [u16]) = rows::to_bf16;
            quantize(values: &[f32], out: *mut u8) = rows::quantize;
            levels8(group: &[f32; GROUP]) -> Levels = levels::levels8;
            levels4(group: &[f32; GROUP], importance: &[f32; GROUP]) -> Levels = levels::levels4;
            softcap(cap: f32, values: &mut [f32]) = rows::softcap;
            add(to: &mut [f32], values: &[f32]) = rows::add;
            scale(args: &ScaleArgs<'_>) = rows::scale;
            norm_back(args: &NormBackArgs<'_>, dx: &mut [f32]) = learn::norm_back;
            gated(gelu: bool, both: [&[f32]; 2], out: &mut [f32]) = learn::gated;
            gate_back(gelu: bool, both: [&mut [f32]; 2], inner: &mut [f32]) = learn::gate_back;
            softmax(args: &SoftmaxArgs, row: &mut [f32], slopes: &mut [f32]) = learn::softmax;
            softmax_back(scale: f32, weights: &[f32], slopes: &[f32], d: &mut [f32]) =
                learn::softmax_back;
            turn(args: &TurnArgs<'_>, head: &mut [f32]) = learn::turn;
            likelihood(logits: &[f32]) -> Likelihood = learn::likelihood;
            likelihood_back(
                likelihood: &Likelihood, weight: f32, cap: f32, logits: &mut [f32]
            ) = learn::likelihood_back;
            widen(panel: *const u8, steps: usize, out: *mut f32) = learn::widen;
            turn_panel(panel: *const u8, inputs: usize, half: bool, out: *mut f32) =
                learn::turn_panel;
            turn_halves(panel: *const u8, inputs: usize, out: *mut f32) = turn_with;
            round(values: &[f32], out: &mut [f32]) = learn::round;
            copy_panel(from: *const f32, stride: usize, count: usize, out: *mut f32) =
                learn::copy_panel;
            attend_f32(args: &AttendArgs<'_>) = attend_with::<F32>;
            attend_bf16(args: &AttendArgs<'_>) = attend_with::<Bf16>;
            tile_f32(args: &Tile) = tile::<F32>;
            tile_bf16(args: &Tile) = tile::<Bf16>;
            tile_int8(args: &Tile) = tile_quantized::<Int8>;
            tile_int4(args: &Tile) = tile_quantized::<Int4>;
        }

        /// The set.
        pub(in super::super) fn ops() -> Ops {
            let multiply = |rows, tile, shapes| Multiply { rows, tile, shapes };
            Ops {
                f32: multiply(RowKind::F32, tile_f32, SHAPES),
                bf16: multiply(BF16_ROWS, tile_bf16, SHAPES),
                int8: multiply(RowKind::Q8, tile_int8, QUANTIZED_SHAPES),
                int4: multiply(RowKind::Q8, tile_int4, QUANTIZED_SHAPES),
                attend_f32,
                attend_bf16,
                norm,
                gate,
                add_rows,
                to_bf16,
                quantize,
                levels8,
                levels4,
                softcap,
                add,
                scale,
                learn: LearnOps {
                    norm_back,
                    gated,
                    gate_back,
                    softmax,
                    softmax_back,
                    turn,
                    likelihood,
                    likelihood_back,
                    widen,
                    turn_panel,
                    turn_halves,
                    round,
                    copy_panel,
                },
                leave: stay,
            }
        }
    };
}
use set;
