//! AVX2, FMA and F16C.

use super::{attend::attend_small as attend_with, learn::turn_halves as turn_with, *};

set! { compiled "avx2,fma,f16c": }

const BF16_ROWS: RowKind = RowKind::F32;
const SHAPES: &[Shape] = &[
    Shape { rows: 1, panels: 4 },
    Shape { rows: 2, panels: 2 },
    Shape { rows: 6, panels: 1 },
];
const QUANTIZED_SHAPES: &[Shape] = &[Shape { rows: 1, panels: 1 }, Shape { rows: 4, panels: 1 }];

/// f32 weights and rows.
struct F32;
/// bf16 weights, f32 rows.
struct Bf16;

macro_rules! dot {
    ($name:ty, $values:literal, |$word:ident, $value:ident| $part:expr) => {
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
            unsafe fn load(from: *const f32) -> Self::Sums {
                // SAFETY: see above.
                unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
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
                            let step = panels[j].add(s * STEP_BYTES);
                            for $value in 0..$values {
                                // Both halves at once, so that a value of a row is read once.
                                let halves: [__m256; 2] = std::array::from_fn(|half| {
                                    let $word = _mm256_loadu_si256(step.add(half * 32).cast());
                                    $part
                                });
                                for i in 0..M {
                                    let row = rows.add(i * row_bytes).cast::<f32>();
                                    let x = _mm256_broadcast_ss(&*row.add(s * $values + $value));
                                    for half in 0..2 {
                                        sums[i][j][half] =
                                            _mm256_fmadd_ps(halves[half], x, sums[i][j][half]);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}

dot!(F32, 1, |word, _value| _mm256_castsi256_ps(word));
dot!(Bf16, 2, |word, value| _mm256_castsi256_ps(if value == 0 {
    // The first of a pair lies in the lower half.
    _mm256_slli_epi32::<16>(word)
} else {
    _mm256_and_si256(word, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()))
}));

#[inline(always)]
unsafe fn tile<D: Dot>(tile: &Tile) {
    macro_rules! go {
        ($M:literal, $N:literal) => {
            // SAFETY: the caller's promise.
            unsafe { multiply_tile::<D, $M, $N>(tile) }
        };
    }
    match (tile.m, tile.n) {
        (1, 1) => go!(1, 1),
        (1, 2) => go!(1, 2),
        (1, 3) => go!(1, 3),
        (1, 4) => go!(1, 4),
        (2, 1) => go!(2, 1),
        (2, 2) => go!(2, 2),
        (3, 1) => go!(3, 1),
        (4, 1) => go!(4, 1),
        (5, 1) => go!(5, 1),
        (6, 1) => go!(6, 1),
        (m, _) => unreachable_rows(m),
    }
}

/// 8 dot products of 4 unsigned and 4 signed bytes. No pair of products reaches 2^15.
#[inline(always)]
unsafe fn dot4(sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// Adds the products of half a step of weights and a row to `dots`: for 8 bits 8 sums of 32 bits,
/// for 4 bits 16 sums of 16 bits, two for each output.
#[inline(always)]
unsafe fn add_products<B: Bits>(dots: __m256i, word: __m256i, row: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let row = row.cast::<i32>();
        let x = _mm256_set1_epi32(row.read_unaligned());
        if B::FOUR {
            let second = _mm256_set1_epi32(row.add(1).read_unaligned());
            let low = _mm256_set1_epi8(15);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(word), low);
            let word = _mm256_and_si256(word, low);
            // 16 products of a group come together, of at most 15 * 128 each: less than 2^15.
            let dots = _mm256_add_epi16(dots, _mm256_maddubs_epi16(word, x));
            _mm256_add_epi16(dots, _mm256_maddubs_epi16(high, second))
        } else {
            // Less 128: from -127 to 127, as they were quantised.
            let word = _mm256_xor_si256(word, _mm256_set1_epi8(-128));
            dot4(dots, _mm256_abs_epi8(x), _mm256_sign_epi8(word, x))
        }
    }
}

/// Adds the dot products of group `g`, times the scales of weights and rows.
#[inline(always)]
unsafe fn add_group<B: Bits, const M: usize>(
    tile: &Tile,
    g: usize,
    rows: &[Row; M],
    dots: &[[__m256i; 2]; M],
    sums: &mut [[__m256; 2]; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for half in 0..2 {
            let at = g * LANES + half * 8;
            let scales = _mm256_cvtph_ps(_mm_loadu_si128(tile.scales.add(at).cast()));
            for i in 0..M {
                let factor = _mm256_mul_ps(scales, _mm256_set1_ps(*rows[i].scales.add(g)));
                let mut dots = dots[i][half];
                if B::FOUR {
                    dots = _mm256_madd_epi16(dots, _mm256_set1_epi16(1));
                }
                let dots = _mm256_cvtepi32_ps(dots);
                sums[i][half] = _mm256_fmadd_ps(dots, factor, sums[i][half]);
            }
            if B::FOUR {
                let minima = _mm256_cvtph_ps(_mm_loadu_si128(tile.minima.add(at).cast()));
                for i in 0..M {
                    let x = *rows[i].scales.add(g) * *rows[i].sums.add(g) as f32;
                    sums[i][half] = _mm256_fmadd_ps(minima, _mm256_set1_ps(x), sums[i][half]);
                }
            }
        }
    }
}

/// `M` rows times one panel. Several panels at a time are several streams, and slower.
#[inline(always)]
unsafe fn quantized<B: Bits, const M: usize>(tile: &Tile) {
    debug_assert!(tile.m == M && tile.n == 1 && !tile.begun);
    let per_group = if B::FOUR { GROUP / 8 } else { GROUP / 4 };
    let groups = tile.steps / per_group;
    // SAFETY: the caller's promise.
    unsafe {
        let rows: [Row; M] = std::array::from_fn(|i| Row::of(tile, i, groups));
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for g in 0..groups {
            let mut dots = [[_mm256_setzero_si256(); 2]; M];
            for s in 0..per_group {
                let step = tile.panels.add((g * per_group + s) * STEP_BYTES);
                _mm_prefetch::<_MM_HINT_T0>(step.wrapping_add(tile.ahead).cast());
                for half in 0..2 {
                    let word = _mm256_loadu_si256(step.add(half * 32).cast());
                    for i in 0..M {
                        let row = rows[i].bytes.add(g * GROUP + s * (GROUP / per_group));
                        dots[i][half] = add_products::<B>(dots[i][half], word, row);
                    }
                }
            }
            add_group::<B, M>(tile, g, &rows, &dots, &mut sums);
        }
        for i in 0..M {
            let out = tile.out.add(i * tile.out_stride);
            _mm256_storeu_ps(out, sums[i][0]);
            _mm256_storeu_ps(out.add(8), sums[i][1]);
        }
    }
}

#[inline(always)]
unsafe fn tile_quantized<B: Bits>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.m {
            1 => quantized::<B, 1>(tile),
            2 => quantized::<B, 2>(tile),
            3 => quantized::<B, 3>(tile),
            4 => quantized::<B, 4>(tile),
            m => unreachable_rows(m),
        }
    }
}
