//! The forward pass: what every thread runs in a step.
#![allow(unsafe_code)]

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use hyprstream_engine::StepBatch;
use hyprstream_models::Rope;

use crate::{
    buffer::Shared,
    cache::{Cache, SharedCache},
    format::RowKind,
    kernels::{
        AddArgs, AttendArgs, GateArgs, LANES, MAX_ROWS, NormArgs, Ops, SCRATCH, ScaleArgs,
        merge_chunks, partial_len,
    },
    memory::Memory,
    model::{Layer, Linear, Model},
    plan::{Heads, Plan, Task, Tasks},
    pool::Team,
    product::{Destination, Outputs, Product, Rows, product},
    weights::Matrix,
};

/// A step in progress. Every thread has this and runs [`Step::run`].
pub(crate) struct Step<'a> {
    pub(crate) ops: &'a Ops,
    pub(crate) model: &'a Model,
    pub(crate) heads: &'a [Heads],
    pub(crate) batch: &'a StepBatch,
    pub(crate) plan: &'a Plan,
    /// Rows of activations: all tokens of the plan, and at the end those it keeps.
    pub(crate) tokens: usize,
    pub(crate) cache: SharedCache,
    pub(crate) half_cache: bool,
    /// Width of a head in the cache, in multiples of 16.
    pub(crate) head_width: usize,
    pub(crate) block_bytes: usize,
    pub(crate) at: Activations,
    /// Finished tasks of each join and heads.
    pub(crate) joined: &'a [AtomicUsize],
    /// Where the squares of the inputs of each [`Part`] are to be summed over the tokens.
    pub(crate) moments: Option<[Shared<f32>; 4]>,
}

/// The inputs of the matrices of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// Of query, key and value.
    Hidden,
    /// Of the output of attention.
    Attended,
    /// Of gate and up.
    Gated,
    /// Of down.
    Inner,
}

impl Part {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Hidden, Self::Attended, Self::Gated, Self::Inner];
}

/// Memory for the activations of a step.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    /// The residual stream, `[tokens, hidden]`.
    pub(crate) x: Shared<f32>,
    /// Output of a part before its norm (sandwich norms), `[tokens, hidden]`.
    pub(crate) y: Shared<f32>,
    /// Query, key and value, `[tokens, columns]`.
    pub(crate) qkv: Shared<f32>,
    /// Queries after their norm and rotation, `[tokens, heads, head_width]`.
    pub(crate) queries: Shared<f32>,
    /// Output of attention where it cannot go into `attended_rows` at once,
    /// `[tokens, heads * head_dim]`.
    pub(crate) attended: Shared<f32>,
    /// Gated values where they cannot go into `inner_rows` at once, `[tokens, intermediate]`.
    pub(crate) inner: Shared<f32>,
    /// Cosines and sines, for each rotary embedding `[tokens, 2, dimensions / 2]`.
    pub(crate) turns: Shared<f32>,
    /// Outcomes of chunks that several tasks share.
    pub(crate) partials: Shared<f32>,
    /// Space of each thread.
    pub(crate) scratch: Shared<f32>,
    pub(crate) scratch_len: usize,
    /// Inputs of the multiplications.
    pub(crate) hidden_rows: Rows,
    pub(crate) attended_rows: Rows,
    pub(crate) inner_rows: Rows,
    pub(crate) head_rows: Rows,
    pub(crate) logits: Shared<f32>,
    pub(crate) hidden: Shared<f32>,
}

/// Values of scratch space of a thread.
pub(crate) fn scratch_len(model: &Model, head_width: usize) -> usize {
    let config = &model.config;
    let row = (config.num_heads * config.head_dim)
        .max(config.hidden_size)
        .max(config.intermediate_size);
    (SCRATCH + 2 * partial_len(MAX_ROWS, head_width) + row).next_multiple_of(LANES)
}

/// A thread's space, taken apart.
struct Space {
    attention: *mut f32,
    partials: &'static mut [f32],
    row: &'static mut [f32],
}

