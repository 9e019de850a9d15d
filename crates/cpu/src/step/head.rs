//! What is asked for: which tokens go on to the end, and the phases of the end.

use super::{space::Space, state::Step};
use crate::{
    format::RowKind,
    kernels::LANES,
    model::Part,
    pool::Team,
    product::{Destination, Outputs},
};

impl Step<'_> {
    /// The step of the tokens that the plan keeps: their rows come to the front. `None` when there
    /// are none.
    pub(super) fn keep(&self, team: &Team<'_>) -> Option<Self> {
        let (at, kept) = (&self.at, &self.plan.kept);
        if kept.is_empty() {
            return None;
        }
        if kept.len() < self.tokens {
            if team.index == 0 {
                let width = self.model.config.hidden_size;
                let heads = self.model.config.num_heads * self.model.config.head_dim;
                for (to, &from) in kept.iter().enumerate() {
                    // SAFETY: only this thread touches the buffers before the barrier. As `kept`
                    // ascends, no row is overwritten that is still to be moved.
                    unsafe {
                        std::ptr::copy(at.x.at(from * width), at.x.at(to * width), width);
                        if at.attended_rows.kind == RowKind::Q8 {
                            let rows = at.attended;
                            std::ptr::copy(rows.at(from * heads), rows.at(to * heads), heads);
                        } else {
                            let (rows, bytes) = (at.attended_rows.data, at.attended_rows.stride);
                            std::ptr::copy(rows.at(from * bytes), rows.at(to * bytes), bytes);
                        }
                    }
                }
            }
            team.barrier();
        }
        Some(Self {
            tokens: kept.len(),
            runs: &self.plan.kept_runs,
            ..*self
        })
    }

    /// The last norm and the head, for the tokens that are asked for.
    pub(super) fn finish(&self, team: &Team<'_>, space: &mut Space) {
        let (config, plan) = (&self.model.config, self.plan);
        let width = config.hidden_size;
        team.each(plan.logits.len() + plan.hidden.len(), |i| {
            let hidden = i.checked_sub(plan.logits.len());
            let token = hidden.map_or_else(|| plan.logits[i], |i| plan.hidden[i]);
            // SAFETY: see `Step`.
            unsafe {
                let x = Self::row(self.at.x, token, width);
                let out = &mut space.row[..width];
                self.normalize(x, &self.model.norm, out);
                match hidden {
                    Some(i) => Self::row(self.at.hidden, i, width).copy_from_slice(out),
                    None => self.at.head_rows.write(self.ops, i, out),
                }
            }
        });
        team.barrier();
        let (rows, vocab) = (plan.logits.len(), config.vocab_size);
        if rows > 0 {
            let destination = Destination {
                at: self.at.logits.at(0).cast(),
                row_bytes: 4 * vocab,
                panel_bytes: 4 * LANES,
            };
            let sink = |tile: Outputs<'_>| {
                let len = tile.columns.min(vocab - tile.column);
                for (r, values) in tile.values.chunks_exact_mut(tile.columns).enumerate() {
                    let values = &mut values[..len];
                    let to = (tile.row + r) * vocab + tile.column;
                    // SAFETY: see `Step`.
                    unsafe {
                        if let Some(cap) = config.logit_softcap {
                            (self.ops.softcap)(cap as f32, values);
                        }
                        self.at.logits.part_mut(to, len).copy_from_slice(values);
                    }
                }
            };
            let head = Self {
                tokens: rows,
                runs: &plan.head_runs,
                ..*self
            };
            let (weights, inputs) = (&self.model.head, &self.at.head_rows);
            let place = head.narrow(team, (config.num_layers(), Part::Hidden), inputs);
            // SAFETY: see `Step`.
            unsafe {
                head.product(
                    team,
                    (weights, place),
                    inputs,
                    (1, destination),
                    space,
                    sink,
                );
            }
        }
        team.barrier();
    }
}
