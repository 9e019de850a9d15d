//! Ways to run tokens through a backend.

use hyprstream_engine::{AdapterId, Backend, BlockId, LogitsWanted, SequenceStep, StepBatch};

/// How a sequence of tokens is cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All in one step.
    Whole,
    /// In steps of so many tokens.
    Chunks(usize),
    /// In chunks beside other sequences, one of them decoding, one of them prefilling, one that
    /// wants hidden states, on blocks that are scattered over the cache.
    Mixed,
}

impl Way {
    /// Every way that a short sequence is to be run.
    pub const ALL: [Self; 4] = [Self::Whole, Self::Chunks(7), Self::Chunks(1), Self::Mixed];
}

/// Blocks for `tokens` tokens in a row, from the first one on.
fn row(backend: &dyn Backend, tokens: usize) -> Vec<BlockId> {
    let spec = backend.spec();
    let count = tokens.div_ceil(spec.block_size);
    assert!(
        count + 8 <= spec.num_blocks,
        "{} blocks are too few for {tokens} tokens",
        spec.num_blocks
    );
    (0..count as BlockId).collect()
}

/// Every row of logits that `tokens` give, one for each.
///
/// The backend needs blocks for all of them and eight more.
pub fn logits(backend: &mut dyn Backend, tokens: &[u32], way: Way) -> Vec<Vec<f32>> {
    logits_with(backend, tokens, way, &[])
}

/// The same with attached adapters and their scales; what runs beside it has none.
pub fn logits_with(
    backend: &mut dyn Backend,
    tokens: &[u32],
    way: Way,
    adapters: &[(AdapterId, f32)],
) -> Vec<Vec<f32>> {
    let mut blocks = row(backend, tokens.len());
    let spare = blocks.len() as BlockId;
    if way == Way::Mixed {
        // Scattered, backwards, and none of them where the others are.
        let (even, odd): (Vec<_>, Vec<_>) = blocks.iter().partition(|b| **b % 2 == 0);
        blocks = odd.into_iter().rev().chain(even).collect();
    }
    let size = match way {
        Way::Whole => tokens.len(),
        Way::Chunks(size) => size,
        Way::Mixed => 9,
    };
    let block_size = backend.spec().block_size;
    let mut rows = Vec::new();
    for (index, piece) in tokens.chunks(size).enumerate() {
        let ours = SequenceStep {
            tokens: piece.to_vec(),
            position: index * size,
            blocks: blocks.clone(),
            logits: LogitsWanted::All,
            adapters: adapters.to_vec(),
        };
        let (sequences, others) = if way == Way::Mixed {
            let decoding = SequenceStep {
                tokens: vec![5],
                position: index % block_size,
                blocks: vec![spare],
                logits: LogitsWanted::Last,
                ..SequenceStep::default()
            };
            let prefilling = SequenceStep {
                tokens: vec![7; block_size + 5],
                position: 0,
                blocks: vec![spare + 3, spare + 1],
                logits: LogitsWanted::None,
                ..SequenceStep::default()
            };
            let embedded = SequenceStep {
                tokens: vec![9; 3],
                position: 0,
                blocks: vec![spare + 2],
                logits: LogitsWanted::Hidden,
                ..SequenceStep::default()
            };
            (vec![decoding, embedded, ours, prefilling], 1)
        } else {
            (vec![ours], 0)
        };
        let batch = StepBatch { sequences };
        let (num_rows, num_hidden) = (batch.num_rows(), batch.num_hidden_rows());
        let mut out = backend.step(&batch).unwrap();
        assert_eq!(out.num_rows(), num_rows);
        assert_eq!(out.num_hidden_rows(), num_hidden);
        rows.extend(out.rows_mut().skip(others).map(|row| row.to_vec()));
    }
    rows
}

/// Every hidden state of `tokens`, `size` of them in a step.
pub fn hidden(backend: &mut dyn Backend, tokens: &[u32], size: usize) -> Vec<Vec<f32>> {
    let blocks = row(backend, tokens.len());
    let mut rows = Vec::new();
    for (index, piece) in tokens.chunks(size).enumerate() {
        let step = SequenceStep {
            tokens: piece.to_vec(),
            position: index * size,
            blocks: blocks.clone(),
            logits: LogitsWanted::Hidden,
            ..SequenceStep::default()
        };
        let out = backend
            .step(&StepBatch {
                sequences: vec![step],
            })
            .unwrap();
        assert_eq!((out.num_rows(), out.num_hidden_rows()), (0, piece.len()));
        rows.extend(out.hidden_rows().map(<[f32]>::to_vec));
    }
    rows
}

/// The `count` most likely tokens after `prompt`, each after all before it.
pub fn greedy(backend: &mut dyn Backend, prompt: &[u32], count: usize) -> Vec<u32> {
    let blocks = row(backend, prompt.len() + count);
    let mut tokens = prompt.to_vec();
    let mut position = 0;
    for _ in 0..count {
        let step = SequenceStep {
            tokens: tokens[position..].to_vec(),
            position,
            blocks: blocks.clone(),
            logits: LogitsWanted::Last,
            ..SequenceStep::default()
        };
        position = tokens.len();
        let mut out = backend
            .step(&StepBatch {
                sequences: vec![step],
            })
            .unwrap();
        let row = out.rows_mut().next().unwrap();
        let best = (0..row.len())
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}
