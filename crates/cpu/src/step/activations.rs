//! Where the activations of a step lie.

use crate::{buffer::Shared, product::Rows};

/// Memory for the activations of a step.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    /// The residual stream, `[tokens, hidden]`.
    pub(super) x: Shared<f32>,
    /// Output of a part before its norm (sandwich norms), `[tokens, hidden]`.
    pub(super) y: Shared<f32>,
    /// Query, key and value, `[tokens, columns]`.
    pub(super) qkv: Shared<f32>,
    /// Queries after their norm and rotation, `[tokens, heads, head_width]`.
    pub(super) queries: Shared<f32>,
    /// Output of attention where it cannot go into `attended_rows` at once,
    /// `[tokens, heads * head_dim]`.
    pub(super) attended: Shared<f32>,
    /// Gated values where they cannot go into `inner_rows` at once, `[tokens, intermediate]`.
    pub(super) inner: Shared<f32>,
    /// Cosines and sines, for each rotary embedding `[tokens, 2, dimensions / 2]`.
    pub(super) turns: Shared<f32>,
    /// Outcomes of chunks that several tasks share.
    pub(super) partials: Shared<f32>,
    /// Space of each thread.
    pub(super) scratch: Shared<f32>,
    pub(super) scratch_len: usize,
    /// Inputs of the multiplications.
    pub(super) hidden_rows: Rows,
    pub(super) attended_rows: Rows,
    pub(super) inner_rows: Rows,
    pub(super) head_rows: Rows,
    /// Between the factors of adapters, a row for each token and adapter of it.
    pub(super) low_rows: Rows,
    pub(super) logits: Shared<f32>,
    pub(super) hidden: Shared<f32>,
}
