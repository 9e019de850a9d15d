//! AVX2, FMA and F16C.

use super::{attend::attend_small as attend_with, tile_plain as tile_quantized, *};

set! { compiled "avx2,fma,f16c": }

const BF16_ROWS: RowKind = RowKind::F32;
const SHAPES: &[Shape] = &[
    Shape { rows: 1, panels: 4 },
    Shape { rows: 2, panels: 2 },
    Shape { rows: 4, panels: 1 },
];
const QUANTIZED_SHAPES: &[Shape] = &[Shape { rows: 1, panels: 1 }, Shape { rows: 4, panels: 1 }];

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
        (m, _) => unreachable_rows(m),
    }
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
