//! Rows times a matrix, forwards and backwards, and what rows say of a small matrix together.
//!
//! Weights lie in panels of 16 outputs. A product with them reads a panel as it lies, and one with
//! their transpose turns what it needs of the panels, 16 inputs at a time, into panels of its own: it
//! is done once for hundreds of rows, so that a second packing would save next to nothing and cost the
//! model's memory again.
//!
//! What meets weights of 16 bits is rounded to 16 bits first, unless the learner was asked for exact
//! products; sums are in 32 bits. A set that multiplies bf16 takes both as they are. Others take both
//! in 32 bits, so that they differ from it by nothing but the rounding of sums.
#![allow(unsafe_code)]

#[cfg(test)]
mod tests;

use std::io;

use super::{
    crew::{Crew, Tiles},
    grid::View,
};
use crate::{
    format::Format,
    kernels::{LANES, Multiply, Ops, STEP_BYTES},
    weights::Weights,
};

/// Steps of one pass over rows and panels: a panel of so many stays in the first-level cache.
const DEPTH: usize = 256;
/// Most rows whose inputs of one pass stay in the second-level cache.
const NEAR_ROWS: usize = 120;
/// Rows of one piece of work. A piece fills its panels for itself.
const PIECE_ROWS: usize = 480;
/// Most panels of one piece of work.
const PIECE_PANELS: usize = 6;

/// What rows are multiplied by: panels of 16 columns.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Panels of f32 of so many inputs.
    Ready { panels: &'a [f32], depth: usize },
    /// Columns are outputs of the weights.
    Outputs(Matrix<'a>),
    /// Columns are inputs of the weights.
    Inputs(Matrix<'a>),
}

/// Packed weights.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) weights: &'a Weights,
    pub(super) inputs: usize,
    /// Panels of two maps by turns, which are columns one map after the other.
    pub(super) paired: bool,
}

impl Matrix<'_> {
    /// Which panel has the outputs `16 * column..`.
    pub(super) fn panel_of(&self, column: usize) -> usize {
        let half = self.weights.panels / 2;
        match (self.paired, column < half) {
            (false, _) => column,
            (true, true) => 2 * column,
            (true, false) => 2 * (column - half) + 1,
        }
    }

    fn panel(&self, column: usize) -> *const u8 {
        let at = self.panel_of(column) * self.weights.steps * STEP_BYTES;
        self.weights.data[at..].as_ptr()
    }
}

impl Source<'_> {
    fn depth(&self) -> usize {
        match self {
            Self::Ready { depth, .. } => *depth,
            Self::Outputs(matrix) => matrix.inputs,
            Self::Inputs(matrix) => matrix.weights.panels * LANES,
        }
    }

    /// Number of panels.
    fn columns(&self) -> usize {
        match self {
            Self::Ready { panels, depth } => panels.len() / (depth * LANES),
            Self::Outputs(matrix) => matrix.weights.panels,
            Self::Inputs(matrix) => matrix.inputs.div_ceil(LANES),
        }
    }

    /// Weights of 16 bits.
    fn is_half(&self) -> bool {
        match self {
            Self::Ready { .. } => false,
            Self::Outputs(matrix) | Self::Inputs(matrix) => matrix.weights.format == Format::Bf16,
        }
    }

    /// The inputs `from..to` of panel `column`, in bf16 if `half` and in f32 if not: where they lie, or
    /// written to `space`. `from` is a multiple of 16.
    ///
    /// # Safety
    /// The processor has the instructions of `ops`; there is room.
    unsafe fn panel(
        &self,
        ops: &Ops,
        column: usize,
        (from, to): (usize, usize),
        half: bool,
        space: *mut f32,
    ) -> *const f32 {
        // SAFETY: the caller's promise; what is read lies within the weights.
        unsafe {
            match self {
                Self::Ready { panels, depth } => panels[(column * depth + from) * LANES..].as_ptr(),
                Self::Outputs(matrix) => {
                    let panel = matrix.panel(column);
                    if half {
                        return panel.add(from / 2 * STEP_BYTES).cast();
                    }
                    if matrix.weights.format == Format::F32 {
                        return panel.add(from * STEP_BYTES).cast();
                    }
                    let steps = (to - from).div_ceil(2);
                    (ops.learn.widen)(panel.add(from / 2 * STEP_BYTES), steps, space);
                    space
                }
                Self::Inputs(matrix) => {
                    let bf16 = self.is_half();
                    let inputs = LANES.min(matrix.inputs - column * LANES);
                    let step = column * LANES / if bf16 { 2 } else { 1 };
                    for output in (from..to).step_by(LANES) {
                        let panel = matrix.panel(output / LANES).add(step * STEP_BYTES);
                        let at = (output - from) * LANES;
                        if half {
                            (ops.learn.turn_halves)(panel, inputs, space.add(at / 2));
                        } else {
                            (ops.learn.turn_panel)(panel, inputs, bf16, space.add(at));
                        }
                    }
                    space
                }
            }
        }
    }
}

