//! Cross-entropy, a chunk of logits at a time.

use hyprstream_training::Score;
use tch::{Kind, Reduction, TchError, Tensor};

use super::{Sums, differentiable, forward::Pass, packed::Place};
use crate::layers::soften;

/// The end of a model: its last norm, its head, and the loss.
pub(super) struct Head<'a> {
    pass: &'a Pass<'a>,
    /// Rows whose logits are there at once.
    rows: usize,
}

/// What is found of trained tokens, in their order.
#[derive(Default)]
struct Found {
    losses: Vec<f32>,
    correct: Vec<bool>,
}

impl<'a> Head<'a> {
    pub(super) fn new(pass: &'a Pass<'a>) -> Self {
        let learner = pass.learner;
        Self {
            pass,
            rows: (learner.logits_at_once / learner.config.vocab_size).max(1),
        }
    }

    /// The scores of what the last layer gave, `[tokens, hidden]`.
    pub(super) fn score(&self, x: &Tensor) -> Result<Vec<Score>, TchError> {
        let hidden = self.hidden(x)?;
        let mut found = Found::default();
        for chunk in self.chunks() {
            found.add(&self.loss(&hidden, &chunk)?)?;
        }
        Ok(self.scores(&found))
    }

    /// The scores, and what the weighted loss changes by with `x`, `[tokens, hidden]`, if `below` says
    /// that it is wanted. What it changes by with the head's own leaves goes to `sums`.
    pub(super) fn differentiate(
        &self,
        x: &Tensor,
        below: bool,
        sums: &mut Sums,
    ) -> Result<(Vec<Score>, Option<Tensor>), TchError> {
        let x = if below {
            differentiable(x)?
        } else {
            x.f_detach()?
        };
        let hidden = self.hidden(&x)?;
        let leaf = differentiable(&hidden)?;
        let mut found = Found::default();
        let mut derivatives = Vec::new();
        for chunk in self.chunks() {
            let rows = leaf.f_narrow(0, chunk.first, chunk.count)?;
            let rows = differentiable(&rows)?;
            let loss = self.loss_of(&rows, &chunk)?;
            found.add(&loss)?;
            let weights = self
                .pass
                .packed
                .targets
                .weights
                .f_narrow(0, chunk.first, chunk.count)?;
            let weighted = loss.losses.f_mul(&weights)?;
            let leaves = self.pass.leaves.of_head();
            derivatives.extend(sums.run(&weighted, leaves, Some(&rows))?);
        }
        let scores = self.scores(&found);
        if !below {
            return Ok((scores, None));
        }
        if derivatives.is_empty() {
            return Ok((scores, Some(x.f_zeros_like()?)));
        }
        let derivative = Tensor::f_cat(&derivatives, 0)?;
        let passed = sums.backward(&hidden, &derivative, [], Some(&x))?;
        Ok((scores, passed))
    }

    /// After the last norm, what trained tokens are predicted from, `[targets, hidden]`.
    fn hidden(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let rows = x.f_index_select(0, &self.pass.packed.targets.index)?;
        self.pass.learner.model.norm.forward(&rows)
    }

    fn chunks(&self) -> impl Iterator<Item = Chunk> + use<> {
        let (count, rows) = (self.pass.packed.targets.rows.len(), self.rows);
        let starts = (0..count).step_by(rows);
        starts.map(move |first| Chunk {
            first: first as i64,
            count: rows.min(count - first) as i64,
        })
    }

    fn loss(&self, hidden: &Tensor, chunk: &Chunk) -> Result<Loss, TchError> {
        self.loss_of(&hidden.f_narrow(0, chunk.first, chunk.count)?, chunk)
    }

    fn loss_of(&self, hidden: &Tensor, chunk: &Chunk) -> Result<Loss, TchError> {
        let packed = self.pass.packed;
        let rows = &packed.targets.rows[chunk.first as usize..][..chunk.count as usize];
        let places: Vec<Place> = rows.iter().map(|row| packed.places[*row]).collect();
        let mut logits = self.pass.logits(hidden, &places)?.f_to_kind(Kind::Float)?;
        if let Some(cap) = self.pass.learner.model.logit_softcap {
            logits = soften(logits, cap)?;
        }
        let targets = packed
            .targets
            .tokens
            .f_narrow(0, chunk.first, chunk.count)?;
        let likeliest = logits.f_detach()?.f_argmax(-1, false)?;
        let losses =
            logits.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::None, -100, 0.0)?;
        Ok(Loss {
            losses,
            correct: likeliest.f_eq_tensor(&targets)?,
        })
    }

    fn scores(&self, found: &Found) -> Vec<Score> {
        let mut from = 0;
        let counts = self.pass.packed.targets.counts.iter();
        counts
            .map(|&count| {
                let range = from..from + count;
                from = range.end;
                let losses = found.losses[range.clone()].iter();
                Score {
                    loss: losses.map(|loss| f64::from(*loss)).sum(),
                    tokens: count as u32,
                    correct: found.correct[range]
                        .iter()
                        .filter(|correct| **correct)
                        .count() as u32,
                }
            })
            .collect()
    }
}

/// Some of the trained tokens.
struct Chunk {
    first: i64,
    count: i64,
}

/// Of some trained tokens, `[rows]`.
struct Loss {
    losses: Tensor,
    correct: Tensor,
}

impl Found {
    fn add(&mut self, loss: &Loss) -> Result<(), TchError> {
        self.losses
            .extend(Vec::<f32>::try_from(&loss.losses.f_detach()?)?);
        self.correct.extend(Vec::<bool>::try_from(&loss.correct)?);
        Ok(())
    }
}
