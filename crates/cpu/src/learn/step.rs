//! The way forwards through the layers.
#![allow(unsafe_code)]

use std::io;

use hyprstream_training::Dropout;

use super::{
    attend::Attention,
    crew::Crew,
    grid::View,
    group::{Group, Panels},
    memory::{At, KeptAt, Widths},
    product::{Low, Matrix, Product, Source},
    rows::Rows,
};
use crate::{
    buffer::Shared,
    kernels::{LANES, NormArgs, TurnArgs},
    model::{Layer, Linear, Model, Part},
    weights::Matrix as Stored,
};

/// A batch in progress.
pub(super) struct Step<'a> {
    pub(super) model: &'a Model,
    pub(super) crew: &'a mut Crew,
    pub(super) groups: &'a [[Group; 4]],
    pub(super) widths: Widths,
    pub(super) rows: &'a Rows,
    pub(super) angles: &'a Angles,
    pub(super) at: At,
    /// The adapter's numbers; `None` for the frozen model alone.
    pub(super) values: Option<&'a [f32]>,
    pub(super) dropout: Dropout,
    pub(super) panels: &'a mut Panels,
}

/// Cosines and sines of all positions, for each rotary embedding.
#[derive(Default)]
pub(super) struct Angles {
    positions: usize,
    ropes: Vec<Vec<f32>>,
}

impl Angles {
    /// Makes sure of so many positions.
    pub(super) fn at_least(&mut self, positions: usize, model: &Model) {
        if self.positions >= positions {
            return;
        }
        self.positions = positions;
        let ropes = model.config.ropes.iter().map(|rope| {
            let angles = |position: usize| {
                let turns = rope.frequencies.iter();
                turns.map(move |frequency| (position as f32 * frequency).sin_cos())
            };
            let factor = rope.attention_factor;
            let of = |position| {
                let cosines = angles(position).map(|(_, cosine)| cosine * factor);
                cosines.chain(angles(position).map(|(sine, _)| sine * factor))
            };
            (0..positions).flat_map(of).collect()
        });
        self.ropes = ropes.collect();
    }

    /// Those of one position.
    pub(super) fn of(&self, rope: usize, position: usize, half: usize, back: bool) -> TurnArgs<'_> {
        let both = &self.ropes[rope][position * 2 * half..][..2 * half];
        let (cosines, sines) = both.split_at(half);
        TurnArgs {
            cosines,
            sines,
            back,
        }
    }
}

impl<'a> Step<'a> {
    /// Takes the embeddings.
    pub(super) fn embed(&mut self) -> io::Result<()> {
        let (model, rows, x) = (self.model, self.rows, self.at.x[0]);
        let table = Stored::from(&model.embedding);
        self.crew.each_row(rows.len(), 0, |row, _| {
            // SAFETY: see `View`, here and below.
            let x = unsafe { x.row_mut(row, 0, model.config.hidden_size) };
            table.read(rows.tokens[row] as usize, x);
            for x in x.iter_mut() {
                *x *= model.embedding_scale;
            }
        })
    }

    /// The matrix of a part.
    pub(super) fn matrix(layer: &'a Layer, part: Part) -> (&'a Linear, Matrix<'a>) {
        let linear = match part {
            Part::Hidden => &layer.qkv,
            Part::Attended => &layer.output,
            Part::Gated => &layer.gate_up,
            Part::Inner => &layer.down,
        };
        let matrix = Matrix {
            weights: &linear.weights,
            inputs: linear.inputs,
            paired: part == Part::Gated,
        };
        (linear, matrix)
    }

