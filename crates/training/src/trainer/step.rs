//! Loss and gradient of one step.

use super::{TrainError, dpo, micro::Computer};
use crate::{
    learner::{Dropout, Policy, Score, Segment},
    samples::Subset,
};

/// What a step came to, before the optimiser.
#[derive(Debug)]
pub(super) struct Step {
    /// Mean over the tokens that count, or over pairs.
    pub(super) loss: f64,
    pub(super) accuracy: f64,
    pub(super) gradient: Vec<f32>,
    pub(super) tokens: u64,
    pub(super) targets: u64,
}

impl Step {
    /// The mean over the tokens of the whole step that count, however it is cut into parts.
    pub(super) fn sft(
        computer: &mut Computer<'_>,
        data: &Subset,
        units: &[u32],
        values: &[f32],
        dropout: Dropout,
    ) -> Result<Self, TrainError> {
        let mut segments = segments(data, units)?;
        let targets = targets(&segments);
        let weight = (1.0 / targets as f64) as f32;
        for segment in &mut segments {
            segment.weight = weight;
        }
        let (scores, gradient) = computer.accumulate(&segments, values, dropout)?;
        let (loss, accuracy) = mean(&scores);
        Ok(Self {
            loss,
            accuracy,
            gradient,
            tokens: tokens(&segments),
            targets,
        })
    }

    /// The mean over pairs.
    pub(super) fn dpo(
        computer: &mut Computer<'_>,
        data: &Subset,
        units: &[u32],
        values: &[f32],
        reference: Policy<'_>,
        beta: f64,
    ) -> Result<Self, TrainError> {
        let mut segments = segments(data, units)?;
        let now = computer.score(&segments, Policy::Adapter(values))?;
        let before = computer.score(&segments, reference)?;
        let pairs = dpo::pairs(&now, &before, beta);
        let count = pairs.len() as f64;
        for (segments, pair) in segments.chunks_exact_mut(2).zip(&pairs) {
            let weight = (pair.slope / count) as f32;
            segments[0].weight = weight;
            segments[1].weight = -weight;
        }
        let (_, gradient) = computer.accumulate(&segments, values, Dropout::NONE)?;
        Ok(Self {
            loss: pairs.iter().map(|pair| pair.loss).sum::<f64>() / count,
            accuracy: pairs.iter().filter(|pair| pair.margin > 0.0).count() as f64 / count,
            gradient,
            tokens: tokens(&segments),
            targets: targets(&segments),
        })
    }
}

/// The samples of these units, in order, each with the weight 1.
pub(super) fn segments(data: &Subset, units: &[u32]) -> Result<Vec<Segment>, TrainError> {
    let mut segments = Vec::with_capacity(units.len());
    for &unit in units {
        let number = data.number(unit);
        let samples = data.read(unit);
        let samples = samples.map_err(|source| TrainError::Sample { number, source })?;
        let each = samples.len() as u64;
        for (index, sample) in samples.into_iter().enumerate() {
            segments.push(Segment {
                sample: u64::from(number) * each + index as u64,
                tokens: sample.tokens,
                trained: sample.trained,
                weight: 1.0,
            });
        }
    }
    Ok(segments)
}

/// Loss and accuracy over all tokens that count.
pub(super) fn mean(scores: &[Score]) -> (f64, f64) {
    let targets: u64 = scores.iter().map(|s| u64::from(s.tokens)).sum();
    let correct: u64 = scores.iter().map(|s| u64::from(s.correct)).sum();
    let loss: f64 = scores.iter().map(|s| s.loss).sum();
    (loss / targets as f64, correct as f64 / targets as f64)
}

fn tokens(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| s.tokens.len() as u64).sum()
}

fn targets(segments: &[Segment]) -> u64 {
    let each = |s: &Segment| s.trained.iter().filter(|trained| **trained).count() as u64;
    segments.iter().map(each).sum()
}
