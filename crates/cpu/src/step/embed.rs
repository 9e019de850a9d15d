//! The phase of the embeddings.

use super::state::Step;
use crate::{pool::Team, weights::Matrix};

impl Step<'_> {
    /// Takes the embeddings, and the cosines and sines of all positions.
    pub(crate) fn embed(&self, team: &Team<'_>) {
        let config = &self.model.config;
        let embedding = Matrix::from(&self.model.embedding);
        team.each(self.tokens, |t| {
            let token = self.plan.tokens[t];
            // SAFETY: see `Step`.
            let x = unsafe { Self::row(self.at.x, t, config.hidden_size) };
            embedding.read(token.id as usize, x);
            let mut changes = self.runs.of(t).filter_map(|(adapter, scale)| {
                let factors = self.adapters[adapter].embedding.as_ref()?;
                Some((factors, scale))
            });
            if let Some(first) = changes.next() {
                let base = x.to_vec();
                for (factors, scale) in std::iter::once(first).chain(changes) {
                    factors.add(token.id as usize, scale, &base, x);
                }
            }
            let scale = self.model.embedding_scale;
            for x in x.iter_mut() {
                *x *= scale;
            }
            let mut from = 0;
            for rope in &config.ropes {
                let half = rope.frequencies.len();
                // SAFETY: see `Step`.
                let turns = unsafe {
                    let from = from * self.tokens + t * 2 * half;
                    self.at.turns.part_mut(from, 2 * half)
                };
                from += 2 * half;
                let (cosines, sines) = turns.split_at_mut(half);
                let each = cosines.iter_mut().zip(sines).zip(&rope.frequencies);
                for ((cosine, sine), frequency) in each {
                    let (s, c) = (token.position as f32 * frequency).sin_cos();
                    *cosine = c * rope.attention_factor;
                    *sine = s * rope.attention_factor;
                }
            }
        });
    }
}
