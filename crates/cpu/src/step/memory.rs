//! Memory of the activations of a step.

use std::{io, sync::atomic::AtomicUsize};

use super::{activations::Activations, space::scratch_len};
use crate::{
    adapter::{Packed, formats},
    buffer::{Buffer, Shared},
    format::{Format, RowKind},
    kernels::{MAX_ROWS, Ops, partial_len},
    model::Model,
    plan::Plan,
    product::{Rows, multiply_of},
};

/// Memory of the activations, which grows with the largest step.
pub(crate) struct Memory {
    threads: usize,
    x: Buffer<f32>,
    y: Buffer<f32>,
    qkv: Buffer<f32>,
    queries: Buffer<f32>,
    attended: Buffer<f32>,
    inner: Buffer<f32>,
    turns: Buffer<f32>,
    partials: Buffer<f32>,
    scratch: Buffer<f32>,
    hidden_rows: RowBuffer,
    attended_rows: RowBuffer,
    inner_rows: RowBuffer,
    head_rows: RowBuffer,
    low_rows: RowBuffer,
    pub(crate) logits: Buffer<f32>,
    pub(crate) hidden: Buffer<f32>,
    pub(super) joined: Vec<AtomicUsize>,
}

struct RowBuffer {
    kind: RowKind,
    stride: usize,
    data: Buffer<u8>,
}

impl RowBuffer {
    fn new(kind: RowKind, len: usize) -> io::Result<Self> {
        Ok(Self {
            kind,
            stride: kind.stride(len),
            data: Buffer::new(0)?,
        })
    }

    /// Rows of `len` values from now on.
    fn resize(&mut self, len: usize) {
        self.stride = self.kind.stride(len);
    }

    fn rows(&mut self, count: usize) -> io::Result<Rows> {
        self.data.at_least(count * self.stride)?;
        Ok(Rows {
            kind: self.kind,
            data: Shared::new(&mut self.data),
            stride: self.stride,
        })
    }
}

impl Memory {
    /// None yet, for layers whose matrices are kept as `format`.
    pub(crate) fn new(
        model: &Model,
        format: Format,
        ops: &Ops,
        threads: usize,
        head_width: usize,
    ) -> io::Result<Self> {
        let config = &model.config;
        let kind = multiply_of(ops, format).rows;
        let head = multiply_of(ops, model.head.weights.format).rows;
        let low = multiply_of(ops, formats(format).1).rows;
        let empty = || Buffer::new(0);
        Ok(Self {
            threads,
            x: empty()?,
            y: empty()?,
            qkv: empty()?,
            queries: empty()?,
            attended: empty()?,
            inner: empty()?,
            turns: empty()?,
            partials: empty()?,
            scratch: Buffer::new(threads * scratch_len(model, head_width))?,
            hidden_rows: RowBuffer::new(kind, config.hidden_size)?,
            attended_rows: RowBuffer::new(kind, config.num_heads * config.head_dim)?,
            inner_rows: RowBuffer::new(kind, config.intermediate_size)?,
            head_rows: RowBuffer::new(head, config.hidden_size)?,
            low_rows: RowBuffer::new(low, 0)?,
            logits: empty()?,
            hidden: empty()?,
            joined: Vec::new(),
        })
    }

    /// Makes room for the step `plan` with `adapters`.
    pub(super) fn activations(
        &mut self,
        plan: &Plan,
        adapters: &[&Packed],
        model: &Model,
        heads: usize,
        head_width: usize,
    ) -> io::Result<Activations> {
        let config = &model.config;
        let tokens = plan.tokens.len();
        let share = |buffer: &mut Buffer<f32>, len: usize| {
            buffer.at_least(len)?;
            io::Result::Ok(Shared::new(&mut buffer[..]))
        };
        let turns: usize = config.ropes.iter().map(|r| 2 * r.frequencies.len()).sum();
        let joins = plan.tasks.iter().map(|t| t.joins).max().unwrap_or(0) * heads;
        if self.joined.len() < joins {
            self.joined.resize_with(joins, AtomicUsize::default);
        }
        // A step that broke off may have left counts.
        self.joined
            .iter_mut()
            .for_each(|joined| *joined.get_mut() = 0);
        let partials = plan.tasks.iter().map(|t| t.partials).max().unwrap_or(0) * heads;
        // What is quantised is written whole first.
        let before = |rows: &RowBuffer, width: usize| match rows.kind {
            RowKind::Q8 => tokens * width,
            RowKind::F32 | RowKind::Bf16 => 0,
        };
        let inner = before(&self.inner_rows, config.intermediate_size);
        let attended = before(&self.attended_rows, config.num_heads * config.head_dim);
        let width = adapters.iter().map(|adapter| adapter.width).max();
        self.low_rows.resize(width.unwrap_or(0));
        let runs = [&plan.runs, &plan.kept_runs, &plan.head_runs];
        let low_rows = runs.map(|runs| runs.rows(self.threads)).into_iter();
        let low_rows = low_rows.max().unwrap_or(0);
        Ok(Activations {
            x: share(&mut self.x, tokens * config.hidden_size)?,
            y: share(&mut self.y, tokens * config.hidden_size)?,
            qkv: share(&mut self.qkv, tokens * model.columns.all)?,
            queries: share(&mut self.queries, tokens * config.num_heads * head_width)?,
            attended: share(&mut self.attended, attended)?,
            inner: share(&mut self.inner, inner)?,
            turns: share(&mut self.turns, tokens * turns)?,
            partials: share(
                &mut self.partials,
                partials * partial_len(MAX_ROWS, head_width),
            )?,
            scratch: Shared::new(&mut self.scratch),
            scratch_len: scratch_len(model, head_width),
            hidden_rows: self.hidden_rows.rows(tokens)?,
            attended_rows: self.attended_rows.rows(tokens)?,
            inner_rows: self.inner_rows.rows(tokens)?,
            head_rows: self.head_rows.rows(plan.logits.len())?,
            low_rows: self.low_rows.rows(low_rows)?,
            logits: share(&mut self.logits, plan.logits.len() * config.vocab_size)?,
            hidden: share(&mut self.hidden, plan.hidden.len() * config.hidden_size)?,
        })
    }
}
