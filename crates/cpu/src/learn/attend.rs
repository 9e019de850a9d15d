//! Attention within segments, and the way back through it.
//!
//! A piece is one head of one segment. Its keys and values become panels once; then some queries at a
//! time are scored against all they see. On the way back the scores are computed again, so that of
//! attention nothing is kept but its inputs and outputs.
#![allow(unsafe_code)]

use std::io;

use hyprstream_models::DecoderConfig;

use super::{
    crew::{Crew, Tiles},
    grid::{View, stride},
    rows::Rows,
};
use crate::{
    kernels::{LANES, Ops, SoftmaxArgs},
    model::Columns,
};

/// Queries at a time: whole tiles of every kernel but for the last.
const QUERIES: usize = 48;

/// One layer's attention.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) config: &'a DecoderConfig,
    pub(super) columns: Columns,
    pub(super) window: Option<usize>,
    /// Queries and keys, normalised and turned, in the columns of `qkv`.
    pub(super) turned: View,
    /// For the values.
    pub(super) qkv: View,
}

/// One head of one segment.
struct Piece {
    first: usize,
    len: usize,
    head: usize,
    kv: usize,
}

/// Space of a thread: parts of one buffer.
struct Space<'a>(&'a mut [f32]);

impl<'a> Space<'a> {
    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let space = std::mem::take(&mut self.0);
        let (part, rest) = space.split_at_mut(len.next_multiple_of(LANES));
        self.0 = rest;
        &mut part[..len]
    }
}

/// Some queries and the keys that any of them sees.
struct Block {
    from: usize,
    count: usize,
    /// First key, a multiple of 16.
    low: usize,
    /// Keys from there on.
    keys: usize,
    window: usize,
}

impl Block {
    fn seen(&self, query: usize) -> (usize, usize) {
        let position = self.from + query;
        let from = (position + 1).saturating_sub(self.window).max(self.low);
        (from - self.low, position + 1 - self.low)
    }

    fn panels(&self) -> usize {
        self.keys.div_ceil(LANES)
    }
}

