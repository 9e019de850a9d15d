//! What every phase of a step needs.

use std::{io, sync::atomic::AtomicUsize};

use hyprstream_engine::StepBatch;

use super::{activations::Activations, memory::Memory, space::Space};
use crate::{
    adapter::Packed,
    buffer::Shared,
    cache::{Cache, SharedCache},
    kernels::{NormArgs, Ops},
    model::Model,
    plan::{Heads, Plan, Runs},
    pool::Team,
};

/// A step in progress. Every thread has this and runs its phases.
///
/// # Safety
/// Of the calls into `ops`, in all phases: the backend was made for kernels that this processor has
/// ([`Ops::of`]). Of the parts of shared buffers: a piece of [`Team::each`] belongs to one thread,
/// and a barrier lies between the phase that writes and the one that reads.
pub(crate) struct Step<'a> {
    pub(super) ops: &'a Ops,
    pub(super) model: &'a Model,
    pub(super) heads: &'a [Heads],
    pub(super) batch: &'a StepBatch,
    pub(super) plan: &'a Plan,
    /// Rows of activations: all tokens of the plan, and at the end those it keeps.
    pub(super) tokens: usize,
    pub(super) cache: SharedCache,
    pub(super) half_cache: bool,
    /// Width of a head in the cache, in multiples of 16.
    pub(super) head_width: usize,
    pub(super) block_bytes: usize,
    pub(super) at: Activations,
    /// The adapters of the plan.
    pub(super) adapters: &'a [&'a Packed],
    /// Which of the rows of activations have which adapters.
    pub(super) runs: &'a Runs,
    /// Finished tasks of each join and heads.
    pub(super) joined: &'a [AtomicUsize],
    /// Where the squares of the inputs of each [`crate::model::Part`] are to be summed over the
    /// tokens.
    pub(super) moments: Option<[Shared<f32>; 4]>,
}

/// What a step computes.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) batch: &'a StepBatch,
    /// Of the batch.
    pub(crate) plan: &'a Plan,
    /// Those that the plan names, in its order.
    pub(crate) adapters: &'a [&'a Packed],
}

impl<'a> Step<'a> {
    /// A step of this work.
    ///
    /// # Errors
    /// There is no memory for its activations.
    pub(crate) fn new(
        ops: &'a Ops,
        model: &'a Model,
        heads: &'a [Heads],
        Work {
            batch,
            plan,
            adapters,
        }: Work<'a>,
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
            at: memory.activations(plan, adapters, model, heads.len(), shape.head_dim)?,
            adapters,
            runs: &plan.runs,
            joined: &memory.joined,
            moments: None,
        })
    }

    /// The space of this thread.
    pub(super) fn space(&self, team: &Team<'_>) -> Space {
        let (scratch, len) = (self.at.scratch, self.at.scratch_len);
        // SAFETY: a thread takes it once, when it begins.
        unsafe { Space::of(scratch, len, team.index, self.head_width) }
    }

    /// The same step, which sums the squares of the inputs of each part into `moments` as well.
    pub(crate) fn measuring(self, moments: [Shared<f32>; 4]) -> Self {
        Self {
            moments: Some(moments),
            ..self
        }
    }

    /// Row `row` of a buffer of rows of `len` values.
    ///
    /// # Safety
    /// See [`Step`].
    pub(super) unsafe fn row<'r>(buffer: Shared<f32>, row: usize, len: usize) -> &'r mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { buffer.part_mut(row * len, len) }
    }

    /// # Safety
    /// See [`Step`].
    pub(super) unsafe fn normalize(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let eps = self.model.config.norm_eps as f32;
        // SAFETY: the caller's promise.
        unsafe { (self.ops.norm)(&NormArgs { x, weight, eps }, out) }
    }

    /// A phase over all tokens, a few at a time.
    pub(super) fn each_token(&self, team: &Team<'_>, mut work: impl FnMut(usize)) {
        const FEW: usize = 8;
        let tokens = self.tokens;
        let size = if tokens > 4 * FEW { FEW } else { 1 };
        team.each(tokens.div_ceil(size), |piece| {
            (piece * size..((piece + 1) * size).min(tokens)).for_each(&mut work);
        });
    }
}
