//! Rows times panels, for weights that are not quantised.

use super::{LANES, STEP_BYTES, Tile};

/// A way to multiply rows by panels. A step of a panel is one 32-bit word for each of 16 columns:
/// an f32, or two bf16 that belong to neighbouring inputs.
///
/// Its functions are inlined into callers that have the instructions enabled.
pub(crate) trait Dot {
    /// 16 sums.
    type Sums: Copy;
    /// Rows are bf16, not f32.
    const ROWS_BF16: bool;
    /// Values of a row in one step.
    const STEP_VALUES: usize;
    /// Most rows of a tile.
    const MAX_ROWS: usize;

    /// Sums of nothing.
    unsafe fn zero() -> Self::Sums;
    /// Reads 16 values.
    unsafe fn load(from: *const f32) -> Self::Sums;
    /// Writes 16 values.
    unsafe fn store(sums: Self::Sums, to: *mut f32);
    /// Adds `steps` steps of `N` panels times `M` rows, and asks for what lies `ahead` bytes further
    /// on, where that is a gain.
    unsafe fn accumulate<const M: usize, const N: usize>(
        sums: &mut [[Self::Sums; N]; M],
        panels: [*const u8; N],
        rows: *const u8,
        row_bytes: usize,
        steps: usize,
        ahead: usize,
    );
}

/// Bytes of a row in one step.
pub(crate) const fn row_step<D: Dot>() -> usize {
    D::STEP_VALUES * if D::ROWS_BF16 { 2 } else { 4 }
}

/// `M` rows times `N` panels; `out` has `stride` values from row to row.
///
/// # Safety
/// All of it lies in memory, and the processor has the instructions of `D`.
#[inline(always)]
pub(crate) unsafe fn multiply<D: Dot, const M: usize, const N: usize>(
    panels: [*const u8; N],
    rows: *const u8,
    row_bytes: usize,
    steps: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[D::zero(); N]; M];
        D::accumulate::<M, N>(&mut sums, panels, rows, row_bytes, steps, 0);
        store::<D, M, N>(&sums, out, (stride, LANES));
    }
}

/// Writes the sums of `M` rows and `N` panels, so many values apart.
#[inline(always)]
unsafe fn store<D: Dot, const M: usize, const N: usize>(
    sums: &[[D::Sums; N]; M],
    out: *mut f32,
    (row, panel): (usize, usize),
) {
    // By index: an iterator would take the sums out of their registers first.
    for i in 0..M {
        for j in 0..N {
            // SAFETY: the caller's promise.
            unsafe { D::store(sums[i][j], out.add(i * row + j * panel)) };
        }
    }
}

/// As [`multiply`], where the inputs lie in `segments` of `steps` steps each, and in each of them
/// `N` panels follow one another at a distance of `panel_bytes`.
///
/// # Safety
/// As there.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "all of them are in registers")]
pub(crate) unsafe fn multiply_segments<D: Dot, const M: usize, const N: usize>(
    segments: &[*const u8],
    last_steps: usize,
    panel_bytes: usize,
    rows: *const u8,
    row_bytes: usize,
    steps: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[D::zero(); N]; M];
        for (index, segment) in segments.iter().enumerate() {
            let count = if index + 1 == segments.len() {
                last_steps
            } else {
                steps
            };
            let panels = std::array::from_fn(|j| segment.add(j * panel_bytes));
            let rows = rows.add(index * steps * row_step::<D>());
            D::accumulate::<M, N>(&mut sums, panels, rows, row_bytes, count, 0);
        }
        store::<D, M, N>(&sums, out, (stride, LANES));
    }
}

/// The panels of a tile.
#[inline(always)]
pub(crate) unsafe fn panels<const N: usize>(tile: &Tile) -> [*const u8; N] {
    // SAFETY: the tile has so many panels.
    std::array::from_fn(|j| unsafe { tile.panels.add(j * tile.panel_bytes) })
}

/// A [`Tile`] of `M` rows and `N` panels.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_tile<D: Dot, const M: usize, const N: usize>(tile: &Tile) {
    debug_assert!(tile.m == M && tile.n == N);
    let (rows, row_bytes, steps) = (tile.rows, tile.row_bytes, tile.steps);
    let (out, apart) = (tile.out, (tile.out_stride, tile.out_panel));
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[D::zero(); N]; M];
        if tile.begun {
            for i in 0..M {
                for j in 0..N {
                    sums[i][j] = D::load(out.add(i * apart.0 + j * apart.1));
                }
            }
        }
        D::accumulate::<M, N>(&mut sums, panels(tile), rows, row_bytes, steps, tile.ahead);
        store::<D, M, N>(&sums, out, apart);
    }
}

/// A [`Tile`] of at most two rows and one panel.
#[inline(always)]
pub(crate) unsafe fn tile_small<D: Dot>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.m {
            1 => multiply_tile::<D, 1, 1>(tile),
            _ => multiply_tile::<D, 2, 1>(tile),
        }
    }
}

/// f32 weights in plain Rust.
pub(crate) struct PlainF32;
/// bf16 weights and f32 rows in plain Rust.
pub(crate) struct PlainBf16;

macro_rules! plain {
    ($name:ty, $values:literal, |$word:ident, $row:ident, $sum:ident| $step:expr) => {
        impl Dot for $name {
            type Sums = [f32; LANES];
            const ROWS_BF16: bool = false;
            const STEP_VALUES: usize = $values;
            const MAX_ROWS: usize = 2;

            #[inline(always)]
            unsafe fn zero() -> Self::Sums {
                [0.0; LANES]
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::Sums {
                // SAFETY: the caller's promise.
                unsafe { from.cast::<Self::Sums>().read_unaligned() }
            }

            #[inline(always)]
            unsafe fn store(sums: Self::Sums, to: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { to.cast::<Self::Sums>().write_unaligned(sums) }
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
                // SAFETY: the caller's promise.
                unsafe {
                    for s in 0..steps {
                        for j in 0..N {
                            let words = panels[j].add(s * STEP_BYTES).cast::<[u32; LANES]>();
                            let words = words.read_unaligned();
                            for i in 0..M {
                                let $row = rows
                                    .add(i * row_bytes + s * $values * 4)
                                    .cast::<[f32; $values]>()
                                    .read_unaligned();
                                for lane in 0..LANES {
                                    let $word = words[lane];
                                    let $sum = sums[i][j][lane];
                                    sums[i][j][lane] = $step;
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}

plain!(PlainF32, 1, |word, row, sum| sum
    + f32::from_bits(word) * row[0]);
plain!(PlainBf16, 2, |word, row, sum| {
    // The first of a pair lies in the lower half.
    sum + f32::from_bits(word << 16) * row[0] + f32::from_bits(word & 0xffff_0000) * row[1]
});
