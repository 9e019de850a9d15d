//! Pairs of answers, one preferred to the other.

use std::{fs, path::PathBuf};

use hyprstream_training::{Batch, Dropout, Learner, Parameters, Policy, Score};
use serde::Deserialize;
use serde_json::Value;

use super::{
    GRADIENT_TOLERANCE, LOSS_TOLERANCE,
    case::{StoredSegment, tensors},
    worst_gradient,
};
use crate::{Adapters, data, read};

/// TRL's loss of direct preference optimisation, sigmoid without smoothing, of a random adapter and
/// two pairs; the reference is the model without it.
///
/// ```text
/// d_i = (log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))
/// loss = mean of -log sigmoid(beta d_i)
/// ```
///
/// with `p` the policy, `q` the reference, and sums over the answers' tokens
/// (<https://arxiv.org/abs/2305.18290>, eq. 7).
#[derive(Debug)]
pub struct Preferences {
    dir: PathBuf,
    parameters: Parameters,
    values: Vec<f32>,
    gradient: Vec<f32>,
    description: Description,
}

#[derive(Debug, Deserialize)]
struct Description {
    model: String,
    config: Value,
    beta: f64,
    /// Chosen, rejected.
    pairs: Vec<[StoredSegment; 2]>,
    first: f64,
    loss: f64,
    /// Of the answers of each pair, chosen and rejected.
    policy: Vec<[f64; 2]>,
    reference: Vec<[f64; 2]>,
}

impl Preferences {
    /// The only ones.
    pub fn read() -> Self {
        let folder = data().join("training");
        let description: Description = read(&folder.join("dpo.json"));
        let file = fs::read(folder.join("dpo.safetensors")).unwrap();
        let adapters = Adapters::read(&description.model);
        let (parameters, values, gradient) = tensors(&adapters, &file, "", &description.config);
        Self {
            dir: data().join(&description.model),
            parameters,
            values,
            gradient,
            description,
        }
    }

    /// The model's folder.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Where the adapter's numbers lie.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The numbers of the adapter.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Derivatives of [`Self::loss`].
    pub fn gradient(&self) -> &[f32] {
        &self.gradient
    }

    /// What the differences are multiplied by.
    pub fn beta(&self) -> f64 {
        self.description.beta
    }

    /// The loss before anything is learnt, with B of 0: ln 2.
    pub fn first_loss(&self) -> f64 {
        self.description.first
    }

    /// The loss with the random adapter.
    pub fn loss(&self) -> f64 {
        self.description.loss
    }

    /// Log-probabilities of the answers of each pair, chosen and rejected, with the adapter.
    pub fn policy(&self) -> &[[f64; 2]] {
        &self.description.policy
    }

    /// The same without it.
    pub fn reference(&self) -> &[[f64; 2]] {
        &self.description.reference
    }

    /// Chosen and rejected answers in turn, each of this weight.
    pub fn batch(&self) -> Batch {
        let segments = self.description.pairs.iter().flatten().zip(0..);
        Batch {
            segments: segments
                .map(|(stored, sample)| stored.to_segment(sample, 1.0))
                .collect(),
        }
    }

    /// Scores of base and adapter are TRL's, and the gradient is, when the weights of the segments
    /// are the derivatives of the loss by theirs.
    #[track_caller]
    pub fn check(&self, learner: &mut dyn Learner) {
        let mut batch = self.batch();
        let reference = learner.score(&batch, Policy::Base).unwrap();
        let policy = learner.score(&batch, Policy::Adapter(&self.values));
        let policy = policy.unwrap();
        check_scores(&reference, self.reference());
        check_scores(&policy, self.policy());
        let pairs = self.policy().len() as f64;
        let mut loss = 0.0;
        let both = policy.chunks(2).zip(reference.chunks(2));
        for (segments, (policy, reference)) in batch.segments.chunks_mut(2).zip(both) {
            let learnt = |index: usize| reference[index].loss - policy[index].loss;
            let odds = (self.beta() * (learnt(0) - learnt(1))).exp();
            loss += (1.0 + 1.0 / odds).ln() / pairs;
            let weight = (self.beta() / (1.0 + odds) / pairs) as f32;
            segments[0].weight = weight;
            segments[1].weight = -weight;
        }
        let off = (loss / self.loss() - 1.0).abs();
        assert!(off < LOSS_TOLERANCE, "{loss} is not {}", self.loss());
        let mut gradient = vec![0.0; self.parameters.len];
        learner
            .accumulate(&batch, &self.values, Dropout::NONE, &mut gradient)
            .unwrap();
        let worst = worst_gradient(&self.parameters, &gradient, &self.gradient);
        assert!(worst.error < GRADIENT_TOLERANCE, "{worst:?}");
    }
}

#[track_caller]
fn check_scores(ours: &[Score], theirs: &[[f64; 2]]) {
    assert_eq!(ours.len(), 2 * theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs.as_flattened()) {
        let off = (ours.loss / -theirs - 1.0).abs();
        assert!(off < LOSS_TOLERANCE, "{ours:?} is not {}", -theirs);
    }
}
