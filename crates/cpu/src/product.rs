//! Rows of activations times a packed matrix, by all threads.
#![allow(unsafe_code)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "rows begin at cache lines, and offsets are whole values"
)]

use crate::{
    buffer::Shared,
    format::{Format, GROUP, RowKind, bf16_value},
    kernels::{CACHE_LINE, LANES, MAX_TILE, Multiply, Ops, STEP_BYTES, Tile, fetch_to_write},
    pool::Team,
    weights::Weights,
};

/// Rows of activations, in the form that a multiplication takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) kind: RowKind,
    pub(crate) data: Shared<u8>,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
}

impl Rows {
    /// Writes row `row`.
    ///
    /// # Safety
    /// Nobody else uses this row meanwhile; the processor has the instructions of `ops`.
    pub(crate) unsafe fn write(&self, ops: &Ops, row: usize, values: &[f32]) {
        // SAFETY: the caller's promise; a row has room for `values` (`RowKind::stride`), and it
        // begins at a cache line.
        unsafe {
            if self.kind == RowKind::Q8 {
                (ops.quantize)(values, self.data.at(row * self.stride));
            } else {
                self.write_part(ops, row, 0, values);
            }
        }
    }

    /// Writes values of row `row` from `from` on. Not for [`RowKind::Q8`].
    ///
    /// # Safety
    /// As for [`Self::write`].
    pub(crate) unsafe fn write_part(&self, ops: &Ops, row: usize, from: usize, values: &[f32]) {
        let to = self.data.at(row * self.stride);
        // SAFETY: as above.
        unsafe {
            match self.kind {
                RowKind::F32 => {
                    let to = to.cast::<f32>().add(from);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
                }
                RowKind::Bf16 => {
                    let to = to.cast::<u16>().add(from);
                    let to = std::slice::from_raw_parts_mut(to, values.len());
                    (ops.to_bf16)(values, to);
                }
                RowKind::Q8 => unreachable!("groups are quantised whole"),
            }
        }
    }
}

impl Rows {
    /// The same rows without their first values, `bytes` of them.
    pub(crate) fn after(&self, bytes: usize) -> Self {
        Self {
            data: self.data.after(bytes),
            ..*self
        }
    }

    /// Value `at` of row `row`. Not for [`RowKind::Q8`].
    ///
    /// # Safety
    /// It has been written, and nobody writes it meanwhile.
    pub(crate) unsafe fn value(&self, row: usize, at: usize) -> f32 {
        let row = self.data.at(row * self.stride);
        // SAFETY: the caller's promise.
        unsafe {
            match self.kind {
                RowKind::F32 => *row.cast::<f32>().add(at),
                RowKind::Bf16 => bf16_value(*row.cast::<u16>().add(at)),
                RowKind::Q8 => unreachable!("groups are quantised whole"),
            }
        }
    }
}

/// How the multiplications by `format` are done.
pub(crate) fn multiply_of(ops: &Ops, format: Format) -> &Multiply {
    match format {
        Format::F32 => &ops.f32,
        Format::Bf16 => &ops.bf16,
        Format::Int8 => &ops.int8,
        Format::Int4 => &ops.int4,
    }
}

/// Most rows of one piece of work: what stays in the second-level cache while panels go by.
const BLOCK_ROWS: usize = 256;
/// Panels of one piece of work when there are many.
const BLOCK_PANELS: usize = 8;

/// Outputs of a multiplication: some rows of `n * 16` columns.
pub(crate) struct Outputs<'a> {
    /// First row.
    pub(crate) row: usize,
    /// First column.
    pub(crate) column: usize,
    /// Number of columns; the last panel may have some more than the matrix.
    pub(crate) columns: usize,
    /// `[rows, columns]`.
    pub(crate) values: &'a mut [f32],
}

impl Outputs<'_> {
    /// The first row, and the one behind the last.
    pub(crate) fn rows(&self) -> (usize, usize) {
        (self.row, self.row + self.values.len() / self.columns)
    }

    /// The first panel, and how many.
    pub(crate) fn panels(&self) -> (usize, usize) {
        (self.column / LANES, self.columns / LANES)
    }
}

/// Where the outputs will go: it is brought near while they are computed. Rows that another
/// processor wrote last come from its cache, which takes longer than adding to them.
#[derive(Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) at: *const u8,
    /// From one row to the next.
    pub(crate) row_bytes: usize,
    /// What 16 columns become.
    pub(crate) panel_bytes: usize,
}

impl Destination {
    /// Asks for rows `from..end` and `n` panels from `panel` on.
    fn fetch(&self, (from, end): (usize, usize), (panel, n): (usize, usize)) {
        for row in from..end {
            let first = row * self.row_bytes + panel * self.panel_bytes;
            for byte in (0..n * self.panel_bytes).step_by(CACHE_LINE) {
                fetch_to_write(self.at.wrapping_add(first + byte));
            }
        }
    }
}

