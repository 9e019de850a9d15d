//! The phase of attention.

use std::sync::atomic::Ordering;

use super::{space::Space, state::Step};
use crate::{
    format::RowKind,
    kernels::{AttendArgs, MAX_ROWS, ScaleArgs, merge_chunks, partial_len},
    plan::{Heads, Task, Tasks},
    pool::Team,
};

impl Step<'_> {
    /// What each head of each token takes from the values, in the form of the next product.
    pub(super) fn attend(&self, team: &Team<'_>, index: usize, space: &mut Space) {
        let tasks = self.plan.tasks_of(self.model.config.layers[index].window);
        team.each(tasks.list.len() * self.heads.len(), |piece| {
            let heads = piece % self.heads.len();
            let task = &tasks.list[piece / self.heads.len()];
            self.attend_task(index, tasks, task, heads, space);
        });
    }

    fn attend_task(
        &self,
        index: usize,
        tasks: &Tasks,
        task: &Task,
        heads: usize,
        space: &mut Space,
    ) {
        let config = &self.model.config;
        let Heads { kv, first, count } = self.heads[heads];
        let rows = task.count * count;
        let len = partial_len(rows, self.head_width);
        let stride = config.num_heads * self.head_width;
        let attend = if self.half_cache {
            self.ops.attend_bf16
        } else {
            self.ops.attend_f32
        };
        let mut args = AttendArgs {
            queries: self
                .at
                .queries
                .at(task.token * stride + first * self.head_width),
            query_stride: stride,
            tokens: task.count,
            group: count,
            head_dim: self.head_width,
            position: task.position,
            window: config.layers[index].window.unwrap_or(usize::MAX),
            scale: config.attention_scale as f32,
            softcap: config.attention_softcap.unwrap_or(0.0) as f32,
            chunk: 0,
            blocks: &self.batch.sequences[task.sequence].blocks,
            keys: self.cache.keys(index, kv),
            values: self.cache.values(index, kv),
            block_bytes: self.block_bytes,
            out: std::ptr::null_mut(),
            scratch: space.attention,
        };
        let finish = |joined: &[f32]| {
            for row in 0..rows {
                let (token, head) = (task.token + row / count, first + row % count);
                let factor = 1.0 / joined[rows * (self.head_width + 1) + row];
                let values = &joined[row * self.head_width..][..config.head_dim];
                self.write_head((token, head), values, factor);
            }
        };
        let Some(join) = task.join else {
            for chunk in task.chunks.0..task.chunks.1 {
                let whole = chunk + 1 == task.chunks.1;
                let is_first = chunk == task.chunks.0;
                args.chunk = chunk;
                args.out = space.partials[if is_first { 0 } else { len }..].as_mut_ptr();
                // SAFETY: see `Step`.
                unsafe { attend(&args) };
                let count = if is_first { len } else { 2 * len };
                let partials = &mut space.partials[..count];
                merge_chunks(partials, rows, self.head_width);
                if whole {
                    finish(&partials[..len]);
                }
            }
            return;
        };
        // Invariant: chunk outcomes of a tile follow one another, tiles of one set of heads too.
        let most = partial_len(MAX_ROWS, self.head_width);
        let base = (heads * tasks.partials + join.partial) * most;
        for chunk in task.chunks.0..task.chunks.1 {
            args.chunk = chunk;
            args.out = self.at.partials.at(base + (chunk - join.chunks.0) * len);
            // SAFETY: see `Step`.
            unsafe { attend(&args) };
        }
        let joined = &self.joined[heads * tasks.joins + join.index];
        if joined.fetch_add(1, Ordering::AcqRel) + 1 == join.tasks {
            // For the next layer.
            joined.store(0, Ordering::Relaxed);
            let chunks = join.chunks.1 - join.chunks.0;
            // SAFETY: all tasks of the tile are done, and this thread is the one that knows.
            let partials = unsafe { self.at.partials.part_mut(base, chunks * len) };
            merge_chunks(partials, rows, self.head_width);
            finish(&partials[..len]);
        }
    }

    /// What a head of a token took: `values * factor`. Only the thread of its task calls this.
    fn write_head(&self, (token, head): (usize, usize), values: &[f32], factor: f32) {
        let (config, rows) = (&self.model.config, &self.at.attended_rows);
        let column = head * config.head_dim;
        let half = rows.kind == RowKind::Bf16;
        let to = if rows.kind == RowKind::Q8 {
            let width = config.num_heads * config.head_dim;
            self.at.attended.at(token * width + column).cast()
        } else {
            let column_bytes = column * if half { 2 } else { 4 };
            rows.data.at(token * rows.stride + column_bytes)
        };
        let args = ScaleArgs {
            values,
            factor,
            to,
            half,
        };
        // SAFETY: see `Step`; a row has room for all heads.
        unsafe { (self.ops.scale)(&args) };
    }
}
