//! The threads of a learner, a phase at a time.
#![allow(unsafe_code)]

use std::io;

use super::grid::{View, stride};
use crate::{
    buffer::{Buffer, Shared},
    format::RowKind,
    kernels::{CACHE_LINE, LANES, Multiply, Ops, STEP_BYTES, Tile, fetch_to_read},
    pool::Pool,
};

/// Threads, what they compute with, and space for each of them.
///
/// # Safety
/// Of the calls into `ops`, in all phases: it is of kernels that this processor has ([`Ops::of`]), and
/// slices have the lengths that each call needs.
pub(super) struct Crew {
    pub(super) ops: Ops,
    /// Rows are rounded to bf16 before they meet weights of bf16.
    pub(super) rounds: bool,
    pool: Pool,
    space: Vec<Buffer<f32>>,
    /// Rounded rows of the product that is computed.
    rounded: Buffer<f32>,
}

/// Rows of one piece of a phase over rows.
const FEW_ROWS: usize = 16;

impl Crew {
    pub(super) fn new(ops: &Ops, rounds: bool, pool: Pool) -> io::Result<Self> {
        let space = (0..pool.threads()).map(|_| Buffer::new(0));
        Ok(Self {
            ops: *ops,
            rounds,
            rounded: Buffer::new(0)?,
            space: space.collect::<Result<_, _>>()?,
            pool,
        })
    }

    pub(super) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// A phase of `count` pieces, each with `len` values of space, which may hold anything.
    ///
    /// # Errors
    /// There is no memory for the space.
    pub(super) fn each(
        &mut self,
        count: usize,
        len: usize,
        work: impl Fn(usize, &mut [f32]) + Sync,
    ) -> io::Result<()> {
        for space in &mut self.space {
            space.at_least(len)?;
        }
        let spaces: Vec<_> = self.space.iter_mut().map(|s| Shared::new(s)).collect();
        let leave = self.ops.leave;
        self.pool.run(|team| {
            // SAFETY: each thread has one of its own.
            let space = unsafe { spaces[team.index].part_mut(0, len) };
            team.each(count, |piece| work(piece, space));
            leave();
        });
        Ok(())
    }

    /// A phase over rows.
    ///
    /// # Errors
    /// As for [`Self::each`].
    pub(super) fn each_row(
        &mut self,
        rows: usize,
        len: usize,
        work: impl Fn(usize, &mut [f32]) + Sync,
    ) -> io::Result<()> {
        self.each(rows.div_ceil(FEW_ROWS), len, |piece, space| {
            let from = piece * FEW_ROWS;
            for row in from..(from + FEW_ROWS).min(rows) {
                work(row, space);
            }
        })
    }
}

impl Crew {
    /// Whether products of bf16 take rows of bf16.
    pub(super) fn has_halves(&self) -> bool {
        self.ops.bf16.rows == RowKind::Bf16
    }

    /// The first `width` columns of `m` rows, rounded to bf16: as the set's product with weights of
    /// bf16 takes them, or in f32 where it takes no others. They stay until the next call.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn round(&mut self, rows: View, m: usize, width: usize) -> io::Result<View> {
        let (ops, half) = (self.ops, self.has_halves());
        let words = if half { width.div_ceil(2) } else { width };
        self.rounded.at_least(m * stride(words))?;
        let out = View::of(&mut self.rounded, stride(words));
        self.each_row(m, 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let values = rows.row(row, 0, width);
                if half {
                    let out = out.row_mut(row, 0, words).as_mut_ptr().cast::<u16>();
                    let out = std::slice::from_raw_parts_mut(out, 2 * words);
                    // The second of the last pair may belong to no input.
                    out[2 * words - 1] = 0;
                    (ops.to_bf16)(values, &mut out[..width]);
                } else {
                    (ops.learn.round)(values, out.row_mut(row, 0, width));
                }
            }
        })?;
        Ok(out)
    }
}

/// Rows times panels, all of which lie in memory. A value is a word of 32 bits: an f32, or where
/// `multiply` takes those two bf16.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) rows: *const f32,
    /// From one row to the next, in values.
    pub(super) row_stride: usize,
    pub(super) m: usize,
    /// `n` panels of 16 columns, each a step of 16 values for each of `depth` inputs.
    pub(super) panels: *const f32,
    /// From one panel to the next, in values.
    pub(super) panel_stride: usize,
    pub(super) n: usize,
    pub(super) depth: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Adds to what is there.
    pub(super) begun: bool,
}

impl Tiles {
    /// Multiplies. Every sum is one chain in the order of the inputs.
    ///
    /// # Safety
    /// All of it lies in memory, nobody else writes it, and the processor has the instructions.
    pub(super) unsafe fn multiply(&self, multiply: &Multiply) {
        let largest = multiply.largest();
        let mut panel = 0;
        while panel < self.n {
            let n = largest.panels.min(self.n - panel);
            let mut row = 0;
            while row < self.m {
                let m = largest.rows.min(self.m - row);
                self.fetch(row + m, largest.rows);
                let tile = Tile {
                    panels: self.panels.wrapping_add(panel * self.panel_stride).cast(),
                    panel_bytes: self.panel_stride * 4,
                    steps: self.depth,
                    scales: std::ptr::null(),
                    minima: std::ptr::null(),
                    panel_scales: 0,
                    rows: self.rows.wrapping_add(row * self.row_stride).cast(),
                    row_bytes: self.row_stride * 4,
                    ahead: 0,
                    m,
                    n,
                    out: self.out.wrapping_add(row * self.out_stride + panel * LANES),
                    out_stride: self.out_stride,
                    out_panel: LANES,
                    begun: self.begun,
                };
                // SAFETY: the caller's promise.
                unsafe { (multiply.tile)(&tile) };
                row += m;
            }
            panel += n;
        }
    }
}

impl Tiles {
    /// Asks for some rows, which the next tile reads.
    fn fetch(&self, from: usize, count: usize) {
        for row in from..(from + count).min(self.m) {
            let row = self.rows.wrapping_add(row * self.row_stride);
            for value in (0..self.depth).step_by(CACHE_LINE / 4) {
                fetch_to_read(row.wrapping_add(value).cast());
            }
        }
    }
}

const _: () = assert!(STEP_BYTES == LANES * 4);
