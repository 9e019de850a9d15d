//! The threads of a learner, a phase at a time.
#![allow(unsafe_code)]

use std::io;

use crate::{
    buffer::{Buffer, Shared},
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
    pool: Pool,
    space: Vec<Buffer<f32>>,
}

/// Rows of one piece of a phase over rows.
const FEW_ROWS: usize = 16;

impl Crew {
    pub(super) fn new(ops: &Ops, pool: Pool) -> io::Result<Self> {
        let space = (0..pool.threads()).map(|_| Buffer::new(0));
        Ok(Self {
            ops: *ops,
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

/// Rows times panels of f32, all of which lie in memory.
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
