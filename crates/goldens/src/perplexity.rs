//! How well a model predicts a fixed text, for forms of it that cannot agree logit by logit.

use hyprstream_engine::{Backend, LogitsWanted, SequenceStep, StepBatch};
use serde::Deserialize;

/// Tokens of one step.
const STEP: usize = 256;

/// A fixed text of about 4,000 tokens and how transformers predicts it.
#[derive(Debug, Deserialize)]
pub struct Perplexity {
    tokens: Vec<u32>,
    float32: Reference,
    bfloat16: Reference,
}

/// What transformers gives.
#[derive(Debug, Deserialize)]
struct Reference {
    perplexity: f64,
}

impl Perplexity {
    /// The perplexity of transformers in bfloat16.
    pub fn bfloat16(&self) -> f64 {
        self.bfloat16.perplexity
    }

    /// The perplexity of transformers in float32.
    pub fn float32(&self) -> f64 {
        self.float32.perplexity
    }

    /// The backend's own: `exp` of the mean negative log-likelihood of every token but the first,
    /// each after all before it.
    pub fn of(&self, backend: &mut dyn Backend) -> f64 {
        let block_size = backend.spec().block_size;
        let blocks: Vec<u32> = (0..self.tokens.len().div_ceil(block_size) as u32).collect();
        assert!(
            blocks.len() <= backend.spec().num_blocks,
            "{} blocks are needed",
            blocks.len()
        );
        let mut loss = 0.0;
        let mut targets = self.tokens.iter().skip(1);
        for (index, piece) in self.tokens.chunks(STEP).enumerate() {
            let step = SequenceStep {
                tokens: piece.to_vec(),
                position: index * STEP,
                blocks: blocks.clone(),
                logits: LogitsWanted::All,
                ..SequenceStep::default()
            };
            let mut out = backend
                .step(&StepBatch {
                    sequences: vec![step],
                })
                .unwrap();
            for (row, target) in out.rows_mut().zip(&mut targets) {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
                loss += sum.ln() - f64::from(row[*target as usize] - most);
            }
        }
        (loss / (self.tokens.len() - 1) as f64).exp()
    }

    /// Checks that the backend's perplexity is within `share` of `reference`.
    #[track_caller]
    pub fn check(&self, backend: &mut dyn Backend, reference: f64, share: f64) {
        let ours = self.of(backend);
        let difference = ours / reference - 1.0;
        println!(
            "perplexity {ours:.4}, transformers {reference:.4}: {:+.2} %",
            difference * 100.0
        );
        assert!(
            difference.abs() <= share,
            "the perplexity is {ours:.4}, but transformers gives {reference:.4}: {:+.2} %",
            difference * 100.0
        );
    }
}
