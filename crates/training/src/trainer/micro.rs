//! Segments in parts that fit into memory.

use crate::{
    learner::{Batch, Dropout, LearnError, Learner, Policy, Score, Segment},
    trainer::{Event, Observer, TrainError},
};

/// Computes any number of segments, as many at once as fit.
pub(super) struct Computer<'a> {
    pub(super) learner: &'a mut dyn Learner,
    pub(super) observer: &'a mut dyn Observer,
    /// Most tokens at once.
    pub(super) limit: &'a mut usize,
}

impl Computer<'_> {
    /// How many of `segments` are computed at once first.
    pub(super) fn first(&self, segments: &[Segment]) -> usize {
        count(segments, *self.limit)
    }

    /// The scores of `segments`, in their order.
    pub(super) fn score(
        &mut self,
        segments: &[Segment],
        policy: Policy<'_>,
    ) -> Result<Vec<Score>, TrainError> {
        loop {
            let mut scores = Vec::with_capacity(segments.len());
            let mut failed = None;
            for batch in batches(segments, *self.limit) {
                match self.learner.score(&batch, policy) {
                    Ok(some) => scores.extend(some),
                    Err(error) => {
                        failed = Some((batch, error));
                        break;
                    }
                }
            }
            match failed {
                None => return checked(scores, segments),
                Some((batch, error)) => self.halve(&batch, error)?,
            }
        }
    }

    /// The scores of `segments`, in their order, and the gradient of the sum of their weighted
    /// losses.
    pub(super) fn accumulate(
        &mut self,
        segments: &[Segment],
        values: &[f32],
        dropout: Dropout,
    ) -> Result<(Vec<Score>, Vec<f32>), TrainError> {
        loop {
            let mut gradient = vec![0.0; values.len()];
            let mut scores = Vec::with_capacity(segments.len());
            let mut failed = None;
            for batch in batches(segments, *self.limit) {
                let some = self
                    .learner
                    .accumulate(&batch, values, dropout, &mut gradient);
                match some {
                    Ok(some) => scores.extend(some),
                    Err(error) => {
                        failed = Some((batch, error));
                        break;
                    }
                }
            }
            match failed {
                None => return Ok((checked(scores, segments)?, gradient)),
                // The gradient is worth nothing now: all of it is computed again.
                Some((batch, error)) => self.halve(&batch, error)?,
            }
        }
    }

    /// Sees to it that this batch is not tried again, if that can help.
    fn halve(&mut self, batch: &Batch, error: LearnError) -> Result<(), TrainError> {
        let LearnError::OutOfMemory { message, .. } = error else {
            return Err(TrainError::Learner(error));
        };
        let tokens = batch.tokens();
        if batch.segments.len() == 1 {
            return Err(TrainError::TooLong { tokens, message });
        }
        *self.limit = tokens.min(*self.limit) / 2;
        self.observer.hear(Event::Halved {
            tokens: *self.limit,
            message: &message,
        });
        Ok(())
    }
}

/// One score for each segment, or the learner is wrong.
fn checked(scores: Vec<Score>, segments: &[Segment]) -> Result<Vec<Score>, TrainError> {
    if scores.len() == segments.len() {
        return Ok(scores);
    }
    let why = format!("{} scores for {} segments", scores.len(), segments.len());
    Err(TrainError::Learner(LearnError::Fatal(why)))
}

/// `segments` in batches of at most `limit` tokens, first fit in their order; a longer one is a
/// batch of its own.
fn batches(segments: &[Segment], limit: usize) -> impl Iterator<Item = Batch> {
    let mut rest = segments;
    std::iter::from_fn(move || {
        let (batch, after) = rest.split_at(count(rest, limit));
        rest = after;
        (!batch.is_empty()).then(|| Batch {
            segments: batch.to_vec(),
        })
    })
}

/// How many of `segments` fit into `limit` tokens, but at least one if there is one.
fn count(segments: &[Segment], limit: usize) -> usize {
    let mut tokens = 0;
    let fits = segments.iter().take_while(|segment| {
        tokens += segment.tokens.len();
        tokens <= limit
    });
    fits.count().max(1).min(segments.len())
}
