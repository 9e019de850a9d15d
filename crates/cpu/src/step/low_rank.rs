//! What adapters add to the products of the matrices.
//!
//! A phase before the matrices of an input multiplies it by the first factors of all adapters of
//! the batch. The second factors are multiplied while the matrices are: what they give is added to
//! each tile before anything is done with it.

use super::state::Step;
use crate::{
    adapter::Wide,
    format::RowKind,
    kernels::{LANES, MAX_TILE},
    model::Part,
    plan::Piece,
    pool::Team,
    product::{AHEAD_ONE, Aligned, Outputs, Rows, multiply_of, tiles},
};

/// Matrices that are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Index of the layer.
    pub(super) layer: usize,
    pub(super) part: Part,
    /// The first of their columns in the output of the part.
    pub(super) column: usize,
}

impl Place {
    /// All matrices of a part.
    pub(super) fn all(layer: usize, part: Part) -> Self {
        Self {
            layer,
            part,
            column: 0,
        }
    }
}

impl Step<'_> {
    /// Multiplies `rows`, an input of a layer, by the first factors of the adapters that change
    /// what becomes of it, and meets the barrier. Where there are none, nothing happens.
    pub(super) fn narrow(&self, team: &Team<'_>, layer: usize, part: Part, rows: &Rows) {
        let factors = |run: usize| {
            let adapter = self.adapters[self.runs.list[run].adapter];
            adapter.factors(layer, part)
        };
        if !(0..self.runs.list.len()).any(|run| factors(run).is_some()) {
            return;
        }
        let mut buffer = Aligned([0.0; MAX_TILE]);
        team.each(self.runs.pieces.len(), |piece| {
            let Piece { run, from, end } = self.runs.pieces[piece];
            let Some(factors) = factors(run) else {
                return;
            };
            let (run, weights) = (&self.runs.list[run], &factors.narrow);
            let multiply = multiply_of(self.ops, weights.format);
            let most = multiply.shape(end - from).rows;
            let width = (MAX_TILE / LANES / most).min(weights.panels);
            for row in (from..end).step_by(most) {
                let rest = (row + most).min(end);
                for panel in (0..weights.panels).step_by(width) {
                    let n = width.min(weights.panels - panel);
                    let (range, panels) = ((row, rest), (panel, n));
                    let buffer = &mut buffer.0;
                    // SAFETY: see `Step`; so many rows and panels are a tile.
                    unsafe { tiles(multiply, weights, rows, range, panels, AHEAD_ONE, buffer) };
                    let outputs = buffer.chunks_exact_mut(n * LANES);
                    for (token, values) in (row..rest).zip(outputs) {
                        let to = run.row + token - run.from;
                        let scale = self.runs.scales[to];
                        for value in &mut *values {
                            *value *= scale;
                        }
                        let rows = &self.at.low_rows;
                        // SAFETY: see `Step`; a row has room for what all factors give.
                        unsafe { rows.write_part(self.ops, to, panel * LANES, values) };
                    }
                }
            }
        });
        team.barrier();
    }

    /// Adds to a tile of the outputs of `place` what adapters give there.
    pub(super) fn widen(&self, place: Place, tile: &mut Outputs<'_>, buffer: &mut Aligned) {
        let end = tile.row + tile.values.len() / tile.columns;
        for run in &self.runs.list {
            let (from, to) = (run.from.max(tile.row), (run.from + run.count).min(end));
            if from >= to {
                continue;
            }
            let adapter = self.adapters[run.adapter];
            let Some(factors) = adapter.factors(place.layer, place.part) else {
                continue;
            };
            for wide in &factors.wide {
                let row = run.row + from - run.from;
                self.add(place, wide, (from, to), row, tile, buffer);
            }
        }
    }

    /// Adds what `wide` gives for tokens `from..to`, whose rows between the factors begin at `row`.
    fn add(
        &self,
        place: Place,
        wide: &Wide,
        (from, to): (usize, usize),
        row: usize,
        tile: &mut Outputs<'_>,
        buffer: &mut Aligned,
    ) {
        let weights = &wide.weights;
        let begin = (place.column + tile.column) / LANES;
        let behind = begin + tile.columns / LANES;
        // Its panels that lie in the tile.
        let until = |panel: usize| panel.saturating_sub(wide.first).div_ceil(wide.stride);
        let (panel, n) = (until(begin), until(behind).min(weights.panels));
        let Some(n) = n.checked_sub(panel).filter(|n| *n > 0) else {
            return;
        };
        let multiply = multiply_of(self.ops, weights.format);
        let value_bytes = if multiply.rows == RowKind::Bf16 { 2 } else { 4 };
        let rows = self.at.low_rows.after(wide.from * value_bytes);
        let most = multiply.shape(to - from).rows;
        for first in (from..to).step_by(most) {
            let count = most.min(to - first);
            let at = row + first - from;
            // SAFETY: see `Step`; so many rows and panels are no more than the tile has.
            unsafe {
                let (range, panels) = ((at, at + count), (panel, n));
                tiles(
                    multiply,
                    weights,
                    &rows,
                    range,
                    panels,
                    AHEAD_ONE,
                    &mut buffer.0,
                );
            }
            for (r, values) in buffer.0.chunks_exact(n * LANES).take(count).enumerate() {
                let to = &mut tile.values[(first + r - tile.row) * tile.columns..][..tile.columns];
                let column = (wide.first + panel * wide.stride - begin) * LANES;
                if wide.stride == 1 {
                    // SAFETY: see `Step`.
                    unsafe { (self.ops.add)(&mut to[column..][..n * LANES], values) };
                    continue;
                }
                let each = to[column..].chunks_mut(wide.stride * LANES);
                for (to, values) in each.zip(values.chunks_exact(LANES)) {
                    // SAFETY: see `Step`.
                    unsafe { (self.ops.add)(&mut to[..LANES], values) };
                }
            }
        }
    }
}
