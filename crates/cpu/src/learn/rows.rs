//! The rows of a batch: what is read at each, and what is said about it.

use hyprstream_models::DecoderConfig;
use hyprstream_training::{Batch, LearnError};

/// All tokens of a batch, segment after segment.
pub(super) struct Rows {
    pub(super) tokens: Vec<u32>,
    /// Of each row, from 0 in each segment.
    pub(super) positions: Vec<u32>,
    /// Number of each row's sample.
    pub(super) samples: Vec<u64>,
    /// First row and length of each segment.
    pub(super) segments: Vec<(usize, usize)>,
    pub(super) targets: Vec<Target>,
    /// Of the longest segment.
    pub(super) longest: usize,
}

/// A token that counts, and the row that predicts it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) row: usize,
    pub(super) token: u32,
    pub(super) segment: usize,
    pub(super) weight: f32,
}

impl Rows {
    /// The rows of `batch`.
    ///
    /// # Errors
    /// [`LearnError::Batch`] for what a model of this configuration cannot read.
    pub(super) fn of(batch: &Batch, config: &DecoderConfig) -> Result<Self, LearnError> {
        let refuse = |why: String| Err(LearnError::Batch(why));
        if batch.segments.is_empty() {
            return refuse("it has no segments".into());
        }
        let mut rows = Self {
            tokens: Vec::with_capacity(batch.tokens()),
            positions: Vec::new(),
            samples: Vec::new(),
            segments: Vec::new(),
            targets: Vec::new(),
            longest: 0,
        };
        for (index, segment) in batch.segments.iter().enumerate() {
            let (len, most) = (segment.tokens.len(), config.max_positions);
            if !(2..=most).contains(&len) {
                return refuse(format!(
                    "segment {index} has {len} tokens, and this model reads 2 to {most}"
                ));
            }
            if segment.trained.len() != len {
                return refuse(format!(
                    "segment {index} has {len} tokens, but says of {} whether they count",
                    segment.trained.len()
                ));
            }
            let unknown = |token: &&u32| **token as usize >= config.vocab_size;
            if let Some(token) = segment.tokens.iter().find(unknown) {
                return refuse(format!(
                    "segment {index} has the token {token}, and this model knows those below {}",
                    config.vocab_size
                ));
            }
            let first = rows.tokens.len();
            rows.segments.push((first, len));
            rows.longest = rows.longest.max(len);
            rows.tokens.extend(&segment.tokens);
            rows.positions.extend(0..len as u32);
            rows.samples
                .extend(std::iter::repeat_n(segment.sample, len));
            let pairs = segment.tokens.iter().zip(&segment.trained).skip(1);
            let trained = pairs.enumerate().filter(|(_, (_, trained))| **trained);
            rows.targets.extend(trained.map(|(at, (token, _))| Target {
                row: first + at,
                token: *token,
                segment: index,
                weight: segment.weight,
            }));
        }
        Ok(rows)
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}
