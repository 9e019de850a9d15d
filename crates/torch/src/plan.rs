//! One step's batch, checked and laid out for the device.

use hyprstream_engine::{BackendError, LogitsWanted, ModelSpec, SequenceStep, StepBatch};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    cache::{BLOCK_SIZE, BlockList},
    error::step_error,
};

/// All sequences of a step, one after the other.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Tokens, `[tokens]`, int64.
    pub(crate) tokens: Tensor,
    /// Position of each in its sequence, `[tokens]`, int64.
    pub(crate) positions: Tensor,
    /// Slot of each in the cache, `[tokens]`, int64.
    pub(crate) slots: Tensor,
    /// Which tokens yield logits, `[rows]`, int64; `None` for all.
    pub(crate) rows: Option<Tensor>,
    /// Number of rows of logits.
    pub(crate) num_rows: usize,
    /// The sequences.
    pub(crate) spans: Vec<Span>,
}

/// One sequence of a step.
#[derive(Debug)]
pub(crate) struct Span {
    /// Index of its first new token in the batch.
    pub(crate) first: i64,
    /// Number of new tokens.
    pub(crate) count: i64,
    /// Positions that the last new token sees, itself included.
    pub(crate) length: i64,
    /// Where its keys and values are.
    pub(crate) blocks: BlockList,
    /// Which positions each new token sees, `[count, length]`, where this is neither all of them
    /// nor the lower triangle.
    pub(crate) mask: Option<Tensor>,
}

impl Plan {
    /// Lays `batch` out.
    ///
    /// # Errors
    /// [`BackendError::Step`] when the batch breaks the rules of [`SequenceStep`], before
    /// anything is computed.
    pub(crate) fn new(
        batch: &StepBatch,
        spec: &ModelSpec,
        device: Device,
    ) -> Result<Self, BackendError> {
        if batch.sequences.is_empty() {
            return Err(BackendError::Step("the batch is empty".into()));
        }
        for sequence in &batch.sequences {
            if sequence.logits == LogitsWanted::Hidden {
                return Err(BackendError::Step("hidden states are not given".into()));
            }
            check(sequence, spec).map_err(BackendError::Step)?;
        }
        Self::lay_out(batch, device).map_err(|error| step_error(&error))
    }

    fn lay_out(batch: &StepBatch, device: Device) -> Result<Self, TchError> {
        let count = batch.num_tokens();
        let mut tokens = Vec::with_capacity(count);
        let mut positions = Vec::with_capacity(count);
        let mut slots = Vec::with_capacity(count);
        let mut rows = Vec::new();
        let mut spans = Vec::with_capacity(batch.sequences.len());
        for sequence in &batch.sequences {
            let first = tokens.len() as i64;
            let count = sequence.tokens.len();
            let end = sequence.position + count;
            tokens.extend(sequence.tokens.iter().map(|&t| i64::from(t)));
            positions.extend((sequence.position..end).map(|p| p as i64));
            slots.extend((sequence.position..end).map(|p| {
                i64::from(sequence.blocks[p / BLOCK_SIZE]) * BLOCK_SIZE as i64
                    + (p % BLOCK_SIZE) as i64
            }));
            match sequence.logits {
                LogitsWanted::None | LogitsWanted::Hidden => {}
                LogitsWanted::Last => rows.push(first + count as i64 - 1),
                LogitsWanted::All => rows.extend(first..first + count as i64),
            }
            spans.push(Span {
                first,
                count: count as i64,
                length: end as i64,
                blocks: block_list(&sequence.blocks[..end.div_ceil(BLOCK_SIZE)], device)?,
                mask: (count > 1 && sequence.position > 0)
                    .then(|| causal_mask(sequence.position, count, device))
                    .transpose()?,
            });
        }
        let upload = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        let num_rows = rows.len();
        Ok(Self {
            rows: (num_rows < tokens.len())
                .then(|| upload(&rows))
                .transpose()?,
            num_rows,
            tokens: upload(&tokens)?,
            positions: upload(&positions)?,
            slots: upload(&slots)?,
            spans,
        })
    }
}

/// Refuses what would make libtorch read or write out of bounds.
fn check(sequence: &SequenceStep, spec: &ModelSpec) -> Result<(), String> {
    let end = sequence.position.saturating_add(sequence.tokens.len());
    if sequence.tokens.is_empty() {
        return Err("a sequence has no new tokens".into());
    }
    if end > spec.max_positions {
        return Err(format!(
            "a sequence of {end} tokens exceeds {}",
            spec.max_positions
        ));
    }
    if let Some(token) = sequence
        .tokens
        .iter()
        .find(|t| **t as usize >= spec.vocab_size)
    {
        return Err(format!(
            "the token {token} is not below {}",
            spec.vocab_size
        ));
    }
    if sequence.blocks.len() < end.div_ceil(BLOCK_SIZE) {
        return Err(format!(
            "{} blocks cannot hold {end} tokens",
            sequence.blocks.len()
        ));
    }
    if let Some(block) = sequence
        .blocks
        .iter()
        .find(|b| **b as usize >= spec.num_blocks)
    {
        return Err(format!(
            "the block {block} is not below {}",
            spec.num_blocks
        ));
    }
    Ok(())
}

fn block_list(blocks: &[u32], device: Device) -> Result<BlockList, TchError> {
    if blocks.windows(2).all(|pair| pair[1] == pair[0] + 1) {
        return Ok(BlockList::Run(i64::from(blocks[0])));
    }
    let indices: Vec<i64> = blocks.iter().map(|&b| i64::from(b)).collect();
    Ok(BlockList::Scattered(
        Tensor::f_from_slice(&indices)?.f_to_device(device)?,
    ))
}

/// True where token `i` of a piece that begins at `position` sees position `j`.
fn causal_mask(position: usize, count: usize, device: Device) -> Result<Tensor, TchError> {
    let size = [count as i64, (position + count) as i64];
    Tensor::f_ones(size, (Kind::Bool, device))?.f_tril(position as i64)
}
