//! Causal attention of some queries that share a key head to one chunk of positions.
//!
//! The cache keeps, for each block of 16 positions, layer and head, the keys as one panel (16
//! columns are the positions, inputs are the dimensions of the head) and the values as
//! `head_dim / 16` panels (columns are dimensions, inputs are positions). So both products are
//! the multiplications of [`super::dot`], and each key is read once for all the query heads that
//! share it.
//!
//! A chunk begins at a multiple of [`CHUNK`], whatever the batch, and gives a softmax of its own:
//! the greatest score, the sum of weights and the weighted values of each row. [`merge_chunks`]
//! joins them in order of position. So the result of a row does not depend on how the work was
//! cut.

use std::marker::PhantomData;

use super::{
    LANES, STEP_BYTES,
    dot::{Dot, multiply, multiply_segments},
    rows::{exp, exponentials, softcap},
};
use crate::format::bf16_bits;

/// Positions of a chunk.
pub(crate) const CHUNK: usize = 256;
/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / LANES;
/// Most rows of one call.
pub(crate) const MAX_ROWS: usize = 14;
/// Widest head.
pub(crate) const MAX_HEAD: usize = 512;

/// What one call attends to what.
pub(crate) struct AttendArgs<'a> {
    /// First query: `tokens` tokens, `query_stride` values apart, of `group` heads each, which
    /// follow one another.
    pub(crate) queries: *const f32,
    pub(crate) query_stride: usize,
    /// `tokens * group` is at most [`MAX_ROWS`].
    pub(crate) tokens: usize,
    pub(crate) group: usize,
    /// Dimensions of a head, a multiple of 16 not above [`MAX_HEAD`].
    pub(crate) head_dim: usize,
    /// Position of the first token.
    pub(crate) position: usize,
    /// Each token sees so many positions, itself included.
    pub(crate) window: usize,
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Cap of the scores, 0 for none.
    pub(crate) softcap: f32,
    /// Index of the chunk.
    pub(crate) chunk: usize,
    /// The sequence's blocks.
    pub(crate) blocks: &'a [u32],
    /// The cache, where the block 0 has this layer's and head's keys and values.
    pub(crate) keys: *const u8,
    pub(crate) values: *const u8,
    /// From one block to the next.
    pub(crate) block_bytes: usize,
    /// [`partial_len`] values: for each row the weighted values, then for each row the greatest
    /// score, then for each row the sum of weights.
    pub(crate) out: *mut f32,
    /// [`SCRATCH`] values of the calling thread.
    pub(crate) scratch: *mut f32,
}

/// Values of the outcome of one chunk.
pub(crate) fn partial_len(rows: usize, head_dim: usize) -> usize {
    rows * (head_dim + 2)
}

/// Joins the outcomes of consecutive chunks of `rows` rows in the first of them.
pub(crate) fn merge_chunks(partials: &mut [f32], rows: usize, head_dim: usize) {
    let len = partial_len(rows, head_dim);
    let (first, others) = partials.split_at_mut(len);
    for other in others.chunks_exact(len) {
        for r in 0..rows {
            let (max, sum) = (rows * head_dim + r, rows * (head_dim + 1) + r);
            let (a, b) = (first[max], other[max]);
            let greatest = a.max(b);
            // A chunk of which a row sees nothing has the greatest score of -inf and weighs 0.
            let factor = |m: f32| {
                if m > f32::NEG_INFINITY {
                    exp(m - greatest)
                } else {
                    0.0
                }
            };
            let (fa, fb) = (factor(a), factor(b));
            first[max] = greatest;
            first[sum] = first[sum] * fa + other[sum] * fb;
            let row = &mut first[r * head_dim..(r + 1) * head_dim];
            for (x, y) in row.iter_mut().zip(&other[r * head_dim..(r + 1) * head_dim]) {
                *x = *x * fa + y * fb;
            }
        }
    }
}

