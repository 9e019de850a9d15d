//! What an adapter is worth on data that it does not learn from.

use super::{Control, TrainError, dpo, micro::Computer, step};
use crate::{
    learner::{Policy, Score, Segment},
    samples::Subset,
};

/// Units that are read at once.
const UNITS: usize = 64;

/// How good an adapter is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judgement {
    /// Mean over all tokens that count, or over all pairs.
    pub(super) loss: f64,
    pub(super) accuracy: f64,
}

/// How good it is, or `None` where `control` ended it.
pub(super) fn sft(
    computer: &mut Computer<'_>,
    data: &Subset,
    policy: Policy<'_>,
    control: &Control,
) -> Result<Option<Judgement>, TrainError> {
    let mut scores = Vec::new();
    for units in units(data) {
        let Some(some) = score(computer, &step::segments(data, &units)?, policy, control)? else {
            return Ok(None);
        };
        scores.extend(some);
    }
    let (loss, accuracy) = step::mean(&scores);
    Ok(Some(Judgement { loss, accuracy }))
}

/// The same of pairs, beside the reference.
pub(super) fn dpo(
    computer: &mut Computer<'_>,
    data: &Subset,
    [policy, reference]: [Policy<'_>; 2],
    beta: f64,
    control: &Control,
) -> Result<Option<Judgement>, TrainError> {
    let mut pairs = Vec::new();
    for units in units(data) {
        let segments = step::segments(data, &units)?;
        let now = score(computer, &segments, policy, control)?;
        let before = score(computer, &segments, reference, control)?;
        let (Some(now), Some(before)) = (now, before) else {
            return Ok(None);
        };
        pairs.extend(dpo::pairs(&now, &before, beta));
    }
    let count = pairs.len() as f64;
    Ok(Some(Judgement {
        loss: pairs.iter().map(|pair| pair.loss).sum::<f64>() / count,
        accuracy: pairs.iter().filter(|pair| pair.margin > 0.0).count() as f64 / count,
    }))
}

/// The scores of `segments`, or `None` where `control` ended it.
///
/// What is computed at once is what [`Computer::score`] would compute at once of all of them, so that
/// looking for the end between changes no bit.
fn score(
    computer: &mut Computer<'_>,
    segments: &[Segment],
    policy: Policy<'_>,
    control: &Control,
) -> Result<Option<Vec<Score>>, TrainError> {
    let mut scores = Vec::with_capacity(segments.len());
    while scores.len() < segments.len() {
        if control.is_ended() {
            return Ok(None);
        }
        let rest = &segments[scores.len()..];
        let first = computer.first(rest);
        scores.extend(computer.score(&rest[..first], policy)?);
    }
    Ok(Some(scores))
}

/// All units, a few at a time.
fn units(data: &Subset) -> impl Iterator<Item = Vec<u32>> {
    let len = data.len() as u32;
    (0..len)
        .step_by(UNITS)
        .map(move |from| (from..len.min(from + UNITS as u32)).collect())
}