/// Bytes that a stream from memory is asked for ahead: the processor's own look-ahead ends at the
/// page. With several rows there is more time meanwhile, and more is on its way.
pub(crate) const AHEAD_ONE: usize = 2048;
const AHEAD: usize = 4096;

/// What is multiplied.
pub(crate) struct Product<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) rows: &'a Rows,
    /// How many of the rows, from the first on.
    pub(crate) m: usize,
    /// Outputs come in pieces of so many panels or a multiple of that.
    pub(crate) granule: usize,
    pub(crate) destination: Destination,
}

/// A piece of work: some rows by some panels, tile after tile.
struct Block<'a> {
    product: &'a Product<'a>,
    multiply: &'a Multiply,
    rows: (usize, usize),
    /// From the first on, up to but without the second.
    panels: (usize, usize),
    row_tiles: usize,
    /// Panels of a tile.
    width: usize,
    /// See [`Tile::ahead`].
    ahead: usize,
}

/// Multiplies rows by weights and hands the outputs to `sink`, tile by tile. This is one phase of
/// the team: no barrier is in it.
///
/// # Safety
/// The rows have been written, for as many inputs as the weights have, and nobody writes them
/// meanwhile. The processor has the instructions of `ops`.
pub(crate) unsafe fn product(
    team: &Team<'_>,
    ops: &Ops,
    product: &Product<'_>,
    mut sink: impl FnMut(Outputs<'_>),
) {
    let mut buffer = Aligned([0.0; MAX_TILE]);
    each_block(team, ops, product, |block| {
        block.each_tile(|(row, end), (panel, n)| {
            let out = Out {
                at: buffer.0.as_mut_ptr(),
                row: n * LANES,
                panel: LANES,
                begun: false,
            };
            // SAFETY: the caller's promise; the tile has room in the buffer.
            unsafe { block.multiply((row, end), (panel, n), out) };
            sink(Outputs {
                row,
                column: panel * LANES,
                columns: n * LANES,
                values: &mut buffer.0[..(end - row) * n * LANES],
            });
        });
    });
}

/// As [`product`], block by block. `begin` gets the rows of each, from the first on up to without the
/// second, and the panels, the first and how many. Then it is put together in `space`, which has
/// room for [`BLOCK_VALUES`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn product_by_blocks(
    team: &Team<'_>,
    ops: &Ops,
    product: &Product<'_>,
    space: &mut [f32],
    begin: impl Fn((usize, usize), (usize, usize)),
    mut sink: impl FnMut(Outputs<'_>),
) {
    each_block(team, ops, product, |block| {
        let ((first_row, end_row), (first, end)) = (block.rows, block.panels);
        begin((first_row, end_row), (first, end - first));
        let columns = (end - first) * LANES;
        let values = &mut space[..(end_row - first_row) * columns];
        block.each_tile(|(row, end), (panel, n)| {
            let at = (row - first_row) * columns + (panel - first) * LANES;
            let out = Out {
                at: values[at..].as_mut_ptr(),
                row: columns,
                panel: LANES,
                begun: false,
            };
            // SAFETY: the caller's promise; the tile lies within the values.
            unsafe { block.multiply((row, end), (panel, n), out) };
        });
        sink(Outputs {
            row: first_row,
            column: first * LANES,
            columns,
            values,
        });
    });
}

/// Most outputs of a block.
pub(crate) const BLOCK_VALUES: usize = BLOCK_ROWS * BLOCK_COLUMNS;
/// Most columns of a block.
pub(crate) const BLOCK_COLUMNS: usize = BLOCK_PANELS * LANES;

/// Shares the blocks of a product among the threads.
fn each_block(team: &Team<'_>, ops: &Ops, product: &Product<'_>, mut work: impl FnMut(&Block<'_>)) {
    let Product {
        weights,
        rows,
        m,
        granule,
        ..
    } = *product;
    let multiply = multiply_of(ops, weights.format);
    debug_assert_eq!(multiply.rows, rows.kind);
    // Whole tiles of the kernel.
    let row_blocks = m.div_ceil(BLOCK_ROWS - BLOCK_ROWS % multiply.largest().rows);
    let block_panels = block_panels(weights.panels, granule, row_blocks, team.size());
    let panel_blocks = weights.panels.div_ceil(block_panels);
    team.each(row_blocks * panel_blocks, |piece| {
        let (row_block, panel_block) = (piece / panel_blocks, piece % panel_blocks);
        let first_row = row_block * m / row_blocks;
        let end_row = (row_block + 1) * m / row_blocks;
        let first_panel = panel_block * block_panels;
        let most = multiply.shape(end_row - first_row).rows;
        let row_tiles = (end_row - first_row).div_ceil(most);
        let width = multiply
            .shape((end_row - first_row).div_ceil(row_tiles))
            .panels;
        let width = width.next_multiple_of(granule);
        work(&Block {
            product,
            multiply,
            rows: (first_row, end_row),
            panels: (
                first_panel,
                (first_panel + block_panels).min(weights.panels),
            ),
            row_tiles,
            width,
            // What comes from memory is asked for while the step before is multiplied: with one
            // tile a little further on, else the next panels, while these stay in the cache.
            ahead: match end_row - first_row {
                1 => AHEAD_ONE,
                _ if row_tiles == 1 => AHEAD,
                _ => width * weights.steps * STEP_BYTES,
            },
        });
    });
}

impl Block<'_> {
    /// Gives `work` the rows `from..end` and the panels, first and how many, of each tile.
    fn each_tile(&self, mut work: impl FnMut((usize, usize), (usize, usize))) {
        let ((first_row, end_row), (first_panel, end_panel)) = (self.rows, self.panels);
        let mut panel = first_panel;
        while panel < end_panel {
            let n = self.width.min(end_panel - panel);
            for tile in 0..self.row_tiles {
                // As even as can be.
                let row = first_row + tile * (end_row - first_row) / self.row_tiles;
                let end = first_row + (tile + 1) * (end_row - first_row) / self.row_tiles;
                work((row, end), (panel, n));
            }
            panel += n;
        }
    }

    /// Multiplies one tile.
    ///
    /// # Safety
    /// As for [`product`]; `out` has room for the tile.
    unsafe fn multiply(&self, (row, end): (usize, usize), panels: (usize, usize), out: Out) {
        let Product {
            weights,
            rows,
            destination,
            ..
        } = *self.product;
        destination.fetch((row, end), panels);
        // The first tile has the next panels fetched.
        let ahead = if row == self.rows.0 { self.ahead } else { 0 };
        // SAFETY: the caller's promise.
        unsafe { tiles(self.multiply, weights, rows, (row, end), panels, ahead, out) };
    }
}

/// The outputs of a tile.
#[repr(align(64))]
pub(crate) struct Aligned(pub(crate) [f32; MAX_TILE]);

/// Where outputs go.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    /// Those of the first row and panel.
    pub(crate) at: *mut f32,
    /// From one row to the next, in values.
    pub(crate) row: usize,
    /// From one panel to the next, in values.
    pub(crate) panel: usize,
    /// There are outputs already, to be added to. Not for quantised weights.
    pub(crate) begun: bool,
}

