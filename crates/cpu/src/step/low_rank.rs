//! What adapters add to the products of the matrices.
//!
//! A phase before the matrices of an input multiplies it by the first factors of all adapters of
//! the batch. The second factors are multiplied while the matrices are: what they give is added to
//! each block of outputs before anything is done with it.

use super::state::Step;
use crate::{
    adapter::{Factors, Wide},
    format::RowKind,
    kernels::{CACHE_LINE, LANES, MAX_TILE, STEP_BYTES, fetch_to_read},
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
    /// Where the products with the first factors are, [`Runs::scales`] of them.
    pub(super) low: Rows,
}

impl Step<'_> {
    /// Multiplies `rows`, the input of these matrices, by the first factors of the adapters that
    /// change what becomes of it, and returns the place of the matrices. Where there are none,
    /// nothing happens.
    pub(super) fn narrow(
        &self,
        team: &Team<'_>,
        (layer, part): (usize, Part),
        rows: &Rows,
    ) -> Place {
        let mut place = Place {
            layer,
            part,
            column: 0,
            low: self.at.low_rows,
        };
        if (Changes { step: self, place }).is_empty() {
            return place;
        }
        if self.runs.each_alone() {
            // To wait for who does it takes as long as doing it.
            let before = team.index * self.runs.scales.len();
            place.low = place.low.after(before * place.low.stride);
            self.narrow_piece(place, &self.runs.pieces[0], rows);
        } else {
            team.each(self.runs.pieces.len(), |piece| {
                self.narrow_piece(place, &self.runs.pieces[piece], rows);
            });
            team.barrier();
        }
        place
    }

    /// Multiplies some rows by the first factors of their adapter.
    fn narrow_piece(&self, place: Place, piece: &Piece, rows: &Rows) {
        let Piece { run, from, end } = *piece;
        let run = &self.runs.list[run];
        let changes = Changes { step: self, place };
        let Some(factors) = changes.factors(run) else {
            return;
        };
        let mut buffer = Aligned([0.0; MAX_TILE]);
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
                    // SAFETY: see `Step`; a row has room for what all factors give.
                    unsafe { place.low.write_part(self.ops, to, panel * LANES, values) };
                }
            }
        }
    }
}

/// What adapters change in the outputs of some matrices.
pub(super) struct Changes<'a> {
    pub(super) step: &'a Step<'a>,
    pub(super) place: Place,
}

/// The panels of a map that lie in a block of outputs.
#[derive(Clone, Copy)]
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

    /// Second factors that change these rows and panels, with the runs that they are for.
    fn second(
        &self,
        rows: (usize, usize),
        panels: (usize, usize),
    ) -> impl Iterator<Item = (&Run, &Wide, Span)> {
        let runs = self.runs(rows).flat_map(|run| {
            let wide = self.factors(run).map_or(&[][..], |factors| &factors.wide);
            wide.iter().map(move |wide| (run, wide))
        });
        runs.filter_map(move |(run, wide)| Some((run, wide, self.span(wide, panels)?)))
    }

    /// Asks for what [`Self::change`] reads first, for these rows and panels.
    pub(super) fn fetch(&self, rows: (usize, usize), panels: (usize, usize)) {
        if let Some((_, wide, span)) = self.second(rows, panels).next() {
            wide.fetch(span);
        }
    }

    /// Changes a block of outputs.
    pub(super) fn change(&self, outputs: &mut Outputs<'_>) {
        let (rows, panels) = (outputs.rows(), outputs.panels());
        self.rescale(outputs);
        // The factors of many adapters are short pieces of memory, at whose beginnings the
        // processor does not look ahead.
        let mut all = self.second(rows, panels).peekable();
        while let Some((run, wide, span)) = all.next() {
            if let Some((_, wide, span)) = all.peek() {
                wide.fetch(*span);
            }
            self.add(run, wide, span, outputs);
        }
    }

    /// Multiplies what the matrices have given by the gains of DoRA.
    fn rescale(&self, outputs: &mut Outputs<'_>) {
        let (columns, panels) = (outputs.columns, outputs.panels());
        let mut all = self.second(outputs.rows(), panels);
        if all.all(|(_, wide, _)| wide.gains.is_none()) {
            return;
        }
        for (row, values) in (outputs.row..).zip(outputs.values.chunks_exact_mut(columns)) {
            let mut factors = [1.0; BLOCK_COLUMNS];
            for (run, wide, span) in self.second((row, row + 1), panels) {
                let Some(gains) = &wide.gains else {
                    continue;
                };
                let scale = self.step.runs.scales[run.row + row - run.from];
                let (panel, n) = span.panels;
                let gains = gains[panel * LANES..][..n * LANES].chunks_exact(LANES);
                let factors = factors[span.column..].chunks_mut(wide.stride * LANES);
                for (factors, gains) in factors.zip(gains) {
                    for (factor, gain) in factors.iter_mut().zip(gains) {
                        *factor += scale * gain;
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
    fn add(&self, run: &Run, wide: &Wide, span: Span, outputs: &mut Outputs<'_>) {
        let (step, weights, columns) = (self.step, &wide.weights, outputs.columns);
        let multiply = multiply_of(step.ops, weights.format);
        let value_bytes = if multiply.rows == RowKind::Bf16 { 2 } else { 4 };
        let rows = self.place.low.after(wide.from * value_bytes);
        let (from, end) = outputs.rows();
        let (from, end) = (from.max(run.from), end.min(run.from + run.count));
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

impl Wide {
    /// Asks for these panels.
    fn fetch(&self, span: Span) {
        let panel_bytes = self.weights.steps * STEP_BYTES;
        let (panel, n) = span.panels;
        let bytes = panel * panel_bytes..(panel + n) * panel_bytes;
        let lines = self.weights.data[bytes].chunks(CACHE_LINE);
        lines.for_each(|line| fetch_to_read(line.as_ptr()));
    }
}
