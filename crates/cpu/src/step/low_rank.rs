//! What adapters add to the products of the matrices.
//!
//! A phase before the matrices of an input multiplies it by the first factors of all adapters of
//! the batch. The second factors are multiplied while the matrices are: what they give is added to
//! each block of outputs before anything is done with it.

use super::state::Step;
use crate::{
    adapter::{Factors, Wide},
    format::RowKind,
    kernels::{LANES, MAX_TILE},
    model::Part,
    plan::{Piece, Run},
    pool::Team,
    product::{AHEAD_ONE, Aligned, BLOCK_COLUMNS, Out, Outputs, Rows, multiply_of, tiles},
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
        let changes = Changes {
            step: self,
            place: Place::all(layer, part),
        };
        if changes.is_empty() {
            return;
        }
        let mut buffer = Aligned([0.0; MAX_TILE]);
        team.each(self.runs.pieces.len(), |piece| {
            let Piece { run, from, end } = self.runs.pieces[piece];
            let run = &self.runs.list[run];
            let Some(factors) = changes.factors(run) else {
                return;
            };
            let weights = &factors.narrow;
            let multiply = multiply_of(self.ops, weights.format);
            let most = multiply.shape(end - from).rows;
            let width = (MAX_TILE / LANES / most).min(weights.panels);
            for row in (from..end).step_by(most) {
                let rest = (row + most).min(end);
                for panel in (0..weights.panels).step_by(width) {
                    let n = width.min(weights.panels - panel);
                    let (range, panels) = ((row, rest), (panel, n));
                    let out = Out {
                        at: buffer.0.as_mut_ptr(),
                        row: n * LANES,
                        panel: LANES,
                        begun: false,
                    };
                    // SAFETY: see `Step`; so many rows and panels are a tile.
                    unsafe { tiles(multiply, weights, rows, range, panels, AHEAD_ONE, out) };
                    let outputs = buffer.0.chunks_exact_mut(n * LANES);
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
}

/// What adapters change in the outputs of some matrices.
pub(super) struct Changes<'a> {
    pub(super) step: &'a Step<'a>,
    pub(super) place: Place,
}

/// The panels of a map that lie in a block of outputs.
struct Span {
    /// The first of them, and how many.
    panels: (usize, usize),
    /// Where they begin in a row of the block.
    column: usize,
}

impl Changes<'_> {
    /// Whether nothing is changed there.
    pub(super) fn is_empty(&self) -> bool {
        let mut runs = self.step.runs.list.iter();
        !runs.any(|run| self.factors(run).is_some())
    }

    /// The factors of the adapter of `run`, if it changes these outputs.
    fn factors(&self, run: &Run) -> Option<&Factors> {
        let Place { layer, part, .. } = self.place;
        self.step.adapters[run.adapter].factors(layer, part)
    }

    /// The runs that have tokens among `rows`.
    fn runs(&self, (from, end): (usize, usize)) -> impl Iterator<Item = &Run> {
        let runs = self.step.runs.list.iter();
        runs.filter(move |run| run.from < end && run.from + run.count > from)
    }

    /// Changes a block of outputs.
    pub(super) fn change(&self, outputs: &mut Outputs<'_>) {
        let end = outputs.row + outputs.values.len() / outputs.columns;
        self.rescale(outputs);
        for run in self.runs((outputs.row, end)) {
            for wide in self.factors(run).map_or(&[][..], |factors| &factors.wide) {
                self.add(run, wide, outputs);
            }
        }
    }

    /// Multiplies what the matrices have given by the gains of DoRA.
    fn rescale(&self, outputs: &mut Outputs<'_>) {
        let columns = outputs.columns;
        let wide = |run| self.factors(run).map_or(&[][..], |factors| &factors.wide);
        let end = outputs.row + outputs.values.len() / columns;
        let mut all = self.runs((outputs.row, end)).flat_map(wide);
        if all.all(|wide| wide.gains.is_none()) {
            return;
        }
        for (row, values) in (outputs.row..).zip(outputs.values.chunks_exact_mut(columns)) {
            let mut factors = [1.0; BLOCK_COLUMNS];
            for run in self.runs((row, row + 1)) {
                let scale = self.step.runs.scales[run.row + row - run.from];
                for wide in wide(run) {
                    let span = self.span(wide, (outputs.column / LANES, columns / LANES));
                    let (Some(gains), Some(span)) = (&wide.gains, span) else {
                        continue;
                    };
                    let (panel, n) = span.panels;
                    let gains = gains[panel * LANES..][..n * LANES].chunks_exact(LANES);
                    let factors = factors[span.column..].chunks_mut(wide.stride * LANES);
                    for (factors, gains) in factors.zip(gains) {
                        for (factor, gain) in factors.iter_mut().zip(gains) {
                            *factor += scale * gain;
                        }
                    }
                }
            }
            for (value, factor) in values.iter_mut().zip(factors) {
                *value *= factor;
            }
        }
    }

    /// What of `wide` lies in so many panels of the outputs, from this one on.
    fn span(&self, wide: &Wide, (first, n): (usize, usize)) -> Option<Span> {
        let begin = self.place.column / LANES + first;
        let until = |panel: usize| {
            let panel = panel.saturating_sub(wide.first);
            let panel = match wide.stride {
                1 => panel,
                stride => panel.div_ceil(stride),
            };
            panel.min(wide.weights.panels)
        };
        let (from, end) = (until(begin), until(begin + n));
        (from < end).then(|| Span {
            panels: (from, end - from),
            column: (wide.first + from * wide.stride - begin) * LANES,
        })
    }

    /// Adds what `wide` gives for the tokens of `run`.
    fn add(&self, run: &Run, wide: &Wide, outputs: &mut Outputs<'_>) {
        let (step, weights, columns) = (self.step, &wide.weights, outputs.columns);
        let Some(span) = self.span(wide, (outputs.column / LANES, columns / LANES)) else {
            return;
        };
        let multiply = multiply_of(step.ops, weights.format);
        let value_bytes = if multiply.rows == RowKind::Bf16 { 2 } else { 4 };
        let rows = step.at.low_rows.after(wide.from * value_bytes);
        let end = outputs.row + outputs.values.len() / columns;
        let (from, end) = (run.from.max(outputs.row), (run.from + run.count).min(end));
        let most = multiply.shape(end - from).rows;
        for first in (from..end).step_by(most) {
            let at = run.row + first - run.from;
            let range = (at, at + most.min(end - first));
            let out = Out {
                at: outputs.values[(first - outputs.row) * columns + span.column..].as_mut_ptr(),
                row: columns,
                panel: wide.stride * LANES,
                begun: true,
            };
            // SAFETY: see `Step`; the outputs have these rows and panels.
            unsafe { tiles(multiply, weights, &rows, range, span.panels, 0, out) };
        }
    }
}
