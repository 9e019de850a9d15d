//! Phases that make the inputs of the matrices.

use super::{space::Space, state::Step};
use crate::{buffer::Shared, format::RowKind, model::Part, pool::Team, product::Rows};

impl Step<'_> {
    /// Returns `norm(x)` in the form for a multiplication.
    pub(super) fn norm(&self, team: &Team<'_>, weight: &[f32], space: &mut Space) -> Rows {
        let (width, rows) = (self.model.config.hidden_size, self.at.hidden_rows);
        self.each_token(team, |t| {
            // SAFETY: see `Step`.
            unsafe {
                let x = self.at.x.part(t * width, width);
                self.normalize(x, weight, &mut space.row[..width]);
                rows.write(self.ops, t, &space.row[..width]);
            }
        });
        team.barrier();
        rows
    }

    /// Returns `rows`, which are written from rows of `len` values if they are quantised, and have
    /// been written otherwise.
    pub(super) fn quantized(
        &self,
        team: &Team<'_>,
        from: Shared<f32>,
        len: usize,
        rows: &Rows,
    ) -> Rows {
        if rows.kind == RowKind::Q8 {
            self.each_token(team, |t| {
                // SAFETY: see `Step`.
                unsafe { rows.write(self.ops, t, from.part(t * len, len)) };
            });
            team.barrier();
        }
        *rows
    }

    /// Sums the squares of the inputs `rows`, of `len` values, where that is asked for.
    pub(super) fn measure(&self, team: &Team<'_>, rows: &Rows, len: usize, part: Part) {
        const PIECE: usize = 64;
        let Some(moments) = &self.moments else {
            return;
        };
        team.each(len.div_ceil(PIECE), |piece| {
            let from = piece * PIECE;
            // SAFETY: see `Step`.
            let sums = unsafe { moments[part as usize].part_mut(from, PIECE.min(len - from)) };
            sums.fill(0.0);
            for t in 0..self.tokens {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: see `Step`; the row has so many values.
                    let value = unsafe { rows.value(t, from + i) };
                    *sum += value * value;
                }
            }
        });
        team.barrier();
    }
}