    /// One layer from `x` to `out`, with what is kept of it. Without `out` it ends where what is kept
    /// has been computed.
    pub(super) fn layer(
        &mut self,
        index: usize,
        x: View,
        kept: KeptAt,
        out: Option<View>,
    ) -> io::Result<()> {
        let layer = &self.model.layers[index];
        let (at, m) = (self.at.clone(), self.rows.len());
        let sandwich = layer.mlp_post_norm.is_some();
        self.norm(x, &layer.attention_norm, at.normed)?;
        self.linear(index, Part::Hidden, at.normed, kept, kept.qkv)?;
        self.turn(index, kept.qkv)?;
        let attention = self.attention(index, kept.qkv);
        attention.forwards(self.crew, self.rows, kept.attended)?;
        let first = if sandwich { kept.first } else { at.y };
        self.linear(index, Part::Attended, kept.attended, kept, first)?;
        self.join(x, first, layer.attention_post_norm.as_deref(), kept.middle)?;

        self.norm(kept.middle, &layer.mlp_norm, at.normed)?;
        self.linear(index, Part::Gated, at.normed, kept, kept.gate_up)?;
        let (ops, gelu, widths) = (self.crew.ops, self.model.gelu(), self.widths);
        let inner = self.model.config.intermediate_size;
        self.crew.each_row(m, 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions, here and below.
            unsafe {
                let gate = kept.gate_up.row(row, 0, inner);
                let up = kept.gate_up.row(row, widths.up, inner);
                (ops.learn.gated)(gelu, [gate, up], at.inner.row_mut(row, 0, inner));
            }
        })?;
        let second = if sandwich { kept.second } else { at.y };
        if out.is_none() && !sandwich {
            return self.narrow(index, Part::Inner, at.inner, kept);
        }
        self.linear(index, Part::Inner, at.inner, kept, second)?;
        match out {
            Some(out) => self.join(kept.middle, second, layer.mlp_post_norm.as_deref(), out),
            None => Ok(()),
        }
    }

    pub(super) fn attention(&self, index: usize, qkv: View) -> Attention<'a> {
        Attention {
            config: &self.model.config,
            columns: self.model.columns,
            window: self.model.config.layers[index].window,
            turned: self.at.turned,
            qkv,
        }
    }

    /// `out = norm(x)`.
    pub(super) fn norm(&mut self, x: View, weight: &[f32], out: View) -> io::Result<()> {
        let (ops, width) = (self.crew.ops, self.widths.hidden);
        let eps = self.model.config.norm_eps as f32;
        self.crew.each_row(self.rows.len(), 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let x = x.row(row, 0, width);
                (ops.norm)(&NormArgs { x, weight, eps }, out.row_mut(row, 0, width));
            }
        })
    }

    /// `out = x + y`, or `out = x + norm(y)`.
    fn join(&mut self, x: View, y: View, norm: Option<&[f32]>, out: View) -> io::Result<()> {
        let (ops, width) = (self.crew.ops, self.widths.hidden);
        let eps = self.model.config.norm_eps as f32;
        self.crew.each_row(self.rows.len(), width, |row, space| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let (out, y) = (out.row_mut(row, 0, width), y.row(row, 0, width));
                out.copy_from_slice(x.row(row, 0, width));
                if let Some(weight) = norm {
                    (ops.norm)(&NormArgs { x: y, weight, eps }, space);
                    (ops.add)(out, space);
                } else {
                    (ops.add)(out, y);
                }
            }
        })
    }

    /// `out = linear(x)` with what the adapter adds.
    fn linear(
        &mut self,
        index: usize,
        part: Part,
        x: View,
        kept: KeptAt,
        out: View,
    ) -> io::Result<()> {
        self.narrow(index, part, x, kept)?;
        let (linear, matrix) = Self::matrix(&self.model.layers[index], part);
        let group = &self.groups[index][part as usize];
        let low = self.values.filter(|_| group.width > 0).map(|_| Low {
            rows: kept.narrow.columns(group.column),
            spans: &self.panels.spans,
            panels: &self.panels.wide,
        });
        let product = Product {
            rows: x,
            m: self.rows.len(),
            source: Source::Outputs(matrix),
            low,
            out,
            begun: false,
        };
        product.run(self.crew)?;
        if linear.bias.is_empty() {
            return Ok(());
        }
        let ops = self.crew.ops;
        let panels = (0..matrix.weights.panels).map(|column| matrix.panel_of(column));
        let bias: Vec<f32> = panels
            .flat_map(|panel| &linear.bias[panel * LANES..][..LANES])
            .copied()
            .collect();
        self.crew.each_row(self.rows.len(), 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                (ops.add)(out.row_mut(row, 0, bias.len()), &bias);
            }
        })
    }

    /// What is between the factors of a part, and the panels of the factors.
    fn narrow(&mut self, index: usize, part: Part, x: View, kept: KeptAt) -> io::Result<()> {
        let group = &self.groups[index][part as usize];
        let Some(values) = self.values.filter(|_| group.width > 0) else {
            return Ok(());
        };
        let (_, matrix) = Self::matrix(&self.model.layers[index], part);
        self.panels.forwards(group, values, matrix.weights.panels);
        let out = kept.narrow.columns(group.column);
        let mut product = Product {
            rows: x,
            m: self.rows.len(),
            source: Source::Ready {
                panels: &self.panels.narrow,
                depth: group.inputs,
            },
            low: None,
            out,
            begun: false,
        };
        if self.dropout.probability <= 0.0 {
            return product.run(self.crew);
        }
        product.rows = self.at.dropped;
        for narrow in &group.narrow {
            let len = narrow.rank.next_multiple_of(LANES) * group.inputs;
            product.out = out.columns(narrow.from);
            product.source = Source::Ready {
                panels: &self.panels.narrow[narrow.from * group.inputs..][..len],
                depth: group.inputs,
            };
            drop_rows(
                self.crew,
                self.rows,
                self.dropout,
                narrow.site,
                (x, self.at.dropped),
                group.inputs,
                false,
            )?;
            product.run(self.crew)?;
        }
        Ok(())
    }

    /// Normalises and turns queries and keys.
    pub(super) fn turn(&mut self, index: usize, qkv: View) -> io::Result<()> {
        let (model, ops, rows) = (self.model, self.crew.ops, self.rows);
        let (angles, turned) = (self.angles, self.at.turned);
        let (config, layer) = (&model.config, &model.layers[index]);
        let (dim, rope) = (config.head_dim, config.layers[index].rope);
        let half = config.ropes[rope].frequencies.len();
        let eps = config.norm_eps as f32;
        self.crew.each_row(rows.len(), 0, |row, _| {
            let args = angles.of(rope, rows.positions[row] as usize, half, false);
            let heads = (0..config.num_heads).map(|head| (head * dim, &layer.query_norm));
            let keys = (0..config.num_kv_heads)
                .map(|head| (model.columns.key + head * dim, &layer.key_norm));
            for (column, norm) in heads.chain(keys) {
                // SAFETY: as above.
                unsafe {
                    let (x, out) = (qkv.row(row, column, dim), turned.row_mut(row, column, dim));
                    match norm {
                        Some(weight) => (ops.norm)(&NormArgs { x, weight, eps }, out),
                        None => out.copy_from_slice(x),
                    }
                    (ops.learn.turn)(&args, out);
                }
            }
        })
    }
}

/// Writes what does not fall out of `from` to `to`, or adds it.
pub(super) fn drop_rows(
    crew: &mut Crew,
    rows: &Rows,
    dropout: Dropout,
    site: hyprstream_models::adapter::Site,
    (from, to): (View, View),
    width: usize,
    add: bool,
) -> io::Result<()> {
    let probability = dropout.probability;
    let factor = 1.0 / (1.0 - probability);
    crew.each_row(rows.len(), 0, |row, _| {
        let (sample, position) = (rows.samples[row], rows.positions[row]);
        // SAFETY: see `View`.
        let (from, to) = unsafe { (from.row(row, 0, width), to.row_mut(row, 0, width)) };
        for (quad, (from, to)) in from.chunks(4).zip(to.chunks_mut(4)).enumerate() {
            let draws = dropout.draw(sample, site, position, quad as u32);
            for ((from, to), draw) in from.iter().zip(to).zip(draws) {
                let kept = if draw < probability {
                    0.0
                } else {
                    from * factor
                };
                *to = if add { *to + kept } else { kept };
            }
        }
    })
}

/// The gradient, which pieces of a phase add to, each to numbers of its own.
#[derive(Clone, Copy)]
pub(super) struct Gradient(pub(super) Shared<f32>);