// SAFETY of the calls into `ops`, in all of this module: the backend was made for kernels that
// this processor has (`Ops::of`). SAFETY of the parts of shared buffers: a piece of `Team::each`
// belongs to one thread, and a barrier lies between the phase that writes and the one that reads.
impl<'a> Step<'a> {
    /// The step of `batch`, laid out as `plan`.
    ///
    /// # Errors
    /// There is no memory for its activations.
    pub(crate) fn new(
        ops: &'a Ops,
        model: &'a Model,
        heads: &'a [Heads],
        batch: &'a StepBatch,
        plan: &'a Plan,
        cache: &mut Cache,
        memory: &'a mut Memory,
    ) -> io::Result<Self> {
        let shape = cache.shape;
        Ok(Self {
            ops,
            model,
            heads,
            batch,
            plan,
            tokens: plan.tokens.len(),
            cache: cache.share(),
            half_cache: shape.half,
            head_width: shape.head_dim,
            block_bytes: shape.block_bytes(),
            at: memory.activations(plan, model, heads.len(), shape.head_dim)?,
            joined: &memory.joined,
            moments: None,
        })
    }

    /// Computes the step. Every thread of the team calls it.
    pub(crate) fn run(&self, team: &Team<'_>) {
        let mut space = self.space(team);
        self.embed(team);
        team.barrier();
        let mut layers = self.model.layers.iter().enumerate().peekable();
        while let Some((index, layer)) = layers.next() {
            self.attention(team, index, layer, &mut space);
            if layers.peek().is_some() {
                self.rest(team, layer, &mut space);
            } else if let Some(kept) = self.keep(team) {
                // What nobody asks for is not computed: of a prompt all but its last token.
                kept.rest(team, layer, &mut space);
                kept.finish(team, &mut space);
            }
        }
    }

    /// Computes one layer for all tokens. Every thread of the team calls it.
    pub(crate) fn layer(&self, team: &Team<'_>, index: usize, layer: &Layer) {
        let mut space = self.space(team);
        self.attention(team, index, layer, &mut space);
        self.rest(team, layer, &mut space);
    }

    fn space(&self, team: &Team<'_>) -> Space {
        let len = self.at.scratch_len;
        // SAFETY: each thread has a part of its own; nothing else uses it in this step.
        let all = unsafe { self.at.scratch.part_mut(team.index * len, len) };
        let (attention, rest) = all.split_at_mut(SCRATCH);
        let (partials, row) = rest.split_at_mut(2 * partial_len(MAX_ROWS, self.head_width));
        Space {
            attention: attention.as_mut_ptr(),
            partials,
            row,
        }
    }