/// Calls a generic function with the number of rows as a constant.
macro_rules! with_rows {
    ($rows:expr, $limit:expr, $M:ident => $call:expr) => {
        match $rows {
            1 => {
                const $M: usize = 1;
                $call
            }
            2 => {
                const $M: usize = 2;
                $call
            }
            3 if $limit > 2 => {
                const $M: usize = 3;
                $call
            }
            4 if $limit > 2 => {
                const $M: usize = 4;
                $call
            }
            5 if $limit > 4 => {
                const $M: usize = 5;
                $call
            }
            6 if $limit > 4 => {
                const $M: usize = 6;
                $call
            }
            7 if $limit > 4 => {
                const $M: usize = 7;
                $call
            }
            8 if $limit > 4 => {
                const $M: usize = 8;
                $call
            }
            9 if $limit > 4 => {
                const $M: usize = 9;
                $call
            }
            10 if $limit > 4 => {
                const $M: usize = 10;
                $call
            }
            11 if $limit > 4 => {
                const $M: usize = 11;
                $call
            }
            12 if $limit > 4 => {
                const $M: usize = 12;
                $call
            }
            13 if $limit > 4 => {
                const $M: usize = 13;
                $call
            }
            14 if $limit > 4 => {
                const $M: usize = 14;
                $call
            }
            _ => unreachable_rows($rows),
        }
    };
}
pub(crate) use with_rows;

/// No caller asks for so many rows: it went by the kernel's own limit.
#[cold]
#[allow(clippy::panic)]
pub(crate) fn unreachable_rows(rows: usize) {
    panic!("a tile of {rows} rows");
}

/// Values of scratch space that one call needs, aligned to cache lines.
pub(crate) const SCRATCH: usize = QUERIES + 2 * SCORES;
const QUERIES: usize = MAX_ROWS * MAX_HEAD;
/// Scores of a row, with a cache line between it and the next.
pub(crate) const SCORE_STRIDE: usize = CHUNK + LANES;
const SCORES: usize = MAX_ROWS * SCORE_STRIDE;

/// Which positions of the chunk a row sees.
#[derive(Clone, Copy, Default)]
struct Seen {
    from: usize,
    to: usize,
}

impl AttendArgs<'_> {
    fn rows(&self) -> usize {
        self.tokens * self.group
    }

    fn seen(&self, row: usize) -> Seen {
        let begin = self.chunk * CHUNK;
        let end = self.position + row / self.group + 1;
        let to = end.saturating_sub(begin).min(CHUNK);
        let from = end.saturating_sub(self.window).saturating_sub(begin);
        Seen {
            from: from.min(to),
            to,
        }
    }
}

/// The two products of attention.
pub(crate) trait Products {
    /// Rows are bf16, not f32.
    const ROWS_BF16: bool;
    /// Values of a row in one step.
    const STEP_VALUES: usize;

    /// Queries times keys: `[rows, blocks * 16]`, [`SCORE_STRIDE`] values from row to row.
    ///
    /// # Safety
    /// All of it lies in memory, and the processor has the instructions. Here and below.
    unsafe fn scores(queries: Packed, keys: &[*const u8], steps: usize, out: *mut f32);

    /// Weights times values: `[rows, panels * 16]`, without a gap between rows.
    unsafe fn values(weights: Packed, values: &Values<'_>, out: *mut f32);
}

/// Rows of one of the products, in its form.
#[derive(Clone, Copy)]
pub(crate) struct Packed {
    pub(crate) at: *const u8,
    /// From one row to the next.
    pub(crate) bytes: usize,
    /// At most [`MAX_ROWS`].
    pub(crate) count: usize,
}

/// The values of some blocks.
pub(crate) struct Values<'a> {
    /// The first panel in each block. The others follow it.
    pub(crate) blocks: &'a [*const u8],
    /// Panels of 16 dimensions.
    pub(crate) panels: usize,
    /// Steps of a panel.
    pub(crate) steps: usize,
    /// Those of the last block that hold positions which somebody sees; what lies behind them may
    /// be anything.
    pub(crate) last_steps: usize,
}

/// By a kernel of at most 4 rows.
pub(crate) struct Few<D>(PhantomData<D>);
/// By a kernel of [`MAX_ROWS`] rows.
pub(crate) struct Many<D>(PhantomData<D>);

macro_rules! products_by_dot {
    ($name:ident, $large:literal) => {
        impl<D: Dot> Products for $name<D> {
            const ROWS_BF16: bool = D::ROWS_BF16;
            const STEP_VALUES: usize = D::STEP_VALUES;

            #[inline(always)]
            unsafe fn scores(queries: Packed, keys: &[*const u8], steps: usize, out: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { scores_by_dot::<D, $large>(queries, keys, steps, out) }
            }

            #[inline(always)]
            unsafe fn values(weights: Packed, values: &Values<'_>, out: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { values_by_dot::<D, $large>(weights, values, out) }
            }
        }
    };
}