impl Attention<'_> {
    fn blocks(&self, len: usize) -> impl Iterator<Item = Block> + use<> {
        let window = self.window.unwrap_or(usize::MAX);
        (0..len).step_by(QUERIES).map(move |from| {
            let count = QUERIES.min(len - from);
            let low = (from + 1).saturating_sub(window) / LANES * LANES;
            Block {
                from,
                count,
                low,
                keys: from + count - low,
                window,
            }
        })
    }

    fn piece(&self, rows: &Rows, piece: usize) -> Piece {
        let heads = self.config.num_heads;
        let (first, len) = rows.segments[piece / heads];
        let head = piece % heads;
        Piece {
            first,
            len,
            head,
            kv: head / (heads / self.config.num_kv_heads),
        }
    }

    fn query(&self, piece: &Piece) -> View {
        let dim = self.config.head_dim;
        self.turned.rows(piece.first).columns(piece.head * dim)
    }

    fn key(&self, piece: &Piece) -> View {
        let column = self.columns.key + piece.kv * self.config.head_dim;
        self.turned.rows(piece.first).columns(column)
    }

    fn value(&self, piece: &Piece) -> View {
        let column = self.columns.value + piece.kv * self.config.head_dim;
        self.qkv.rows(piece.first).columns(column)
    }

    /// What each head takes from the values, to `out`: `[tokens, heads * head_dim]`.
    ///
    /// # Errors
    /// There is no memory for the threads' space.
    pub(super) fn forwards(&self, crew: &mut Crew, rows: &Rows, out: View) -> io::Result<()> {
        let (dim, ops) = (self.config.head_dim, crew.ops);
        let width = dim.next_multiple_of(LANES);
        let len = rows.longest.next_multiple_of(LANES);
        let space = (dim + width) * len + QUERIES * (2 * stride(len) + width + LANES);
        let pieces = rows.segments.len() * self.config.num_heads;
        crew.each(pieces, space, |piece, space| {
            let piece = self.piece(rows, piece);
            let mut space = Space(space);
            let len = piece.len.next_multiple_of(LANES);
            let keys = space.take(dim * len);
            let values = space.take(width * piece.len);
            let scores = space.take(QUERIES * stride(len));
            let slopes = space.take(QUERIES * stride(len));
            let taken = space.take(QUERIES * width);
            // SAFETY: a piece has a head of a segment; see `View` and `Crew`.
            unsafe {
                across(self.key(&piece), piece.len, dim, keys);
                along(self.value(&piece), piece.len, dim, values);
                for block in self.blocks(piece.len) {
                    let scores = View::of(scores, stride(len));
                    let slopes = View::of(slopes, stride(len));
                    self.weigh(&ops, &block, self.query(&piece), keys, (scores, slopes));
                    let tiles = Tiles {
                        rows: scores.at(0, 0),
                        row_stride: scores.stride,
                        m: block.count,
                        panels: values[block.low * LANES..].as_ptr(),
                        panel_stride: piece.len * LANES,
                        n: width / LANES,
                        depth: block.keys,
                        out: taken.as_mut_ptr(),
                        out_stride: width,
                        begun: false,
                    };
                    tiles.multiply(&ops.f32);
                    for (q, taken) in taken.chunks_exact(width).take(block.count).enumerate() {
                        let row = piece.first + block.from + q;
                        out.row_mut(row, piece.head * dim, dim)
                            .copy_from_slice(&taken[..dim]);
                    }
                }
            }
        })
    }

    /// The weights of the queries of a block, and the slopes of a cap.
    ///
    /// # Safety
    /// As for [`View`]; the processor has the instructions.
    unsafe fn weigh(
        &self,
        ops: &Ops,
        block: &Block,
        query: View,
        keys: &[f32],
        (scores, slopes): (View, View),
    ) {
        let dim = self.config.head_dim;
        // SAFETY: the caller's promise.
        unsafe {
            let tiles = Tiles {
                rows: query.at(block.from, 0),
                row_stride: query.stride,
                m: block.count,
                panels: keys[block.low * dim..].as_ptr(),
                panel_stride: dim * LANES,
                n: block.panels(),
                depth: dim,
                out: scores.at(0, 0),
                out_stride: scores.stride,
                begun: false,
            };
            tiles.multiply(&ops.f32);
            for q in 0..block.count {
                let args = SoftmaxArgs {
                    scale: self.config.attention_scale as f32,
                    softcap: self.config.attention_softcap.unwrap_or(0.0) as f32,
                    seen: block.seen(q),
                };
                let len = block.panels() * LANES;
                let row = scores.row_mut(q, 0, len);
                (ops.learn.softmax)(&args, row, slopes.row_mut(q, 0, len));
            }
        }
    }

    /// Takes the derivative `d_out` by what the heads took. That by the turned queries goes to
    /// `d_query`, `[tokens, heads * head_dim]`; those by the turned keys and by the values to `d_pairs`,
    /// for each query head its own: `[tokens, heads, 2, head_dim]`.
    ///
    /// # Errors
    /// As for [`Self::forwards`].
    pub(super) fn backwards(
        &self,
        crew: &mut Crew,
        rows: &Rows,
        d_out: View,
        (d_query, d_pairs): (View, View),
    ) -> io::Result<()> {
        let (dim, ops) = (self.config.head_dim, crew.ops);
        let width = dim.next_multiple_of(LANES);
        let capped = self.config.attention_softcap.is_some();
        let len = rows.longest.next_multiple_of(LANES);
        let space = (2 * dim + width) * len
            + 2 * dim * stride(len)
            + QUERIES * (3 * stride(len) + len + width)
            + 2 * dim * stride(QUERIES)
            + 10 * LANES;
        let pieces = rows.segments.len() * self.config.num_heads;
        crew.each(pieces, space, |piece, space| {
            let piece = self.piece(rows, piece);
            let mut space = Space(space);
            let len = piece.len.next_multiple_of(LANES);
            let keys = space.take(dim * len);
            let values = space.take(dim * len);
            let keys_along = space.take(width * piece.len);
            let d_keys = space.take(dim * stride(len));
            let d_values = space.take(dim * stride(len));
            let weights = space.take(QUERIES * stride(len));
            let slopes = space.take(QUERIES * stride(len));
            let d_weights = space.take(QUERIES * stride(len));
            let panels = space.take(QUERIES * len);
            let d_taken = space.take(QUERIES * width);
            let query_columns = space.take(dim * stride(QUERIES));
            let out_columns = space.take(dim * stride(QUERIES));
            d_keys.fill(0.0);
            d_values.fill(0.0);
            // SAFETY: a piece has a head of a segment; see `View` and `Crew`.
            unsafe {
                let query = self.query(&piece);
                let d_out = d_out.rows(piece.first).columns(piece.head * dim);
                across(self.key(&piece), piece.len, dim, keys);
                across(self.value(&piece), piece.len, dim, values);
                along(self.key(&piece), piece.len, dim, keys_along);
                for block in self.blocks(piece.len) {
                    let weights = View::of(weights, stride(len));
                    let slopes = View::of(slopes, stride(len));
                    let d_weights = View::of(d_weights, stride(len));
                    self.weigh(&ops, &block, query, keys, (weights, slopes));
                    let tiles = Tiles {
                        rows: d_out.at(block.from, 0),
                        row_stride: d_out.stride,
                        m: block.count,
                        panels: values[block.low * dim..].as_ptr(),
                        panel_stride: dim * LANES,
                        n: block.panels(),
                        depth: dim,
                        out: d_weights.at(0, 0),
                        out_stride: d_weights.stride,
                        begun: false,
                    };
                    tiles.multiply(&ops.f32);
                    // The values get what their weights took.
                    columns(d_out.rows(block.from), block.count, dim, out_columns);
                    let gather =
                        |weights: View, columns: &[f32], panels: &mut [f32], sums: &mut [f32]| {
                            for p in 0..block.panels() {
                                let panel = panels[p * block.count * LANES..].as_mut_ptr();
                                let from = weights.at(0, p * LANES);
                                (ops.learn.copy_panel)(from, weights.stride, block.count, panel);
                            }
                            let tiles = Tiles {
                                rows: columns.as_ptr(),
                                row_stride: stride(QUERIES),
                                m: dim,
                                panels: panels.as_ptr(),
                                panel_stride: block.count * LANES,
                                n: block.panels(),
                                depth: block.count,
                                out: sums[block.low..].as_mut_ptr(),
                                out_stride: stride(len),
                                begun: true,
                            };
                            tiles.multiply(&ops.f32);
                        };
                    gather(weights, out_columns, panels, d_values);
                    for q in 0..block.count {
                        let len = block.panels() * LANES;
                        let scale = self.config.attention_scale as f32;
                        let row = weights.row(q, 0, len);
                        let d = d_weights.row_mut(q, 0, len);
                        let (from, to) = block.seen(q);
                        // What is not seen has no weight, and may have any score.
                        d[..from].fill(0.0);
                        d[to..].fill(0.0);
                        let slopes = if capped {
                            slopes.row(q, from, to - from)
                        } else {
                            &[]
                        };
                        (ops.learn.softmax_back)(scale, &row[from..to], slopes, &mut d[from..to]);
                    }
                    let tiles = Tiles {
                        rows: d_weights.at(0, 0),
                        row_stride: d_weights.stride,
                        m: block.count,
                        panels: keys_along[block.low * LANES..].as_ptr(),
                        panel_stride: piece.len * LANES,
                        n: width / LANES,
                        depth: block.keys,
                        out: d_taken.as_mut_ptr(),
                        out_stride: width,
                        begun: false,
                    };
                    tiles.multiply(&ops.f32);
                    for (q, d) in d_taken.chunks_exact(width).take(block.count).enumerate() {
                        let row = piece.first + block.from + q;
                        d_query
                            .row_mut(row, piece.head * dim, dim)
                            .copy_from_slice(&d[..dim]);
                    }
                    columns(query.rows(block.from), block.count, dim, query_columns);
                    gather(d_weights, query_columns, panels, d_keys);
                }
                for key in 0..piece.len {
                    let at = piece.head * 2 * dim;
                    let to = d_pairs.row_mut(piece.first + key, at, 2 * dim);
                    for i in 0..dim {
                        to[i] = d_keys[i * stride(len) + key];
                        to[dim + i] = d_values[i * stride(len) + key];
                    }
                }
            }
        })
    }
}

