//! What an adapter is worth on data that it does not learn from.

use super::{TrainError, dpo, micro::Computer, step};
use crate::{learner::Policy, samples::Subset};

/// Units that are read at once.
const UNITS: usize = 64;

/// How good an adapter is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judgement {
    /// Mean over all tokens that count, or over all pairs.
    pub(super) loss: f64,
    pub(super) accuracy: f64,
}

pub(super) fn sft(
    computer: &mut Computer<'_>,
    data: &Subset,
    policy: Policy<'_>,
) -> Result<Judgement, TrainError> {
    let mut scores = Vec::new();
    for units in units(data) {
        scores.extend(computer.score(&step::segments(data, &units)?, policy)?);
    }
    let (loss, accuracy) = step::mean(&scores);
    Ok(Judgement { loss, accuracy })
}

pub(super) fn dpo(
    computer: &mut Computer<'_>,
    data: &Subset,
    policy: Policy<'_>,
    reference: Policy<'_>,
    beta: f64,
) -> Result<Judgement, TrainError> {
    let mut pairs = Vec::new();
    for units in units(data) {
        let segments = step::segments(data, &units)?;
        let now = computer.score(&segments, policy)?;
        let before = computer.score(&segments, reference)?;
        pairs.extend(dpo::pairs(&now, &before, beta));
    }
    let count = pairs.len() as f64;
    Ok(Judgement {
        loss: pairs.iter().map(|pair| pair.loss).sum::<f64>() / count,
        accuracy: pairs.iter().filter(|pair| pair.margin > 0.0).count() as f64 / count,
    })
}

/// All units, a few at a time.
fn units(data: &Subset) -> impl Iterator<Item = Vec<u32>> {
    let len = data.len() as u32;
    (0..len)
        .step_by(UNITS)
        .map(move |from| (from..len.min(from + UNITS as u32)).collect())
}