products_by_dot!(Few, false);
products_by_dot!(Many, true);

#[inline(always)]
unsafe fn scores_by_dot<D: Dot, const LARGE: bool>(
    queries: Packed,
    keys: &[*const u8],
    steps: usize,
    out: *mut f32,
) {
    let (rows, query_bytes) = (queries.count, queries.bytes);
    let mut r = 0;
    while r < rows {
        let m = (rows - r).min(D::MAX_ROWS);
        let mut b = 0;
        while b < keys.len() {
            let left = keys.len() - b;
            let n = match left {
                _ if !LARGE => 1,
                4.. if m <= 4 => 4,
                2.. => 2,
                _ => 1,
            };
            // SAFETY: the caller's promise.
            unsafe {
                let queries = queries.at.add(r * query_bytes);
                let out = out.add(r * SCORE_STRIDE + b * LANES);
                macro_rules! go {
                    ($M:expr, $N:literal) => {{
                        let panels: [*const u8; $N] = std::array::from_fn(|j| keys[b + j]);
                        multiply::<D, { $M }, $N>(
                            panels,
                            queries,
                            query_bytes,
                            steps,
                            out,
                            SCORE_STRIDE,
                        )
                    }};
                }
                match n {
                    4 => match m {
                        1 => go!(1, 4),
                        2 => go!(2, 4),
                        3 => go!(3, 4),
                        _ => go!(4, 4),
                    },
                    2 => with_rows!(m, D::MAX_ROWS, M => go!(M, 2)),
                    _ => with_rows!(m, D::MAX_ROWS, M => go!(M, 1)),
                }
            }
            b += n;
        }
        r += m;
    }
}

#[inline(always)]
unsafe fn values_by_dot<D: Dot, const LARGE: bool>(
    weights: Packed,
    values: &Values<'_>,
    out: *mut f32,
) {
    let Values {
        blocks,
        panels,
        steps,
        last_steps,
    } = *values;
    let (rows, weight_bytes, panel_bytes) = (weights.count, weights.bytes, steps * STEP_BYTES);
    let mut r = 0;
    while r < rows {
        let m = (rows - r).min(D::MAX_ROWS);
        let mut panel = 0;
        while panel < panels {
            let n = if LARGE && panels - panel >= 2 { 2 } else { 1 };
            // SAFETY: the caller's promise.
            unsafe {
                let weights = weights.at.add(r * weight_bytes);
                let out = out.add((r * panels + panel) * LANES);
                let mut segments = [std::ptr::null(); BLOCKS];
                for (segment, block) in segments.iter_mut().zip(blocks) {
                    *segment = block.add(panel * panel_bytes);
                }
                let segments = &segments[..blocks.len()];
                macro_rules! go {
                    ($N:literal) => {
                        with_rows!(m, D::MAX_ROWS, M => multiply_segments::<D, M, $N>(
                            segments, last_steps, panel_bytes, weights, weight_bytes, steps, out,
                            panels * LANES
                        ))
                    };
                }
                match n {
                    2 => go!(2),
                    _ => go!(1),
                }
            }
            panel += n;
        }
        r += m;
    }
}

/// With a kernel of at most 4 rows.
///
/// # Safety
/// All that `args` points to lies in memory, and the processor has the instructions. Here and
/// below.
#[inline(always)]
pub(crate) unsafe fn attend_small<D: Dot>(args: &AttendArgs<'_>) {
    // SAFETY: the caller's promise.
    unsafe { attend::<Few<D>>(args) }
}

/// With a kernel of [`MAX_ROWS`] rows.
#[inline(always)]
pub(crate) unsafe fn attend_large<D: Dot>(args: &AttendArgs<'_>) {
    // SAFETY: the caller's promise.
    unsafe { attend::<Many<D>>(args) }
}