/// A low-rank change of the columns of a product: `rows` are added to it, multiplied by panels.
#[derive(Clone, Copy)]
pub(super) struct Low<'a> {
    pub(super) rows: View,
    /// For each panel of columns which columns of `rows`, and where the panel begins in `panels`.
    pub(super) spans: &'a [Span],
    pub(super) panels: &'a [f32],
}

/// See [`Low`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: usize,
    /// 0 for no change.
    pub(super) depth: usize,
    pub(super) at: usize,
}

/// `out = rows source`, or `out += rows source`.
pub(super) struct Product<'a> {
    pub(super) rows: View,
    pub(super) m: usize,
    pub(super) source: Source<'a>,
    pub(super) low: Option<Low<'a>>,
    pub(super) out: View,
    pub(super) begun: bool,
}

impl Product<'_> {
    /// Computes it with all threads. What a row gives depends on no other.
    ///
    /// # Errors
    /// There is no memory for the threads' space, or for rounded rows.
    pub(super) fn run(&self, crew: &mut Crew) -> io::Result<()> {
        let (depth, columns) = (self.source.depth(), self.source.columns());
        let ops = crew.ops;
        let (mut rows, mut half) = (self.rows, false);
        if crew.rounds && self.source.is_half() {
            half = crew.has_halves();
            rows = crew.round(rows, self.m, depth)?;
        }
        let multiply = if half { ops.bf16 } else { ops.f32 };
        let tile_rows = multiply.largest().rows;
        let row_pieces = self.m.div_ceil(PIECE_ROWS);
        // A few pieces for each thread, so that all end at about the same time.
        let most = columns * row_pieces / (4 * crew.threads());
        let mut column_pieces = columns.div_ceil(most.clamp(1, PIECE_PANELS));
        while column_pieces < columns
            && !(row_pieces * column_pieces).is_multiple_of(crew.threads())
        {
            column_pieces += 1;
        }
        let width = columns.div_ceil(column_pieces.max(1));
        let word = if half { 2 } else { 1 };
        let passes = depth.div_ceil(DEPTH * word);
        let pass = depth.div_ceil(passes.max(1)).next_multiple_of(LANES);
        let work = Work {
            product: self,
            ops: &ops,
            multiply: &multiply,
            rows,
            word,
        };
        crew.each(
            row_pieces * column_pieces,
            width * pass / word * LANES,
            |piece, space| {
                let (row_piece, column_piece) = (piece / column_pieces, piece % column_pieces);
                // Whole tiles but for the last.
                let row = |piece: usize| {
                    let row = piece * self.m / row_pieces;
                    row.next_multiple_of(tile_rows).min(self.m)
                };
                let rows = (row(row_piece), row(row_piece + 1));
                let column = |piece: usize| piece * columns / column_pieces;
                let columns = (column(column_piece), column(column_piece + 1));
                // SAFETY: a piece has rows and columns of its own; see `View` and `Crew`.
                unsafe {
                    for from in (0..depth).step_by(pass) {
                        let inputs = (from, (from + pass).min(depth));
                        work.pass(rows, columns, inputs, space);
                    }
                    work.change(rows, columns);
                }
            },
        )
    }
}

/// What pieces of a product have in common.
struct Work<'a> {
    product: &'a Product<'a>,
    ops: &'a Ops,
    multiply: &'a Multiply,
    /// Rows in words of 32 bits: an f32, or two bf16.
    rows: View,
    /// Values of a word.
    word: usize,
}

