//! A thread's own space.

use crate::{
    buffer::Shared,
    kernels::{LANES, MAX_ROWS, SCRATCH, partial_len},
    model::Model,
    product::BLOCK_VALUES,
};

/// Values of scratch space of a thread.
pub(super) fn scratch_len(model: &Model, head_width: usize) -> usize {
    let config = &model.config;
    let row = (config.num_heads * config.head_dim)
        .max(config.hidden_size)
        .max(config.intermediate_size);
    let partials = 2 * partial_len(MAX_ROWS, head_width);
    (SCRATCH + BLOCK_VALUES + partials + row).next_multiple_of(LANES)
}

/// A thread's space, taken apart.
pub(super) struct Space {
    pub(super) attention: *mut f32,
    pub(super) partials: &'static mut [f32],
    /// Outputs that adapters change, [`BLOCK_VALUES`] of them.
    pub(super) outputs: &'static mut [f32],
    pub(super) row: &'static mut [f32],
}

impl Space {
    /// Of the thread `index`, in `scratch`, where each thread has `len` values.
    ///
    /// # Safety
    /// Only that thread calls this in a step, and once at a time.
    pub(super) unsafe fn of(
        scratch: Shared<f32>,
        len: usize,
        index: usize,
        head_width: usize,
    ) -> Self {
        // SAFETY: the caller's promise: each thread has a part of its own.
        let all = unsafe { scratch.part_mut(index * len, len) };
        let (attention, rest) = all.split_at_mut(SCRATCH);
        let (outputs, rest) = rest.split_at_mut(BLOCK_VALUES);
        let (partials, row) = rest.split_at_mut(2 * partial_len(MAX_ROWS, head_width));
        Self {
            attention: attention.as_mut_ptr(),
            partials,
            outputs,
            row,
        }
    }
}
