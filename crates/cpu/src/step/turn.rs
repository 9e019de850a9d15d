//! The phase between the matrices of attention and attention.

use hyprstream_models::Rope;

use super::{space::Space, state::Step};
use crate::{model::Layer, pool::Team};

impl Step<'_> {
    /// Normalises and turns queries and keys, and writes keys and values to the cache.
    pub(super) fn turn(&self, team: &Team<'_>, index: usize, layer: &Layer, space: &mut Space) {
        let config = &self.model.config;
        let (dim, columns) = (config.head_dim, self.model.columns);
        let rope_index = config.layers[index].rope;
        let rope = &config.ropes[rope_index];
        let before: usize = config.ropes[..rope_index]
            .iter()
            .map(|rope| 2 * rope.frequencies.len())
            .sum();
        self.each_token(team, |t| {
            let half = rope.frequencies.len();
            let token = self.plan.tokens[t];
            // SAFETY: see `Step`; the position is the token's own.
            unsafe {
                let turns = self
                    .at
                    .turns
                    .part(before * self.tokens + t * 2 * half, 2 * half);
                let row = Self::row(self.at.qkv, t, columns.all);
                let queries = config.num_heads * self.head_width;
                let queries = Self::row(self.at.queries, t, queries);
                for (head, to) in queries.chunks_exact_mut(self.head_width).enumerate() {
                    let query = &mut row[head * dim..(head + 1) * dim];
                    self.turn_head(query, layer.query_norm.as_deref(), rope, turns, space);
                    to[..dim].copy_from_slice(query);
                }
                for head in 0..config.num_kv_heads {
                    let key = &mut row[columns.key + head * dim..][..dim];
                    self.turn_head(key, layer.key_norm.as_deref(), rope, turns, space);
                    let key = &row[columns.key + head * dim..][..dim];
                    let value = &row[columns.value + head * dim..][..dim];
                    let place = (index, head);
                    self.cache
                        .write(self.ops, place, token.slot, (key, value), token.last);
                }
            }
        });
    }

    /// # Safety
    /// See [`Step`].
    unsafe fn turn_head(
        &self,
        head: &mut [f32],
        norm: Option<&[f32]>,
        rope: &Rope,
        turns: &[f32],
        space: &mut Space,
    ) {
        if let Some(norm) = norm {
            let out = &mut space.row[..head.len()];
            // SAFETY: the caller's promise.
            unsafe { self.normalize(head, norm, out) };
            head.copy_from_slice(out);
        }
        let half = rope.frequencies.len();
        let (first, second) = head[..2 * half].split_at_mut(half);
        let (cosines, sines) = turns.split_at(half);
        let each = first.iter_mut().zip(second).zip(cosines.iter().zip(sines));
        for ((a, b), (cosine, sine)) in each {
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        }
    }
}