    /// Row `row` of a buffer of rows of `len` values.
    ///
    /// # Safety
    /// See above.
    unsafe fn row<'r>(buffer: Shared<f32>, row: usize, len: usize) -> &'r mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { buffer.part_mut(row * len, len) }
    }

    /// Takes the embeddings, and the cosines and sines of all positions.
    pub(crate) fn embed(&self, team: &Team<'_>) {
        let config = &self.model.config;
        let embedding = Matrix::from(&self.model.embedding);
        team.each(self.tokens, |t| {
            let token = self.plan.tokens[t];
            // SAFETY: see above.
            let x = unsafe { Self::row(self.at.x, t, config.hidden_size) };
            embedding.read(token.id as usize, x);
            let scale = self.model.embedding_scale;
            for x in x.iter_mut() {
                *x *= scale;
            }
            let mut from = 0;
            for rope in &config.ropes {
                let half = rope.frequencies.len();
                // SAFETY: see above.
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

    /// The first half of a layer, up to what attention takes from the values.
    fn attention(&self, team: &Team<'_>, index: usize, layer: &Layer, space: &mut Space) {
        let at = &self.at;
        let rows = self.norm(team, &layer.attention_norm, space);
        self.measure(team, &rows, layer.qkv.inputs, Part::Hidden);
        let columns = self.model.columns;
        self.store(team, &layer.qkv, &rows, (at.qkv, columns.all), 0);
        if let Some(linear) = &layer.key_value {
            team.barrier();
            self.store(team, linear, &rows, (at.qkv, columns.all), columns.key);
        }
        team.barrier();
        self.turn(team, index, layer, space);
        team.barrier();
        self.attend(team, index, space);
        team.barrier();
    }

    /// The step of the tokens that the plan keeps: their rows come to the front. `None` when there
    /// are none.
    fn keep(&self, team: &Team<'_>) -> Option<Self> {
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
            ..*self
        })
    }

    /// The second half of a layer: what attention took, and the gated part.
    fn rest(&self, team: &Team<'_>, layer: &Layer, space: &mut Space) {
        let (config, at) = (&self.model.config, &self.at);
        let rows = self.quantized(team, at.attended, layer.output.inputs, &at.attended_rows);
        self.measure(team, &rows, layer.output.inputs, Part::Attended);
        let norm = layer.attention_post_norm.as_deref();
        self.part_out(team, &layer.output, &rows, norm, space);

        let rows = self.norm(team, &layer.mlp_norm, space);
        self.measure(team, &rows, layer.gate_up.inputs, Part::Gated);
        self.gated(team, layer, &rows);
        team.barrier();
        let width = config.intermediate_size;
        let rows = self.quantized(team, at.inner, width, &at.inner_rows);
        self.measure(team, &rows, width, Part::Inner);
        let norm = layer.mlp_post_norm.as_deref();
        self.part_out(team, &layer.down, &rows, norm, space);
    }

    /// Returns `norm(x)` in the form for a multiplication.
    fn norm(&self, team: &Team<'_>, weight: &[f32], space: &mut Space) -> Rows {
        let (width, rows) = (self.model.config.hidden_size, self.at.hidden_rows);
        self.each_token(team, |t| {
            // SAFETY: see above.
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
    fn quantized(&self, team: &Team<'_>, from: Shared<f32>, len: usize, rows: &Rows) -> Rows {
        if rows.kind == RowKind::Q8 {
            self.each_token(team, |t| {
                // SAFETY: see above.
                unsafe { rows.write(self.ops, t, from.part(t * len, len)) };
            });
            team.barrier();
        }
        *rows
    }

    /// Sums the squares of the inputs `rows`, of `len` values, where that is asked for.
    fn measure(&self, team: &Team<'_>, rows: &Rows, len: usize, part: Part) {
        const PIECE: usize = 64;
        let Some(moments) = &self.moments else {
            return;
        };
        team.each(len.div_ceil(PIECE), |piece| {
            let from = piece * PIECE;
            // SAFETY: see above.
            let sums = unsafe { moments[part as usize].part_mut(from, PIECE.min(len - from)) };
            sums.fill(0.0);
            for t in 0..self.tokens {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: see above; the row has so many values.
                    let value = unsafe { rows.value(t, from + i) };
                    *sum += value * value;
                }
            }
        });
        team.barrier();
    }

    /// # Safety
    /// See above.
    unsafe fn normalize(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let eps = self.model.config.norm_eps as f32;
        // SAFETY: the caller's promise.
        unsafe { (self.ops.norm)(&NormArgs { x, weight, eps }, out) }
    }

    /// A phase over all tokens, a few at a time.
    fn each_token(&self, team: &Team<'_>, mut work: impl FnMut(usize)) {
        const FEW: usize = 8;
        let tokens = self.tokens;
        let size = if tokens > 4 * FEW { FEW } else { 1 };
        team.each(tokens.div_ceil(size), |piece| {
            (piece * size..((piece + 1) * size).min(tokens)).for_each(&mut work);
        });
    }

    /// `to[.., column..] = linear(rows)`, where `to` is `[tokens, width]`.
    fn store(
        &self,
        team: &Team<'_>,
        linear: &Linear,
        rows: &Rows,
        (to, width): (Shared<f32>, usize),
        column: usize,
    ) {
        let destination = Destination {
            at: to.at(column).cast(),
            row_bytes: 4 * width,
            panel_bytes: 4 * LANES,
        };
        let sink = |tile: Outputs<'_>| {
            let column = column + tile.column;
            let len = tile.columns.min(width - column);
            let bias = linear.bias.get(tile.column..tile.column + len);
            for (r, values) in tile.values.chunks_exact(tile.columns).enumerate() {
                // SAFETY: see above; a tile has columns and rows of its own.
                unsafe {
                    let to = to.part_mut((tile.row + r) * width + column, len);
                    to.copy_from_slice(&values[..len]);
                    if let Some(bias) = bias {
                        (self.ops.add)(to, bias);
                    }
                }
            }
        };
        // SAFETY: see above.
        unsafe { self.product(team, linear, rows, 1, destination, sink) };
    }

    /// All rows by `linear`.
    ///
    /// # Safety
    /// See above.
    unsafe fn product(
        &self,
        team: &Team<'_>,
        linear: &Linear,
        rows: &Rows,
        granule: usize,
        destination: Destination,
        sink: impl FnMut(Outputs<'_>),
    ) {
        let all = Product {
            weights: &linear.weights,
            rows,
            m: self.tokens,
            granule,
            destination,
        };
        // SAFETY: the caller's promise.
        unsafe { product(team, self.ops, &all, sink) };
    }

    /// `x += linear(rows)`, or `x += norm(linear(rows))`, and meets the barrier.
    fn part_out(
        &self,
        team: &Team<'_>,
        linear: &Linear,
        rows: &Rows,
        norm: Option<&[f32]>,
        space: &mut Space,
    ) {
        let width = self.model.config.hidden_size;
        let Some(norm) = norm else {
            let destination = Destination {
                at: self.at.x.at(0).cast(),
                row_bytes: 4 * width,
                panel_bytes: 4 * LANES,
            };
            let sink = |tile: Outputs<'_>| {
                let len = tile.columns.min(width - tile.column);
                let bias = linear.bias.get(tile.column..tile.column + len);
                let args = AddArgs {
                    values: tile.values,
                    columns: tile.columns,
                    bias: bias.unwrap_or_default(),
                    to: self.at.x.at(tile.row * width + tile.column),
                    stride: width,
                    len,
                };
                // SAFETY: see above.
                unsafe { (self.ops.add_rows)(&args) };
            };
            // SAFETY: see above.
            unsafe { self.product(team, linear, rows, 1, destination, sink) };
            team.barrier();
            return;
        };
        self.store(team, linear, rows, (self.at.y, width), 0);
        team.barrier();
        self.each_token(team, |t| {
            // SAFETY: see above.
            unsafe {
                let y = Self::row(self.at.y, t, width);
                self.normalize(y, norm, &mut space.row[..width]);
                (self.ops.add)(Self::row(self.at.x, t, width), &space.row[..width]);
            }
        });
        team.barrier();
    }

    /// Normalises and turns queries and keys, and writes keys and values to the cache.
    fn turn(&self, team: &Team<'_>, index: usize, layer: &Layer, space: &mut Space) {
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
            // SAFETY: see above; the position is the token's own.
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
    /// See above.
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

    fn attend(&self, team: &Team<'_>, index: usize, space: &mut Space) {
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
                // SAFETY: see above.
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
            // SAFETY: see above.
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
        // SAFETY: see above; a row has room for all heads.
        unsafe { (self.ops.scale)(&args) };
    }

    /// `inner = act(gate(rows)) * up(rows)`.
    fn gated(&self, team: &Team<'_>, layer: &Layer, rows: &Rows) {
        let (at, width) = (&self.at, self.model.config.intermediate_size);
        let linear = &layer.gate_up;
        let (half, gelu) = (at.inner_rows.kind == RowKind::Bf16, self.model.gelu());
        let (out, out_bytes) = match at.inner_rows.kind {
            RowKind::Q8 => (at.inner.at(0).cast::<u8>(), 4 * width),
            _ => (at.inner_rows.data.at(0), at.inner_rows.stride),
        };
        let bytes = if half { 2 } else { 4 };
        let destination = Destination {
            at: out,
            row_bytes: out_bytes,
            panel_bytes: bytes * LANES / 2,
        };
        let sink = |tile: Outputs<'_>| {
            let first = tile.column / 2;
            let bias = linear.bias.get(tile.column..tile.column + tile.columns);
            let offset = tile.row * out_bytes + first * bytes;
            let args = GateArgs {
                values: tile.values,
                columns: tile.columns,
                bias: bias.unwrap_or_default(),
                gelu,
                out: out.wrapping_add(offset),
                out_bytes,
                len: (tile.columns / 2).min(width - first),
                half,
            };
            // SAFETY: see above.
            unsafe { (self.ops.gate)(&args) };
        };
        // SAFETY: see above.
        unsafe { self.product(team, linear, rows, 2, destination, sink) };
    }

    /// The last norm and the head, for the tokens that are asked for.
    fn finish(&self, team: &Team<'_>, space: &mut Space) {
        let (config, plan) = (&self.model.config, self.plan);
        let width = config.hidden_size;
        team.each(plan.logits.len() + plan.hidden.len(), |i| {
            let hidden = i.checked_sub(plan.logits.len());
            let token = hidden.map_or_else(|| plan.logits[i], |i| plan.hidden[i]);
            // SAFETY: see above.
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
                    // SAFETY: see above.
                    unsafe {
                        if let Some(cap) = config.logit_softcap {
                            (self.ops.softcap)(cap as f32, values);
                        }
                        self.at.logits.part_mut(to, len).copy_from_slice(values);
                    }
                }
            };
            let all = Product {
                weights: &self.model.head.weights,
                rows: &self.at.head_rows,
                m: rows,
                granule: 1,
                destination,
            };
            // SAFETY: see above.
            unsafe { product(team, self.ops, &all, sink) };
        }
        team.barrier();
    }
}
