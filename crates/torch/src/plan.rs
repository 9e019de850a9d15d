//! One step's batch, checked and laid out for the device.

use hyprstream_engine::{BackendError, LogitsWanted, ModelSpec, StepBatch};
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
    /// Which tokens yield logits.
    pub(crate) logits: Rows,
    /// Which tokens yield hidden states.
    pub(crate) hidden: Rows,
    /// The sequences.
    pub(crate) spans: Vec<Span>,
}

/// Some of the tokens of a step, in order.
#[derive(Debug)]
pub(crate) enum Rows {
    /// None of them.
    None,
    /// All of them.
    All,
    /// Those of these indices, int64.
    Some(Tensor),
}

impl Rows {
    fn new(rows: &[i64], num_tokens: usize, device: Device) -> Result<Self, TchError> {
        Ok(match rows.len() {
            0 => Self::None,
            count if count == num_tokens => Self::All,
            _ => Self::Some(Tensor::f_from_slice(rows)?.f_to_device(device)?),
        })
    }

    /// These rows of `x`, `[tokens, width]`, or `None` if there are none.
    pub(crate) fn of(&self, x: &Tensor) -> Result<Option<Tensor>, TchError> {
        match self {
            Self::None => Ok(None),
            Self::All => Ok(Some(x.shallow_clone())),
            Self::Some(rows) => x.f_index_select(0, rows).map(Some),
        }
    }
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
    /// What the new tokens see, for each of the model's windows.
    pub(crate) views: Vec<View>,
}

/// What the new tokens of a sequence see through one window.
#[derive(Debug)]
pub(crate) struct View {
    /// First position that any of them sees.
    pub(crate) start: i64,
    /// Which of the positions from there on.
    pub(crate) seen: Seen,
}

/// Which of `n` positions each of `m` new tokens sees.
#[derive(Debug)]
pub(crate) enum Seen {
    /// All: there is one new token.
    All,
    /// Itself and all before it; `n` is `m`.
    Triangle,
    /// Where this is true, `[m, n]`.
    Mask(Tensor),
}

impl Plan {
    /// Lays `batch` out for a model whose layers look through `windows`.
    ///
    /// # Errors
    /// [`BackendError::Step`] when the batch breaks the rules of `SequenceStep`, before
    /// anything is computed.
    pub(crate) fn new(
        batch: &StepBatch,
        spec: &ModelSpec,
        windows: &[Option<usize>],
        device: Device,
    ) -> Result<Self, BackendError> {
        if batch.sequences.is_empty() {
            return Err(BackendError::Step("the batch is empty".into()));
        }
        for sequence in &batch.sequences {
            sequence.check(spec)?;
        }
        Self::lay_out(batch, windows, device).map_err(|error| step_error(&error))
    }

    fn lay_out(
        batch: &StepBatch,
        windows: &[Option<usize>],
        device: Device,
    ) -> Result<Self, TchError> {
        let count = batch.num_tokens();
        let mut tokens = Vec::with_capacity(count);
        let mut positions = Vec::with_capacity(count);
        let mut slots = Vec::with_capacity(count);
        let (mut logits, mut hidden) = (Vec::new(), Vec::new());
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
                LogitsWanted::None => {}
                LogitsWanted::Last => logits.push(first + count as i64 - 1),
                LogitsWanted::All => logits.extend(first..first + count as i64),
                LogitsWanted::Hidden => hidden.extend(first..first + count as i64),
            }
            spans.push(Span {
                first,
                count: count as i64,
                length: end as i64,
                blocks: block_list(&sequence.blocks[..end.div_ceil(BLOCK_SIZE)], device)?,
                views: windows
                    .iter()
                    .map(|window| view(sequence.position, count, *window, device))
                    .collect::<Result<_, _>>()?,
            });
        }
        let upload = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        Ok(Self {
            logits: Rows::new(&logits, tokens.len(), device)?,
            hidden: Rows::new(&hidden, tokens.len(), device)?,
            tokens: upload(&tokens)?,
            positions: upload(&positions)?,
            slots: upload(&slots)?,
            spans,
        })
    }
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

/// What `count` new tokens from `position` on see, each at most `window` positions.
pub(crate) fn view(
    position: usize,
    count: usize,
    window: Option<usize>,
    device: Device,
) -> Result<View, TchError> {
    let end = position + count;
    let window = window.unwrap_or(end).min(end);
    let start = (position + 1).saturating_sub(window);
    let seen = if count == 1 {
        Seen::All
    } else if position == 0 && window == end {
        Seen::Triangle
    } else {
        // Token `i` is column `diagonal + i`.
        let diagonal = (position - start) as i64;
        let size = [count as i64, (end - start) as i64];
        let mask = Tensor::f_ones(size, (Kind::Bool, device))?
            .f_tril(diagonal)?
            .f_triu(diagonal - window as i64 + 1)?;
        Seen::Mask(mask)
    };
    Ok(View {
        start: start as i64,
        seen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions that each new token sees.
    fn seen(position: usize, count: usize, window: Option<usize>) -> Vec<Vec<usize>> {
        let view = view(position, count, window, Device::Cpu).unwrap();
        let start = view.start as usize;
        (0..count)
            .map(|token| {
                let sees = |p: usize| match &view.seen {
                    Seen::All => true,
                    Seen::Triangle => p <= token,
                    Seen::Mask(mask) => mask.int64_value(&[token as i64, p as i64]) == 1,
                };
                let positions = 0..position + count - start;
                positions.filter(|p| sees(*p)).map(|p| start + p).collect()
            })
            .collect()
    }

    #[test]
    fn every_token_sees_its_window_and_nothing_after_itself() {
        for position in [0_usize, 1, 5, 30] {
            for count in [1, 2, 7] {
                for window in [None, Some(1), Some(3), Some(6), Some(100)] {
                    let expected: Vec<Vec<usize>> = (position..position + count)
                        .map(|p| ((p + 1).saturating_sub(window.unwrap_or(p + 1))..=p).collect())
                        .collect();
                    assert_eq!(
                        seen(position, count, window),
                        expected,
                        "{count} from {position} on through {window:?}"
                    );
                }
            }
        }
    }
}
