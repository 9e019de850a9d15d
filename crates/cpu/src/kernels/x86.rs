//! The sets for x86-64.
#![allow(
    clippy::wildcard_imports,
    reason = "the instructions are a language of their own"
)]

use std::arch::x86_64::*;

use super::{
    GROUP, LANES, Multiply, Ops, STEP_BYTES, Shape, Tile,
    attend::{self, AttendArgs, unreachable_rows, with_rows},
    dot::{Dot, multiply, panels},
    levels::{self, Levels},
    quantized::{Quantized, Row, tile_plain},
    rows::{self, AddArgs, GateArgs, NormArgs, ScaleArgs},
};
use crate::format::RowKind;

/// The functions of `rows`, compiled with some instructions.
macro_rules! compiled {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        pub(super) unsafe fn norm(args: &NormArgs<'_>, out: &mut [f32]) {
            // SAFETY: the caller's promise, here and below.
            unsafe { rows::norm(args, out) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn gate(args: &GateArgs<'_>) {
            // SAFETY: see above.
            unsafe { rows::gate(args) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn add_rows(args: &AddArgs<'_>) {
            // SAFETY: see above.
            unsafe { rows::add_rows(args) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn to_bf16(values: &[f32], out: &mut [u16]) {
            // SAFETY: see above.
            unsafe { rows::to_bf16(values, out) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn quantize(values: &[f32], out: *mut u8) {
            // SAFETY: see above.
            unsafe { rows::quantize(values, out) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn levels8(group: &[f32; GROUP]) -> Levels {
            // SAFETY: see above.
            unsafe { levels::levels8(group) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn levels4(group: &[f32; GROUP]) -> Levels {
            // SAFETY: see above.
            unsafe { levels::levels4(group) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn softcap(cap: f32, values: &mut [f32]) {
            // SAFETY: see above.
            unsafe { rows::softcap(cap, values) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn add(to: &mut [f32], values: &[f32]) {
            // SAFETY: see above.
            unsafe { rows::add(to, values) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn scale(args: &ScaleArgs<'_>) {
            // SAFETY: see above.
            unsafe { rows::scale(args) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn attend_f32(args: &AttendArgs<'_>) {
            // SAFETY: see above.
            unsafe { attend_with::<F32>(args) }
        }
        #[target_feature(enable = $features)]
        pub(super) unsafe fn attend_bf16(args: &AttendArgs<'_>) {
            // SAFETY: see above.
            unsafe { attend_with::<Bf16>(args) }
        }
        /// The set of these functions and of multiplications by each kind of weights.
        pub(super) fn ops(f32: Multiply, bf16: Multiply, int8: Multiply, int4: Multiply) -> Ops {
            Ops {
                f32,
                bf16,
                int8,
                int4,
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
            }
        }
    };
}

/// AVX2, FMA and F16C.
pub(super) fn avx2() -> Ops {
    use avx2 as set;

    const SHAPES: &[Shape] = &[
        Shape { rows: 1, panels: 4 },
        Shape { rows: 2, panels: 2 },
        Shape { rows: 4, panels: 1 },
    ];
    const QUANTIZED: &[Shape] = &[Shape { rows: 1, panels: 1 }, Shape { rows: 4, panels: 1 }];
    let multiply = |rows, tile, shapes| Multiply { rows, tile, shapes };
    set::ops(
        multiply(RowKind::F32, set::tile_f32, SHAPES),
        multiply(RowKind::F32, set::tile_bf16, SHAPES),
        multiply(RowKind::Q8, set::tile_int8, QUANTIZED),
        multiply(RowKind::Q8, set::tile_int4, QUANTIZED),
    )
}

/// AVX-512 with BF16 and VNNI.
pub(super) fn avx512() -> Ops {
    use avx512 as set;

    const SHAPES: &[Shape] = &[
        Shape { rows: 1, panels: 8 },
        Shape { rows: 4, panels: 4 },
        Shape {
            rows: 14,
            panels: 2,
        },
    ];
    const QUANTIZED: &[Shape] = &[
        Shape { rows: 1, panels: 8 },
        Shape { rows: 2, panels: 4 },
        Shape { rows: 6, panels: 2 },
    ];
    let multiply = |rows, tile, shapes| Multiply { rows, tile, shapes };
    set::ops(
        multiply(RowKind::F32, set::tile_f32, SHAPES),
        multiply(RowKind::Bf16, set::tile_bf16, SHAPES),
        multiply(RowKind::Q8, set::tile_int8, QUANTIZED),
        multiply(RowKind::Q8, set::tile_int4, QUANTIZED),
    )
}

mod avx2 {
    use super::{attend::attend_small as attend_with, *};

    compiled!("avx2,fma,f16c");

    /// f32 weights and rows.
    struct F32;
    /// bf16 weights, f32 rows.
    struct Bf16;

    macro_rules! dot {
        ($name:ty, $values:literal, |$sum:ident, $word:ident, $row:ident| $step:expr) => {
            impl Dot for $name {
                type Sums = [__m256; 2];
                const ROWS_BF16: bool = false;
                const STEP_VALUES: usize = $values;
                const MAX_ROWS: usize = 4;

                #[inline(always)]
                unsafe fn zero() -> Self::Sums {
                    // SAFETY: the caller's promise, here and below.
                    unsafe { [_mm256_setzero_ps(); 2] }
                }

                #[inline(always)]
                unsafe fn store(sums: Self::Sums, to: *mut f32) {
                    // SAFETY: see above.
                    unsafe {
                        _mm256_storeu_ps(to, sums[0]);
                        _mm256_storeu_ps(to.add(8), sums[1]);
                    }
                }

                #[inline(always)]
                unsafe fn accumulate<const M: usize, const N: usize>(
                    sums: &mut [[Self::Sums; N]; M],
                    panels: [*const u8; N],
                    rows: *const u8,
                    row_bytes: usize,
                    steps: usize,
                    _: usize,
                ) {
                    // SAFETY: see above.
                    unsafe {
                        for s in 0..steps {
                            for j in 0..N {
                                for half in 0..2 {
                                    let $word = panels[j].add(s * STEP_BYTES + half * 32);
                                    let $word = _mm256_loadu_si256($word.cast());
                                    for i in 0..M {
                                        let $row = rows.add(i * row_bytes + s * $values * 4);
                                        let $row = $row.cast::<f32>();
                                        let $sum = sums[i][j][half];
                                        sums[i][j][half] = $step;
                                    }
                                }
                            }
                        }
                    }
                }
            }
        };
    }

    dot!(F32, 1, |sum, word, row| _mm256_fmadd_ps(
        _mm256_castsi256_ps(word),
        _mm256_broadcast_ss(&*row),
        sum
    ));
    dot!(Bf16, 2, |sum, word, row| {
        // The first of a pair lies in the lower half.
        let first = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(word));
        let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let second = _mm256_castsi256_ps(_mm256_and_si256(word, mask));
        let sum = _mm256_fmadd_ps(first, _mm256_broadcast_ss(&*row), sum);
        _mm256_fmadd_ps(second, _mm256_broadcast_ss(&*row.add(1)), sum)
    });

    #[inline(always)]
    unsafe fn tile<D: Dot>(tile: &Tile) {
        let Tile {
            rows,
            row_bytes,
            steps,
            out,
            out_stride,
            m,
            n,
            ..
        } = *tile;
        macro_rules! go {
            ($M:literal, $N:literal) => {
                // SAFETY: the caller's promise.
                unsafe {
                    let panels = panels::<$N>(tile);
                    multiply::<D, $M, $N>(panels, rows, row_bytes, steps, 0, out, out_stride)
                }
            };
        }
        match (m, n) {
            (1, 1) => go!(1, 1),
            (1, 2) => go!(1, 2),
            (1, 3) => go!(1, 3),
            (1, 4) => go!(1, 4),
            (2, 1) => go!(2, 1),
            (2, 2) => go!(2, 2),
            (3, 1) => go!(3, 1),
            (4, 1) => go!(4, 1),
            _ => unreachable_rows(m),
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn tile_f32(args: &Tile) {
        // SAFETY: the caller's promise, here and below.
        unsafe { tile::<F32>(args) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn tile_bf16(args: &Tile) {
        // SAFETY: see above.
        unsafe { tile::<Bf16>(args) }
    }

    struct Int8;
    struct Int4;

    /// 8 dot products of 4 unsigned and 4 signed bytes. No pair of products reaches 2^15.
    #[inline(always)]
    unsafe fn dot4(sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm256_maddubs_epi16(unsigned, signed);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn lanes(dots: [__m256i; 2]) -> [i32; LANES] {
        // SAFETY: both are 64 bytes without a meaning of their own.
        unsafe { std::mem::transmute(dots) }
    }

    impl Quantized for Int8 {
        const STEPS: usize = GROUP / 4;
        const MINIMA: bool = false;

        #[inline(always)]
        unsafe fn dots(panel: *const u8, row: *const i8, _: i32) -> [i32; LANES] {
            // SAFETY: the caller's promise.
            unsafe {
                let mut dots = [_mm256_setzero_si256(); 2];
                for s in 0..Self::STEPS {
                    let x = _mm256_set1_epi32(row.add(s * 4).cast::<i32>().read_unaligned());
                    let magnitude = _mm256_abs_epi8(x);
                    for (half, dot) in dots.iter_mut().enumerate() {
                        let w = panel.add(s * STEP_BYTES + half * 32);
                        // Less 128: from -127 to 127, as they were quantised.
                        let w = _mm256_loadu_si256(w.cast());
                        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                        *dot = dot4(*dot, magnitude, _mm256_sign_epi8(w, x));
                    }
                }
                lanes(dots)
            }
        }
    }

    impl Quantized for Int4 {
        const STEPS: usize = GROUP / 8;
        const MINIMA: bool = true;

        #[inline(always)]
        unsafe fn dots(panel: *const u8, row: *const i8, _: i32) -> [i32; LANES] {
            // SAFETY: the caller's promise.
            unsafe {
                let mut dots = [_mm256_setzero_si256(); 2];
                let low = _mm256_set1_epi8(15);
                for s in 0..Self::STEPS {
                    let x = row.add(s * 8).cast::<i32>();
                    let first = _mm256_set1_epi32(x.read_unaligned());
                    let second = _mm256_set1_epi32(x.add(1).read_unaligned());
                    for (half, dot) in dots.iter_mut().enumerate() {
                        let w = panel.add(s * STEP_BYTES + half * 32);
                        let w = _mm256_loadu_si256(w.cast());
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                        *dot = dot4(*dot, _mm256_and_si256(w, low), first);
                        *dot = dot4(*dot, high, second);
                    }
                }
                lanes(dots)
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn tile_int8(args: &Tile) {
        // SAFETY: the caller's promise, here and below.
        unsafe { tile_plain::<Int8>(args) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn tile_int4(args: &Tile) {
        // SAFETY: see above.
        unsafe { tile_plain::<Int4>(args) }
    }
}

mod avx512 {
    use super::{attend::attend_large as attend_with, *};

    compiled!("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c");

    /// f32 weights and rows.
    struct F32;
    /// bf16 weights and rows.
    struct Bf16;

    macro_rules! dot {
        ($name:ty, $bf16:literal, $values:literal, |$sum:ident, $word:ident, $row:ident| $step:expr) => {
            impl Dot for $name {
                type Sums = __m512;
                const ROWS_BF16: bool = $bf16;
                const STEP_VALUES: usize = $values;
                const MAX_ROWS: usize = 14;

                #[inline(always)]
                unsafe fn zero() -> Self::Sums {
                    // SAFETY: the caller's promise, here and below.
                    unsafe { _mm512_setzero_ps() }
                }

                #[inline(always)]
                unsafe fn store(sums: Self::Sums, to: *mut f32) {
                    // SAFETY: see above.
                    unsafe { _mm512_storeu_ps(to, sums) }
                }

                #[inline(always)]
                unsafe fn accumulate<const M: usize, const N: usize>(
                    sums: &mut [[Self::Sums; N]; M],
                    panels: [*const u8; N],
                    rows: *const u8,
                    row_bytes: usize,
                    steps: usize,
                    ahead: usize,
                ) {
                    // SAFETY: see above.
                    unsafe {
                        for s in 0..steps {
                            let mut words = [_mm512_setzero_si512(); N];
                            for j in 0..N {
                                let word = panels[j].add(s * STEP_BYTES);
                                words[j] = _mm512_loadu_si512(word.cast());
                                _mm_prefetch::<_MM_HINT_T1>(word.wrapping_add(ahead).cast());
                            }
                            for i in 0..M {
                                let $row = rows.add(i * row_bytes + s * 4).cast::<i32>();
                                let $row = _mm512_set1_epi32($row.read_unaligned());
                                for j in 0..N {
                                    let ($sum, $word) = (sums[i][j], words[j]);
                                    sums[i][j] = $step;
                                }
                            }
                        }
                    }
                }
            }
        };
    }

    dot!(F32, false, 1, |sum, word, row| _mm512_fmadd_ps(
        _mm512_castsi512_ps(word),
        _mm512_castsi512_ps(row),
        sum
    ));
    dot!(Bf16, true, 2, |sum, word, row| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512i, __m512bh>(word),
        std::mem::transmute::<__m512i, __m512bh>(row)
    ));

    #[inline(always)]
    unsafe fn tile<D: Dot>(tile: &Tile) {
        let Tile {
            rows,
            row_bytes,
            steps,
            out,
            out_stride,
            m,
            n,
            ..
        } = *tile;
        macro_rules! go {
            ($M:ident, $N:literal) => {{
                let panels = panels::<$N>(tile);
                multiply::<D, $M, $N>(panels, rows, row_bytes, steps, tile.ahead, out, out_stride)
            }};
            ($M:literal, $N:literal) => {{
                const M: usize = $M;
                go!(M, $N)
            }};
        }
        // SAFETY: the caller's promise.
        unsafe {
            match (m, n) {
                (1, 8) => go!(1, 8),
                (1, 7) => go!(1, 7),
                (1, 6) => go!(1, 6),
                (1, 5) => go!(1, 5),
                (1, 4) => go!(1, 4),
                (1, 3) => go!(1, 3),
                (2, 4) => go!(2, 4),
                (2, 3) => go!(2, 3),
                (3, 4) => go!(3, 4),
                (3, 3) => go!(3, 3),
                (4, 4) => go!(4, 4),
                (4, 3) => go!(4, 3),
                (m, 2) => with_rows!(m, 14, M => go!(M, 2)),
                (m, _) => with_rows!(m, 14, M => go!(M, 1)),
            }
        }
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"
    )]
    pub(super) unsafe fn tile_f32(args: &Tile) {
        // SAFETY: the caller's promise, here and below.
        unsafe { tile::<F32>(args) }
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"
    )]
    pub(super) unsafe fn tile_bf16(args: &Tile) {
        // SAFETY: see above.
        unsafe { tile::<Bf16>(args) }
    }

    /// Groups whose scales are asked for ahead.
    const GROUPS_AHEAD: usize = 16;

    /// `M` rows times `N` panels of 8 bits, or of 4.
    #[inline(always)]
    unsafe fn quantized<const FOUR: bool, const M: usize, const N: usize>(tile: &Tile) {
        let per_group = if FOUR { GROUP / 8 } else { GROUP / 4 };
        let groups = tile.steps / per_group;
        // SAFETY: the caller's promise.
        unsafe {
            let rows: [Row; M] = std::array::from_fn(|i| Row::of(tile, i, groups));
            let mut sums = [[_mm512_setzero_ps(); N]; M];
            let low = _mm512_set1_epi8(15);
            for g in 0..groups {
                let mut dots = [[_mm512_setzero_si512(); N]; M];
                if !FOUR {
                    for i in 0..M {
                        // The level 128 is 0.
                        dots[i] = [_mm512_set1_epi32(-128 * *rows[i].sums.add(g)); N];
                    }
                }
                for s in 0..per_group {
                    let mut words = [_mm512_setzero_si512(); N];
                    for j in 0..N {
                        let word = tile.panels.add(j * tile.panel_bytes);
                        let word = word.add((g * per_group + s) * STEP_BYTES);
                        words[j] = _mm512_loadu_si512(word.cast());
                        _mm_prefetch::<_MM_HINT_T1>(word.wrapping_add(tile.ahead).cast());
                    }
                    for i in 0..M {
                        if FOUR {
                            let x = rows[i].bytes.add(g * GROUP + s * 8).cast::<i32>();
                            let first = _mm512_set1_epi32(x.read_unaligned());
                            let second = _mm512_set1_epi32(x.add(1).read_unaligned());
                            for j in 0..N {
                                let high = _mm512_srli_epi16::<4>(words[j]);
                                let high = _mm512_and_si512(high, low);
                                let word = _mm512_and_si512(words[j], low);
                                let dot = _mm512_dpbusd_epi32(dots[i][j], word, first);
                                dots[i][j] = _mm512_dpbusd_epi32(dot, high, second);
                            }
                        } else {
                            let x = rows[i].bytes.add(g * GROUP + s * 4).cast::<i32>();
                            let x = _mm512_set1_epi32(x.read_unaligned());
                            for j in 0..N {
                                dots[i][j] = _mm512_dpbusd_epi32(dots[i][j], words[j], x);
                            }
                        }
                    }
                }
                for j in 0..N {
                    let at = j * tile.panel_scales + g * LANES;
                    let scales = tile.scales.add(at);
                    let further = LANES * GROUPS_AHEAD;
                    _mm_prefetch::<_MM_HINT_T1>(scales.wrapping_add(further).cast());
                    let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                    for i in 0..M {
                        let x = *rows[i].scales.add(g);
                        let factor = _mm512_mul_ps(scales, _mm512_set1_ps(x));
                        let dots = _mm512_cvtepi32_ps(dots[i][j]);
                        sums[i][j] = _mm512_fmadd_ps(dots, factor, sums[i][j]);
                    }
                    if FOUR {
                        let minima = tile.minima.add(at);
                        _mm_prefetch::<_MM_HINT_T1>(minima.wrapping_add(further).cast());
                        let minima = _mm512_cvtph_ps(_mm256_loadu_si256(minima.cast()));
                        for i in 0..M {
                            let x = *rows[i].scales.add(g) * *rows[i].sums.add(g) as f32;
                            sums[i][j] = _mm512_fmadd_ps(minima, _mm512_set1_ps(x), sums[i][j]);
                        }
                    }
                }
            }
            for i in 0..M {
                for j in 0..N {
                    _mm512_storeu_ps(tile.out.add(i * tile.out_stride + j * LANES), sums[i][j]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_quantized<const FOUR: bool>(tile: &Tile) {
        macro_rules! go {
            ($(($M:literal, $N:literal)),*) => {
                match (tile.m, tile.n) {
                    // SAFETY: the caller's promise.
                    $(($M, $N) => unsafe { quantized::<FOUR, $M, $N>(tile) },)*
                    (m, _) => unreachable_rows(m),
                }
            };
        }
        go!(
            (1, 8),
            (1, 7),
            (1, 6),
            (1, 5),
            (1, 4),
            (1, 3),
            (1, 2),
            (1, 1),
            (2, 4),
            (2, 3),
            (2, 2),
            (2, 1),
            (3, 2),
            (3, 1),
            (4, 2),
            (4, 1),
            (5, 2),
            (5, 1),
            (6, 2),
            (6, 1)
        );
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"
    )]
    pub(super) unsafe fn tile_int8(args: &Tile) {
        // SAFETY: the caller's promise, here and below.
        unsafe { tile_quantized::<false>(args) }
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"
    )]
    pub(super) unsafe fn tile_int4(args: &Tile) {
        // SAFETY: see above.
        unsafe { tile_quantized::<true>(args) }
    }
}
