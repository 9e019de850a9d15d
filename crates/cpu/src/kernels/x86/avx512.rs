//! AVX-512 with BF16 and VNNI.

use super::{attend::attend_large as attend_with, *};

set! { compiled_for_avx512 }

const BF16_ROWS: RowKind = RowKind::Bf16;
const SHAPES: &[Shape] = &[
    Shape { rows: 1, panels: 8 },
    Shape { rows: 4, panels: 4 },
    Shape {
        rows: 14,
        panels: 2,
    },
];
const QUANTIZED_SHAPES: &[Shape] = &[
    Shape { rows: 1, panels: 8 },
    Shape { rows: 2, panels: 4 },
    Shape { rows: 6, panels: 2 },
];

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
            unsafe fn load(from: *const f32) -> Self::Sums {
                // SAFETY: see above.
                unsafe { _mm512_loadu_ps(from) }
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
    macro_rules! go {
        ($M:expr, $N:literal) => {
            multiply_tile::<D, { $M }, $N>(tile)
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.m, tile.n) {
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

/// As [`learn::turn_halves`].
///
/// # Safety
/// As there, and the processor has AVX-512.
#[inline(always)]
unsafe fn turn_with(panel: *const u8, inputs: usize, out: *mut f32) {
    /// The middle two of each four values change places.
    const MIDDLE: [u8; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    // SAFETY: the caller's promise.
    unsafe {
        let middle = _mm512_broadcast_i32x4(_mm_loadu_si128(MIDDLE.as_ptr().cast()));
        let steps: [__m512i; 8] = std::array::from_fn(|s| {
            if 2 * s < inputs {
                let step = _mm512_loadu_si512(panel.add(s * STEP_BYTES).cast());
                _mm512_shuffle_epi8(step, middle)
            } else {
                _mm512_setzero_si512()
            }
        });
        // What is left is 8 times 8 words of 64 bits, transposed: words of even and of odd number.
        for odd in 0..2 {
            let two: [__m512i; 4] = std::array::from_fn(|i| {
                let (a, b) = (steps[2 * i], steps[2 * i + 1]);
                if odd == 0 {
                    _mm512_unpacklo_epi64(a, b)
                } else {
                    _mm512_unpackhi_epi64(a, b)
                }
            });
            let even = |a, b| _mm512_shuffle_i64x2::<0x88>(a, b);
            let others = |a, b| _mm512_shuffle_i64x2::<0xdd>(a, b);
            let (first, second) = (even(two[0], two[1]), even(two[2], two[3]));
            let (third, fourth) = (others(two[0], two[1]), others(two[2], two[3]));
            let turned = [
                even(first, second),
                even(third, fourth),
                others(first, second),
                others(third, fourth),
            ];
            for i in 0..4 {
                _mm512_storeu_si512(out.add((2 * i + odd) * LANES).cast(), turned[i]);
            }
        }
    }
}

/// Groups whose scales are asked for ahead.
const GROUPS_AHEAD: usize = 16;

/// Adds the dot products of group `g`, times the scales of weights and rows.
///
/// # Safety
/// The tile has that group, and the processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn add_group<B: Bits, const M: usize, const N: usize>(
    tile: &Tile,
    g: usize,
    rows: &[Row; M],
    dots: &[[__m512i; N]; M],
    sums: &mut [[__m512; N]; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
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
            if B::FOUR {
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
}

/// `M` rows times `N` panels.
#[inline(always)]
unsafe fn quantized<B: Bits, const M: usize, const N: usize>(tile: &Tile) {
    debug_assert!(!tile.begun);
    let per_group = if B::FOUR { GROUP / 8 } else { GROUP / 4 };
    let groups = tile.steps / per_group;
    // SAFETY: the caller's promise.
    unsafe {
        let rows: [Row; M] = std::array::from_fn(|i| Row::of(tile, i, groups));
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        let low = _mm512_set1_epi8(15);
        for g in 0..groups {
            let mut dots = [[_mm512_setzero_si512(); N]; M];
            if !B::FOUR {
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
                    if B::FOUR {
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
            add_group::<B, M, N>(tile, g, &rows, &dots, &mut sums);
        }
        for i in 0..M {
            for j in 0..N {
                _mm512_storeu_ps(
                    tile.out.add(i * tile.out_stride + j * tile.out_panel),
                    sums[i][j],
                );
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn tile_quantized<B: Bits>(tile: &Tile) {
    macro_rules! go {
        ($(($M:literal, $N:literal)),*) => {
            match (tile.m, tile.n) {
                // SAFETY: the caller's promise.
                $(($M, $N) => unsafe { quantized::<B, $M, $N>(tile) },)*
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
