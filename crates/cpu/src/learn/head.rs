//! The end: the last norm, the head, and the loss of the tokens that count, a few rows at a time.
#![allow(unsafe_code)]

use std::io;

use hyprstream_training::Score;

use super::{
    grid::View,
    product::{Matrix, Product, Source},
    rows::Target,
    step::Step,
};
use crate::{
    buffer::Shared,
    kernels::{NormArgs, NormBackArgs},
};

/// Bytes of logits at a time.
const LOGIT_BYTES: usize = 64 << 20;
/// Most rows at a time.
const MOST_ROWS: usize = 480;

/// Rows that the head sees at a time.
pub(super) fn rows_at_once(vocab: usize) -> usize {
    let rows = LOGIT_BYTES / (4 * vocab);
    rows.clamp(16, MOST_ROWS)
}

/// What a row says of its target.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    loss: f64,
    correct: bool,
}

impl Step<'_> {
    /// The scores of all segments, from the last layer's output `x`. With `back` the derivative by `x`
    /// is left in `dx`.
    pub(super) fn finish(&mut self, x: View, back: bool) -> io::Result<Vec<Score>> {
        let (rows, width) = (self.rows, self.widths.hidden);
        let dx = self.at.dx;
        if back {
            self.crew.each_row(rows.len(), 0, |row, _| {
                // SAFETY: see `View`, here and below.
                unsafe { dx.row_mut(row, 0, width) }.fill(0.0);
            })?;
        }
        let mut scores = vec![Score::default(); rows.segments.len()];
        for targets in rows
            .targets
            .chunks(rows_at_once(self.model.config.vocab_size))
        {
            let said = self.some(x, targets, back)?;
            for (target, said) in targets.iter().zip(said) {
                let score = &mut scores[target.segment];
                score.loss += said.loss;
                score.tokens += 1;
                score.correct += u32::from(said.correct);
            }
        }
        Ok(scores)
    }

    /// Of some rows.
    fn some(&mut self, x: View, targets: &[Target], back: bool) -> io::Result<Vec<Said>> {
        let (model, ops, width) = (self.model, self.crew.ops, self.widths.hidden);
        let (at, dx) = (self.at.head, self.at.dx);
        let vocab = model.config.vocab_size;
        let m = targets.len();
        let (weight, eps) = (&model.norm[..], model.config.norm_eps as f32);
        self.crew.each_row(m, 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let x = x.row(targets[row].row, 0, width);
                let out = at.hidden.row_mut(row, 0, width);
                (ops.norm)(&NormArgs { x, weight, eps }, out);
            }
        })?;
        let matrix = Matrix {
            weights: &model.head.weights,
            inputs: width,
            paired: false,
        };
        let mut product = Product {
            rows: at.hidden,
            m,
            source: Source::Outputs(matrix),
            low: None,
            out: at.logits,
            begun: false,
        };
        product.run(self.crew)?;
        let mut losses = vec![0.0_f32; 3 * m];
        let said = Shared::new(&mut losses);
        let cap = model.config.logit_softcap.unwrap_or(0.0) as f32;
        self.crew.each(m, 0, |row, _| {
            // SAFETY: see `View`, and `Crew` for the instructions.
            unsafe {
                let Target { token, weight, .. } = targets[row];
                let logits = at.logits.row_mut(row, 0, vocab);
                if cap > 0.0 {
                    (ops.softcap)(cap, logits);
                }
                let likelihood = (ops.learn.likelihood)(logits);
                let logit = logits[token as usize];
                let loss = f64::from(likelihood.greatest) + likelihood.sum.ln() - f64::from(logit);
                // A sum of two, so that nothing of 64 bits is lost that matters.
                let said = said.part_mut(3 * row, 3);
                said[0] = loss as f32;
                said[1] = (loss - f64::from(said[0])) as f32;
                said[2] = f32::from(u8::from(logit >= likelihood.greatest));
                if back {
                    (ops.learn.likelihood_back)(&likelihood, weight, cap, logits);
                    let tanh = if cap > 0.0 { logit / cap } else { 0.0 };
                    logits[token as usize] -= weight * (1.0 - tanh * tanh);
                }
            }
        })?;
        if back {
            product.rows = at.logits;
            product.source = Source::Inputs(matrix);
            product.out = at.d_hidden;
            product.run(self.crew)?;
            self.crew.each_row(m, 0, |row, _| {
                // SAFETY: see `View`, and `Crew` for the instructions.
                unsafe {
                    let place = targets[row].row;
                    let (x, dy) = (x.row(place, 0, width), at.d_hidden.row(row, 0, width));
                    let dx = dx.row_mut(place, 0, width);
                    (ops.learn.norm_back)(&NormBackArgs { x, weight, eps, dy }, dx);
                }
            })?;
        }
        let said = losses.chunks_exact(3).map(|said| Said {
            loss: if said[0].is_finite() {
                f64::from(said[0]) + f64::from(said[1])
            } else {
                f64::from(said[0])
            },
            correct: said[2] > 0.0,
        });
        Ok(said.collect())
    }
}
