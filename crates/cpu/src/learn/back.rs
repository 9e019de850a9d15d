//! The way back through the layers.
#![allow(unsafe_code)]

use std::io;

use super::{
    grid::View,
    memory::KeptAt,
    product::{Low, Product, Source, Span, Sums},
    step::{Gradient, Step, drop_rows},
};
use crate::{
    kernels::{LANES, NormBackArgs},
    model::Part,
};

impl Step<'_> {
    /// Takes the derivative by the layer's output in `dx` and leaves that by its input `x` there, but
    /// for the first layer, below which nothing learns. What is kept of the layer is used up.
    pub(super) fn layer_back(
        &mut self,
        index: usize,
        x: View,
        kept: KeptAt,
        gradient: Gradient,
    ) -> io::Result<()> {
        let layer = &self.model.layers[index];
        let (at, m, ops) = (self.at.clone(), self.rows.len(), self.crew.ops);
        let config = &self.model.config;
        let (inner, gelu, widths) = (config.intermediate_size, self.model.gelu(), self.widths);

        let dy = self.join_back(kept.second, layer.mlp_post_norm.as_deref())?;
        self.wide_back(index, Part::Inner, dy, kept, gradient)?;
        self.linear_back(index, Part::Inner, dy, at.inner)?;
        self.crew.each_row(m, 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions, here and below.
            unsafe {
                let gate = kept.gate_up.row_mut(row, 0, inner);
                let up = kept.gate_up.row_mut(row, widths.up, inner);
                (ops.learn.gate_back)(gelu, [gate, up], at.inner.row_mut(row, 0, inner));
            }
        })?;
        self.narrow_back(index, Part::Inner, at.inner, gradient)?;

        self.wide_back(index, Part::Gated, kept.gate_up, kept, gradient)?;
        self.linear_back(index, Part::Gated, kept.gate_up, at.y)?;
        self.norm(kept.middle, &layer.mlp_norm, at.normed)?;
        self.narrow_back(index, Part::Gated, at.normed, gradient)?;
        self.norm_back(kept.middle, &layer.mlp_norm, at.y)?;

        let dy = self.join_back(kept.first, layer.attention_post_norm.as_deref())?;
        self.wide_back(index, Part::Attended, dy, kept, gradient)?;
        self.linear_back(index, Part::Attended, dy, at.d_attended)?;
        self.narrow_back(index, Part::Attended, kept.attended, gradient)?;

        self.turn(index, kept.qkv)?;
        let attention = self.attention(index, kept.qkv);
        // Of the heads' outputs nothing is needed any more.
        let d_query = kept.attended;
        let to = (d_query, at.d_pairs);
        attention.backwards(self.crew, self.rows, at.d_attended, to)?;
        self.turn_back(index, kept.qkv, d_query)?;

        self.wide_back(index, Part::Hidden, kept.qkv, kept, gradient)?;
        if index > 0 {
            self.linear_back(index, Part::Hidden, kept.qkv, at.y)?;
        }
        self.norm(x, &layer.attention_norm, at.normed)?;
        self.narrow_back(index, Part::Hidden, at.normed, gradient)?;
        if index > 0 {
            self.norm_back(x, &layer.attention_norm, at.y)?;
        }
        Ok(())
    }

    /// The derivative by `y` of what was added, `y` or its norm, that by the sum being `dx`.
    fn join_back(&mut self, y: View, norm: Option<&[f32]>) -> io::Result<View> {
        let Some(weight) = norm else {
            return Ok(self.at.dx);
        };
        let (ops, width) = (self.crew.ops, self.widths.hidden);
        let (dx, out) = (self.at.dx, self.at.y);
        let eps = self.model.config.norm_eps as f32;
        self.crew.each_row(self.rows.len(), 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let (x, dy) = (y.row(row, 0, width), dx.row(row, 0, width));
                let out = out.row_mut(row, 0, width);
                out.fill(0.0);
                (ops.learn.norm_back)(&NormBackArgs { x, weight, eps, dy }, out);
            }
        })?;
        Ok(out)
    }

    /// Adds to `dx` what goes back through `norm(x)`, the derivative by which is `dy`.
    pub(super) fn norm_back(&mut self, x: View, weight: &[f32], dy: View) -> io::Result<()> {
        let (ops, width, dx) = (self.crew.ops, self.widths.hidden, self.at.dx);
        let eps = self.model.config.norm_eps as f32;
        self.crew.each_row(self.rows.len(), 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let (x, dy) = (x.row(row, 0, width), dy.row(row, 0, width));
                let dx = dx.row_mut(row, 0, width);
                (ops.learn.norm_back)(&NormBackArgs { x, weight, eps, dy }, dx);
            }
        })
    }

    /// Adds the gradients of the second factors, `dy` being the derivative by the output, and leaves
    /// that by what is between the factors in `d_narrow`.
    fn wide_back(
        &mut self,
        index: usize,
        part: Part,
        dy: View,
        kept: KeptAt,
        gradient: Gradient,
    ) -> io::Result<()> {
        let group = &self.groups[index][part as usize];
        let Some(values) = self.values.filter(|_| group.width > 0) else {
            return Ok(());
        };
        self.panels.backwards(group, values);
        self.flip(kept.narrow.columns(group.column), group.width)?;
        let (mut from, m, flipped) = (0, self.rows.len(), self.at.flipped);
        for (i, wide) in group.wide.iter().enumerate() {
            let dy = dy.columns(wide.first);
            let sums = Sums {
                left: flipped.rows(wide.from),
                left_rows: wide.rank,
                right: dy,
                right_columns: wide.outputs,
                m,
            };
            sums.run(self.crew, |column, sums| {
                for lane in 0..LANES.min(wide.outputs - column) {
                    let at = wide.b.start + (column + lane) * wide.rank;
                    // SAFETY: a piece has columns of its own, which are rows of the factor.
                    let to = unsafe { gradient.0.part_mut(at, wide.rank) };
                    for (to, sums) in to.iter_mut().zip(sums) {
                        *to += wide.scaling * sums[lane];
                    }
                }
            })?;
            let product = Product {
                rows: dy,
                m,
                source: Source::Ready {
                    panels: &self.panels.wide[from..][..wide.back_len()],
                    depth: wide.outputs,
                },
                low: None,
                out: self.at.d_narrow.columns(wide.from),
                begun: group.wide[..i]
                    .iter()
                    .any(|before| before.from == wide.from),
            };
            product.run(self.crew)?;
            from += wide.back_len();
        }
        Ok(())
    }

    /// `out` becomes the derivative by the input of a part, `dy` being that by its output. What is
    /// between the factors has gone before.
    fn linear_back(&mut self, index: usize, part: Part, dy: View, out: View) -> io::Result<()> {
        let (_, matrix) = Self::matrix(&self.model.layers[index], part);
        let group = &self.groups[index][part as usize];
        let columns = matrix.inputs.div_ceil(LANES);
        let changed = self.values.is_some() && group.width > 0;
        let drops = self.dropout.probability > 0.0;
        let (m, width) = (self.rows.len(), group.width);
        let span = |column: usize| Span {
            from: 0,
            depth: width,
            at: column * width * LANES,
        };
        let spans: Vec<_> = (0..columns).map(span).collect();
        let low = (changed && !drops).then_some(Low {
            rows: self.at.d_narrow,
            spans: &spans,
            panels: &self.panels.narrow,
        });
        let product = Product {
            rows: dy,
            m,
            source: Source::Inputs(matrix),
            low,
            out,
            begun: false,
        };
        product.run(self.crew)?;
        if !changed || !drops {
            return Ok(());
        }
        for narrow in &group.narrow {
            let spans: Vec<_> = (0..columns)
                .map(|column| Span {
                    from: narrow.from,
                    depth: narrow.rank,
                    at: (column * width + narrow.from) * LANES,
                })
                .collect();
            // The change alone: it is added to a product that is 0.
            let nothing = vec![0.0; columns * LANES];
            let alone = Product {
                rows: self.at.d_narrow,
                m,
                source: Source::Ready {
                    panels: &nothing,
                    depth: 1,
                },
                low: Some(Low {
                    rows: self.at.d_narrow,
                    spans: &spans,
                    panels: &self.panels.narrow,
                }),
                out: self.at.dropped,
                begun: false,
            };
            alone.run(self.crew)?;
            let (views, inputs) = ((self.at.dropped, out), group.inputs);
            drop_rows(
                self.crew,
                self.rows,
                self.dropout,
                narrow.site,
                views,
                inputs,
                true,
            )?;
        }
        Ok(())
    }

    /// Adds the gradients of the first factors, `x` being the input of the part.
    fn narrow_back(
        &mut self,
        index: usize,
        part: Part,
        x: View,
        gradient: Gradient,
    ) -> io::Result<()> {
        let group = &self.groups[index][part as usize];
        if self.values.is_none() || group.width == 0 {
            return Ok(());
        }
        self.flip(self.at.d_narrow, group.width)?;
        let sums = Sums {
            left: self.at.flipped,
            left_rows: group.width,
            right: x,
            right_columns: group.inputs,
            m: self.rows.len(),
        };
        let add = |narrow: &super::group::Narrow, column: usize, sums: &[[f32; LANES]]| {
            let count = LANES.min(group.inputs - column);
            for (r, sums) in sums.iter().take(narrow.rank).enumerate() {
                let at = narrow.a.start + r * group.inputs + column;
                // SAFETY: a piece has columns of its own.
                let to = unsafe { gradient.0.part_mut(at, count) };
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to += sum;
                }
            }
        };
        if self.dropout.probability <= 0.0 {
            return sums.run(self.crew, |column, sums| {
                for narrow in &group.narrow {
                    add(narrow, column, &sums[narrow.from..]);
                }
            });
        }
        for narrow in &group.narrow {
            let (views, inputs) = ((x, self.at.dropped), group.inputs);
            drop_rows(
                self.crew,
                self.rows,
                self.dropout,
                narrow.site,
                views,
                inputs,
                false,
            )?;
            let sums = Sums {
                left: self.at.flipped.rows(narrow.from),
                left_rows: narrow.rank,
                right: self.at.dropped,
                ..sums
            };
            sums.run(self.crew, |column, sums| add(narrow, column, sums))?;
        }
        Ok(())
    }

    /// Columns of `from` become rows.
    fn flip(&mut self, from: View, width: usize) -> io::Result<()> {
        const ROWS: usize = 64;
        let (m, to) = (self.rows.len(), self.at.flipped);
        self.crew.each(m.div_ceil(ROWS), 0, |piece, _| {
            for row in piece * ROWS..((piece + 1) * ROWS).min(m) {
                // SAFETY: a piece has rows of its own, which are columns of the result.
                unsafe {
                    for (column, value) in from.row(row, 0, width).iter().enumerate() {
                        *to.at(column, row) = *value;
                    }
                }
            }
        })
    }

    /// The derivative by `qkv`, in its place: the derivatives by the turned queries are in `d_query`.
    fn turn_back(&mut self, index: usize, qkv: View, d_query: View) -> io::Result<()> {
        let (model, ops, rows) = (self.model, self.crew.ops, self.rows);
        let (angles, d_pairs) = (self.angles, self.at.d_pairs);
        let (config, layer) = (&model.config, &model.layers[index]);
        let (dim, rope) = (config.head_dim, config.layers[index].rope);
        let half = config.ropes[rope].frequencies.len();
        let group = config.num_heads / config.num_kv_heads;
        let eps = config.norm_eps as f32;
        self.crew.each_row(rows.len(), 2 * dim, |row, space| {
            let args = angles.of(rope, rows.positions[row] as usize, half, true);
            let (d, x) = space.split_at_mut(dim);
            let mut back = |d: &mut [f32], column: usize, norm: Option<&[f32]>| {
                // SAFETY: as above.
                unsafe {
                    (ops.learn.turn)(&args, d);
                    let to = qkv.row_mut(row, column, dim);
                    let Some(weight) = norm else {
                        to.copy_from_slice(d);
                        return;
                    };
                    x.copy_from_slice(to);
                    to.fill(0.0);
                    let args = NormBackArgs {
                        x,
                        weight,
                        eps,
                        dy: d,
                    };
                    (ops.learn.norm_back)(&args, to);
                }
            };
            // SAFETY: as above.
            unsafe {
                for head in 0..config.num_heads {
                    d.copy_from_slice(d_query.row(row, head * dim, dim));
                    back(d, head * dim, layer.query_norm.as_deref());
                }
                for kv in 0..config.num_kv_heads {
                    let sum = |d: &mut [f32], second: usize| {
                        d.fill(0.0);
                        for head in kv * group..(kv + 1) * group {
                            (ops.add)(d, d_pairs.row(row, (2 * head + second) * dim, dim));
                        }
                    };
                    sum(d, 0);
                    back(d, model.columns.key + kv * dim, layer.key_norm.as_deref());
                    sum(d, 1);
                    let value = model.columns.value + kv * dim;
                    qkv.row_mut(row, value, dim).copy_from_slice(d);
                }
            }
        })
    }
}