impl Work<'_> {
    /// One pass of a piece.
    ///
    /// # Safety
    /// The rows and columns are this thread's.
    unsafe fn pass(
        &self,
        rows: (usize, usize),
        columns: (usize, usize),
        (from, to): (usize, usize),
        space: &mut [f32],
    ) {
        let Product { source, out, .. } = self.product;
        let mut panels = [std::ptr::null(); PIECE_PANELS];
        let len = (to - from).next_multiple_of(LANES) / self.word * LANES;
        let half = self.word == 2;
        for (column, panel) in (columns.0..columns.1).zip(&mut panels) {
            let space = space[(column - columns.0) * len..][..len].as_mut_ptr();
            // SAFETY: the caller's promise.
            *panel = unsafe { source.panel(self.ops, column, (from, to), half, space) };
        }
        let count = columns.1 - columns.0;
        let largest = self.multiply.largest();
        // Panels that follow one another at one distance can share a tile.
        let apart = |i: usize| (panels[i] as usize).wrapping_sub(panels[0] as usize);
        let even = (1..count).all(|i| apart(i) == i * apart(1));
        let (step, stride) = match count {
            1 => (1, 0),
            _ if largest.panels > 1 && even => (largest.panels, apart(1) / 4),
            _ => (1, 0),
        };
        let near_rows = NEAR_ROWS / largest.rows * largest.rows;
        for near in (rows.0..rows.1).step_by(near_rows) {
            let end = (near + near_rows).min(rows.1);
            for i in (0..count).step_by(step) {
                let tiles = Tiles {
                    rows: self.rows.at(near, from / self.word),
                    row_stride: self.rows.stride,
                    m: end - near,
                    panels: panels[i],
                    panel_stride: stride,
                    n: step.min(count - i),
                    depth: (to - from).div_ceil(self.word),
                    out: out.at(near, (columns.0 + i) * LANES),
                    out_stride: out.stride,
                    begun: self.product.begun || from > 0,
                };
                // SAFETY: the caller's promise.
                unsafe { tiles.multiply(self.multiply) };
            }
        }
    }

    /// Adds the low-rank change.
    ///
    /// # Safety
    /// As for [`Self::pass`].
    unsafe fn change(&self, rows: (usize, usize), columns: (usize, usize)) {
        let Product { low, out, .. } = self.product;
        let Some(low) = low else { return };
        for column in columns.0..columns.1 {
            let span = low.spans[column];
            if span.depth == 0 {
                continue;
            }
            let tiles = Tiles {
                rows: low.rows.at(rows.0, span.from),
                row_stride: low.rows.stride,
                m: rows.1 - rows.0,
                panels: low.panels[span.at..].as_ptr(),
                panel_stride: 0,
                n: 1,
                depth: span.depth,
                out: out.at(rows.0, column * LANES),
                out_stride: out.stride,
                begun: true,
            };
            // SAFETY: the caller's promise.
            unsafe { tiles.multiply(&self.ops.f32) };
        }
    }
}

/// `left^T right` over `m` rows, `[rows of left, columns of right]`: sums over all tokens, each one
/// chain in their order.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Transposed already: a row for each column of the result's rows, a value for each token.
    pub(super) left: View,
    pub(super) left_rows: usize,
    pub(super) right: View,
    pub(super) right_columns: usize,
    pub(super) m: usize,
}

impl Sums {
    /// Hands the sums to `sink`, 16 columns of `right` at a time: the first of them, and
    /// `[left_rows, 16]`.
    ///
    /// # Errors
    /// There is no memory for the threads' space.
    pub(super) fn run(
        &self,
        crew: &mut Crew,
        sink: impl Fn(usize, &[[f32; LANES]]) + Sync,
    ) -> io::Result<()> {
        let ops = crew.ops;
        let sums = self.left_rows * LANES;
        let columns = self.right_columns.div_ceil(LANES);
        crew.each(columns, sums + DEPTH * LANES, |column, space| {
            let (sums, panel) = space.split_at_mut(sums);
            for from in (0..self.m).step_by(DEPTH) {
                let count = DEPTH.min(self.m - from);
                // SAFETY: the columns lie within the rows' stride; see `View` and `Crew`.
                unsafe {
                    let right = self.right.at(from, column * LANES);
                    (ops.learn.copy_panel)(right, self.right.stride, count, panel.as_mut_ptr());
                    let tiles = Tiles {
                        rows: self.left.at(0, from),
                        row_stride: self.left.stride,
                        m: self.left_rows,
                        panels: panel.as_ptr(),
                        panel_stride: 0,
                        n: 1,
                        depth: count,
                        out: sums.as_mut_ptr(),
                        out_stride: LANES,
                        begun: from > 0,
                    };
                    tiles.multiply(&ops.f32);
                }
            }
            sink(column * LANES, sums.as_chunks::<LANES>().0);
        })
    }
}
