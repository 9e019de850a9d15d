//! Rows of activations.
#![allow(unsafe_code)]

use std::io;

use crate::{
    buffer::{Buffer, Shared},
    kernels::LANES,
};

/// Rows of numbers in 32 bits. A row has room for whole panels, and what lies behind its last column
/// is 0 or the product of panels that were filled up with 0.
#[derive(Debug)]
pub(super) struct Grid {
    data: Buffer<f32>,
    stride: usize,
}

/// Columns from some one on of the rows of a [`Grid`], for the threads of a phase.
///
/// # Safety
/// Of all that is read and written through it: a piece of a phase has rows or columns of its own, and
/// what a phase reads, no piece of it writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    data: Shared<f32>,
    pub(super) stride: usize,
}

/// Values from one row to the next: an odd number of cache lines, so that the rows of a tile lie in
/// different sets of the cache.
pub(super) fn stride(width: usize) -> usize {
    (width.div_ceil(LANES) | 1) * LANES
}

impl Grid {
    /// Rows of `width` columns; none yet.
    pub(super) fn new(width: usize) -> io::Result<Self> {
        Ok(Self {
            data: Buffer::new(0)?,
            stride: stride(width),
        })
    }

    /// Makes room for so many rows; what was in them is lost when they grow.
    pub(super) fn at_least(&mut self, rows: usize) -> io::Result<()> {
        self.data.at_least(rows * self.stride)
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.data) as u64
    }

    /// Bytes that it takes with room for so many rows.
    pub(super) fn bytes_with(&self, rows: usize) -> u64 {
        self.bytes().max(4 * rows as u64 * self.stride as u64)
    }

    /// All of it.
    pub(super) fn view(&mut self) -> View {
        View {
            data: Shared::new(&mut self.data),
            stride: self.stride,
        }
    }
}

impl View {
    /// Some numbers as rows that are `stride` apart.
    pub(super) fn of(data: &mut [f32], stride: usize) -> Self {
        Self {
            data: Shared::new(data),
            stride,
        }
    }

    /// The same without its first columns.
    pub(super) fn columns(self, from: usize) -> Self {
        Self {
            data: self.data.after(from),
            ..self
        }
    }

    /// The same without its first rows.
    pub(super) fn rows(self, from: usize) -> Self {
        Self {
            data: self.data.after(from * self.stride),
            ..self
        }
    }

    /// Address of a number.
    pub(super) fn at(self, row: usize, column: usize) -> *mut f32 {
        self.data.at(row * self.stride + column)
    }

    /// Columns of a row.
    ///
    /// # Safety
    /// See [`View`].
    pub(super) unsafe fn row<'a>(self, row: usize, from: usize, len: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.data.part(row * self.stride + from, len) }
    }

    /// Columns of a row, to be written.
    ///
    /// # Safety
    /// See [`View`].
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row_mut<'a>(self, row: usize, from: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.data.part_mut(row * self.stride + from, len) }
    }
}
