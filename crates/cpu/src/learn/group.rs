//! What an adapter changes in the maps of one input, and how its factors lie for the kernels.

use std::ops::Range;

use hyprstream_models::{
    DecoderConfig,
    adapter::{Linear, Site},
};
use hyprstream_training::Parameters;

use super::product::Span;
use crate::{
    kernels::LANES,
    model::{Columns, Part},
};

/// The changes of the maps of one input of a layer. Between their factors a token has `width` values:
/// those of one A after those of another, each beginning at a panel.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) inputs: usize,
    pub(super) narrow: Vec<Narrow>,
    pub(super) wide: Vec<Wide>,
    pub(super) width: usize,
    /// Where its values begin among those of the layer.
    pub(super) column: usize,
}

/// A first factor, `[rank, inputs]`.
#[derive(Clone, Debug)]
pub(super) struct Narrow {
    pub(super) a: Range<usize>,
    pub(super) rank: usize,
    /// Its first column of the group's values.
    pub(super) from: usize,
    /// The first of those that have it, which its dropout goes by.
    pub(super) site: Site,
}

/// A second factor, `[outputs, rank]`.
#[derive(Clone, Debug)]
pub(super) struct Wide {
    pub(super) b: Range<usize>,
    pub(super) rank: usize,
    pub(super) scaling: f32,
    /// As [`Narrow::from`] of its first factor.
    pub(super) from: usize,
    /// Its first column in the output of the maps.
    pub(super) first: usize,
    pub(super) outputs: usize,
}

/// The input that a map has.
fn part_of(linear: Linear) -> Part {
    match linear {
        Linear::Query | Linear::Key | Linear::Value => Part::Hidden,
        Linear::Output => Part::Attended,
        Linear::Gate | Linear::Up => Part::Gated,
        Linear::Down => Part::Inner,
    }
}

/// The groups of all layers, by [`Part`]. The parameters have been checked.
pub(super) fn groups(
    parameters: &Parameters,
    config: &DecoderConfig,
    columns: Columns,
) -> Vec<[Group; 4]> {
    let mut layers = vec![<[Group; 4]>::default(); config.num_layers()];
    for part in &parameters.parts {
        let Site::Layer(index, linear) = part.site else {
            continue;
        };
        let (outputs, inputs) = linear.size(config);
        let group = &mut layers[index][part_of(linear) as usize];
        group.inputs = inputs;
        let known = group.narrow.iter().find(|narrow| narrow.a == part.a);
        let from = known.map_or(group.width, |narrow| narrow.from);
        if known.is_none() {
            group.narrow.push(Narrow {
                a: part.a.clone(),
                rank: part.rank,
                from,
                site: part.site,
            });
            group.width += part.rank.next_multiple_of(LANES);
        }
        group.wide.push(Wide {
            b: part.b.clone(),
            rank: part.rank,
            scaling: part.scaling,
            from,
            first: match linear {
                Linear::Key => columns.key,
                Linear::Value => columns.value,
                Linear::Up => config.intermediate_size.next_multiple_of(LANES),
                Linear::Query | Linear::Output | Linear::Gate | Linear::Down => 0,
            },
            outputs,
        });
    }
    for groups in &mut layers {
        let mut column = 0;
        for group in groups {
            group.column = column;
            column += group.width;
        }
    }
    layers
}

/// Factors in panels, for the one way or the other. Memory is used again.
#[derive(Default)]
pub(super) struct Panels {
    /// Forwards the first factors, `[width / 16, inputs, 16]`; backwards `[inputs / 16, width, 16]`.
    pub(super) narrow: Vec<f32>,
    /// Forwards the second factors times their scaling, each panel of 16 outputs as `spans` say.
    /// Backwards those of each map, `[rank / 16, outputs, 16]`, one after the other.
    pub(super) wide: Vec<f32>,
    pub(super) spans: Vec<Span>,
}

impl Panels {
    /// For the way from inputs to outputs, of which there are `outputs` panels.
    pub(super) fn forwards(&mut self, group: &Group, values: &[f32], outputs: usize) {
        let inputs = group.inputs;
        self.narrow.clear();
        self.narrow.resize(group.width * inputs, 0.0);
        for narrow in &group.narrow {
            let rows = values[narrow.a.clone()].chunks_exact(inputs);
            for (r, row) in rows.enumerate() {
                let r = narrow.from + r;
                let panel = &mut self.narrow[r / LANES * inputs * LANES..];
                for (step, value) in panel.chunks_exact_mut(LANES).zip(row) {
                    step[r % LANES] = *value;
                }
            }
        }
        self.wide.clear();
        self.spans.clear();
        self.spans.resize(outputs, Span::default());
        for wide in &group.wide {
            let rows = values[wide.b.clone()].chunks_exact(wide.rank);
            let first = wide.first / LANES;
            let mut at = self.wide.len();
            self.wide
                .resize(at + wide.outputs.next_multiple_of(LANES) * wide.rank, 0.0);
            for (o, row) in rows.enumerate() {
                if o % LANES == 0 {
                    self.spans[first + o / LANES] = Span {
                        from: wide.from,
                        depth: wide.rank,
                        at,
                    };
                }
                let panel = &mut self.wide[at..at + wide.rank * LANES];
                for (step, value) in panel.chunks_exact_mut(LANES).zip(row) {
                    step[o % LANES] = value * wide.scaling;
                }
                if o % LANES == LANES - 1 {
                    at += wide.rank * LANES;
                }
            }
        }
    }

    /// For the way back.
    pub(super) fn backwards(&mut self, group: &Group, values: &[f32]) {
        let (inputs, width) = (group.inputs, group.width);
        let columns = inputs.div_ceil(LANES);
        self.narrow.clear();
        self.narrow.resize(columns * width * LANES, 0.0);
        for narrow in &group.narrow {
            let rows = values[narrow.a.clone()].chunks_exact(inputs);
            for (r, row) in rows.enumerate() {
                for (column, values) in row.chunks(LANES).enumerate() {
                    let at = (column * width + narrow.from + r) * LANES;
                    self.narrow[at..at + values.len()].copy_from_slice(values);
                }
            }
        }
        self.wide.clear();
        for wide in &group.wide {
            let at = self.wide.len();
            self.wide.resize(at + wide.back_len(), 0.0);
            let rows = values[wide.b.clone()].chunks_exact(wide.rank);
            for (o, row) in rows.enumerate() {
                for (panel, values) in row.chunks(LANES).enumerate() {
                    let at = at + (panel * wide.outputs + o) * LANES;
                    for (to, value) in self.wide[at..].iter_mut().zip(values) {
                        *to = value * wide.scaling;
                    }
                }
            }
        }
    }
}

impl Wide {
    /// Numbers of its panels for the way back.
    pub(super) fn back_len(&self) -> usize {
        self.rank.next_multiple_of(LANES) * self.outputs
    }
}