/// Panels of 16 rows, a step for each column: what is multiplied by columns. Rows that are missing
/// are 0.
///
/// # Safety
/// As for [`View`].
unsafe fn across(rows: View, len: usize, dim: usize, out: &mut [f32]) {
    for (p, panel) in out.chunks_exact_mut(dim * LANES).enumerate() {
        for lane in 0..LANES {
            let r = p * LANES + lane;
            if r < len {
                // SAFETY: the caller's promise.
                let row = unsafe { rows.row(r, 0, dim) };
                for (step, value) in panel.chunks_exact_mut(LANES).zip(row) {
                    step[lane] = *value;
                }
            } else {
                for step in panel.chunks_exact_mut(LANES) {
                    step[lane] = 0.0;
                }
            }
        }
    }
}

/// Panels of 16 columns, a step for each row. Columns that are missing are 0.
///
/// # Safety
/// As for [`View`].
unsafe fn along(rows: View, len: usize, dim: usize, out: &mut [f32]) {
    for r in 0..len {
        // SAFETY: the caller's promise.
        let row = unsafe { rows.row(r, 0, dim) };
        for (panel, values) in row.chunks(LANES).enumerate() {
            let step = &mut out[(panel * len + r) * LANES..][..LANES];
            step[..values.len()].copy_from_slice(values);
            step[values.len()..].fill(0.0);
        }
    }
}

/// The columns of `count` rows, one after the other.
///
/// # Safety
/// As for [`View`].
unsafe fn columns(rows: View, count: usize, dim: usize, out: &mut [f32]) {
    for r in 0..count {
        // SAFETY: the caller's promise.
        let row = unsafe { rows.row(r, 0, dim) };
        for (column, value) in out.chunks_exact_mut(stride(QUERIES)).zip(row) {
            column[r] = *value;
        }
    }
}