/// With products of any kind.
#[inline(always)]
pub(crate) unsafe fn attend<P: Products>(args: &AttendArgs<'_>) {
    let (rows, dim) = (args.rows(), args.head_dim);
    debug_assert!(rows <= MAX_ROWS && dim <= MAX_HEAD && dim.is_multiple_of(LANES));
    let mut seen = [Seen::default(); MAX_ROWS];
    let (mut from, mut to) = (CHUNK, 0);
    for (r, seen) in seen[..rows].iter_mut().enumerate() {
        *seen = args.seen(r);
        if seen.from < seen.to {
            from = from.min(seen.from);
            to = to.max(seen.to);
        }
    }
    // SAFETY: the caller's promise: `out` has room for it.
    let out = unsafe { std::slice::from_raw_parts_mut(args.out, partial_len(rows, dim)) };
    if from >= to {
        out.fill(0.0);
        out[rows * dim..rows * (dim + 1)].fill(f32::NEG_INFINITY);
        return;
    }
    let (first, end) = (from / LANES, to.div_ceil(LANES));
    let block = |b: usize| args.blocks[args.chunk * BLOCKS + b] as usize * args.block_bytes;
    // SAFETY: the caller's promise: the scratch space is that long and nobody else's, and the
    // blocks lie in the cache.
    unsafe {
        let queries = args.scratch.cast::<u8>();
        let value_bytes = if P::ROWS_BF16 { 2 } else { 4 };
        for r in 0..rows {
            let (token, head) = (r / args.group, r % args.group);
            let query = args.queries.add(token * args.query_stride + head * dim);
            let query = std::slice::from_raw_parts(query, dim);
            store_row(query, queries.add(r * dim * value_bytes), P::ROWS_BF16);
        }
        let queries = Packed {
            at: queries,
            bytes: dim * value_bytes,
            count: rows,
        };
        let (mut keys, mut values) = ([std::ptr::null(); BLOCKS], [std::ptr::null(); BLOCKS]);
        for ((key, value), b) in keys.iter_mut().zip(&mut values).zip(first..end) {
            *key = args.keys.add(block(b));
            *value = args.values.add(block(b));
        }
        let scores = args.scratch.add(QUERIES + first * LANES);
        P::scores(queries, &keys[..end - first], dim / P::STEP_VALUES, scores);

        // Scores become weights.
        let (base, weight_bytes) = (first * LANES, SCORE_STRIDE * value_bytes);
        let weights = args.scratch.add(QUERIES + SCORES).cast::<u8>();
        let weights = weights.add(base * value_bytes);
        for (r, seen) in seen[..rows].iter().enumerate() {
            let scores = scores.add(r * SCORE_STRIDE);
            let row = std::slice::from_raw_parts_mut(scores, (end - first) * LANES);
            let seen = Seen {
                from: seen.from.saturating_sub(base).min(row.len()),
                to: seen.to.saturating_sub(base).min(row.len()),
            };
            let (greatest, sum) = weigh(row, seen, args);
            out[rows * dim + r] = greatest;
            out[rows * (dim + 1) + r] = sum;
            store_row(row, weights.add(r * weight_bytes), P::ROWS_BF16);
        }

        let weights = Packed {
            at: weights,
            bytes: weight_bytes,
            count: rows,
        };
        let values = Values {
            blocks: &values[..end - first],
            panels: dim / LANES,
            steps: LANES / P::STEP_VALUES,
            last_steps: (to - (end - 1) * LANES).div_ceil(P::STEP_VALUES),
        };
        P::values(weights, &values, args.out);
    }
}

/// Turns scores into weights, and what is not seen into 0. Returns the greatest score and the
/// sum of the weights.
#[inline(always)]
unsafe fn weigh(row: &mut [f32], seen: Seen, args: &AttendArgs<'_>) -> (f32, f32) {
    row[..seen.from].fill(0.0);
    row[seen.to..].fill(0.0);
    let row = &mut row[seen.from..seen.to];
    for score in row.iter_mut() {
        *score *= args.scale;
    }
    if args.softcap > 0.0 {
        // SAFETY: it has no conditions.
        unsafe { softcap(args.softcap, row) };
    }
    exponentials(row)
}

/// Writes values as they are or as bf16.
#[inline(always)]
unsafe fn store_row(values: &[f32], to: *mut u8, half: bool) {
    // SAFETY: the caller has room for it, aligned.
    unsafe {
        if half {
            let to = std::slice::from_raw_parts_mut(to.cast::<u16>(), values.len());
            for (to, value) in to.iter_mut().zip(values) {
                *to = bf16_bits(*value);
            }
        } else {
            let to = std::slice::from_raw_parts_mut(to.cast::<f32>(), values.len());
            to.copy_from_slice(values);
        }
    }
}