/// Rows `from..end` times `n` panels, in as many tiles as the kernel needs.
///
/// # Safety
/// The rows have been written, for as many inputs as the weights have; there are no more of them
/// than the kernel's largest tile has, and `out` has room for them. The processor has the
/// instructions of `multiply`.
pub(crate) unsafe fn tiles(
    multiply: &Multiply,
    weights: &Weights,
    rows: &Rows,
    (from, end): (usize, usize),
    (panel, n): (usize, usize),
    ahead: usize,
    out: Out,
) {
    let shape = multiply.shape(end - from);
    let panel_scales = if weights.format.is_quantized() {
        weights.steps * weights.format.step_inputs() / GROUP * LANES
    } else {
        0
    };
    let mut done = 0;
    while done < n {
        let now = shape.panels.min(n - done);
        let at = panel + done;
        let tile = Tile {
            panels: weights
                .data
                .as_ptr()
                .wrapping_add(at * weights.steps * STEP_BYTES),
            panel_bytes: weights.steps * STEP_BYTES,
            steps: weights.steps,
            scales: weights.scales.as_ptr().wrapping_add(at * panel_scales),
            minima: weights.minima.as_ptr().wrapping_add(at * panel_scales),
            panel_scales,
            rows: rows.data.at(from * rows.stride),
            row_bytes: rows.stride,
            ahead,
            m: end - from,
            n: now,
            out: out.at.wrapping_add(done * out.panel),
            out_stride: out.row,
            out_panel: out.panel,
            begun: out.begun,
        };
        // SAFETY: the caller's promise; the tile lies within the weights and the outputs.
        unsafe { (multiply.tile)(&tile) };
        done += now;
    }
}

/// How many panels make a piece of work, so that all threads end at about the same time.
fn block_panels(panels: usize, granule: usize, row_blocks: usize, threads: usize) -> usize {
    let time = |size: &usize| {
        let pieces = panels.div_ceil(*size) * row_blocks;
        // In half panels; beginning a piece costs about one.
        pieces.div_ceil(threads) * (2 * size + 1)
    };
    let sizes = (1..=BLOCK_PANELS.next_multiple_of(granule)).filter(|s| s.is_multiple_of(granule));
    sizes.rev().min_by_key(time).unwrap_or(granule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_even_whole_and_not_too_large() {
        for panels in 1..500 {
            for (granule, threads) in [(1, 1), (1, 2), (2, 2), (2, 3), (1, 16)] {
                let panels = panels * granule;
                let size = block_panels(panels, granule, 1, threads);
                assert!(
                    size.is_multiple_of(granule) && (1..=BLOCK_PANELS + granule).contains(&size)
                );
            }
        }
        // 576 outputs on two threads: 18 panels each.
        assert_eq!(block_panels(36, 1, 1, 2), 6);
    }
}
