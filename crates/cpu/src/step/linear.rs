//! Phases that multiply by the matrices.

use super::{
    low_rank::{Changes, Place},
    space::Space,
    state::Step,
};
use crate::{
    buffer::Shared,
    kernels::{AddArgs, LANES},
    model::Linear,
    pool::Team,
    product::{Destination, Outputs, Product, Rows, product, product_by_blocks},
};

impl Step<'_> {
    /// `to[.., place.column..] = linear(rows)`, where `to` is `[tokens, width]`.
    pub(super) fn store(
        &self,
        team: &Team<'_>,
        (linear, place): (&Linear, Place),
        rows: &Rows,
        (to, width): (Shared<f32>, usize),
        space: &mut Space,
    ) {
        let column = place.column;
        let destination = Destination {
            at: to.at(column).cast(),
            row_bytes: 4 * width,
            panel_bytes: 4 * LANES,
        };
        let sink = |tile: Outputs<'_>| {
            let column = column + tile.column;
            let len = tile.columns.min(width - column);
            let bias = linear.bias.get(tile.column..tile.column + len);
            for (r, values) in tile.values.chunks_exact(tile.columns).enumerate() {
                // SAFETY: see `Step`; a tile has columns and rows of its own.
                unsafe {
                    let to = to.part_mut((tile.row + r) * width + column, len);
                    to.copy_from_slice(&values[..len]);
                    if let Some(bias) = bias {
                        (self.ops.add)(to, bias);
                    }
                }
            }
        };
        // SAFETY: see `Step`.
        unsafe { self.product(team, (linear, place), rows, (1, destination), space, sink) };
    }

    /// All rows by `linear`, with what adapters add there.
    ///
    /// # Safety
    /// See [`Step`].
    pub(super) unsafe fn product(
        &self,
        team: &Team<'_>,
        (linear, place): (&Linear, Place),
        rows: &Rows,
        (granule, destination): (usize, Destination),
        space: &mut Space,
        mut sink: impl FnMut(Outputs<'_>),
    ) {
        let all = Product {
            weights: &linear.weights,
            rows,
            m: self.tokens,
            granule,
            destination,
        };
        let changes = Changes { step: self, place };
        if changes.is_empty() {
            // SAFETY: the caller's promise.
            return unsafe { product(team, self.ops, &all, sink) };
        }
        let begin = |rows, panels| changes.fetch(rows, panels);
        let sink = |mut outputs: Outputs<'_>| {
            changes.change(&mut outputs);
            sink(outputs);
        };
        // SAFETY: the caller's promise.
        unsafe { product_by_blocks(team, self.ops, &all, space.outputs, begin, sink) };
    }

    /// `x += linear(rows)`, or `x += norm(linear(rows))`, and meets the barrier.
    pub(super) fn part_out(
        &self,
        team: &Team<'_>,
        (linear, place): (&Linear, Place),
        rows: &Rows,
        norm: Option<&[f32]>,
        space: &mut Space,
    ) {
        let width = self.model.config.hidden_size;
        let Some(norm) = norm else {
            let destination = Destination {
                at: self.at.x.at(0).cast(),
                row_bytes: 4 * width,
                panel_bytes: 4 * LANES,
            };
            let sink = |tile: Outputs<'_>| {
                let len = tile.columns.min(width - tile.column);
                let bias = linear.bias.get(tile.column..tile.column + len);
                let args = AddArgs {
                    values: tile.values,
                    columns: tile.columns,
                    bias: bias.unwrap_or_default(),
                    to: self.at.x.at(tile.row * width + tile.column),
                    stride: width,
                    len,
                };
                // SAFETY: see `Step`.
                unsafe { (self.ops.add_rows)(&args) };
            };
            // SAFETY: see `Step`.
            unsafe { self.product(team, (linear, place), rows, (1, destination), space, sink) };
            team.barrier();
            return;
        };
        self.store(team, (linear, place), rows, (self.at.y, width), space);
        team.barrier();
        self.each_token(team, |t| {
            // SAFETY: see `Step`.
            unsafe {
                let y = Self::row(self.at.y, t, width);
                self.normalize(y, norm, &mut space.row[..width]);
                (self.ops.add)(Self::row(self.at.x, t, width), &space.row[..width]);
            }
        });
        team.barrier();
    }
}
