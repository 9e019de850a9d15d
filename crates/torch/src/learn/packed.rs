//! A batch, checked and laid out for the device.

use hyprstream_models::DecoderConfig;
use hyprstream_training::{Batch, LearnError, Segment};
use tch::{Device, TchError, Tensor};

use crate::plan::{Seen, view};

/// All segments of a batch, one after the other.
#[derive(Debug)]
pub(super) struct Packed {
    /// `[tokens]`, int64.
    pub(super) tokens: Tensor,
    /// Position of each in its segment, `[tokens]`, int64.
    pub(super) positions: Tensor,
    /// What dropout of each token depends on.
    pub(super) places: Vec<Place>,
    pub(super) spans: Vec<Span>,
    pub(super) targets: Targets,
}

/// Sample and position of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) sample: u64,
    pub(super) position: u32,
}

/// One segment.
#[derive(Debug)]
pub(super) struct Span {
    /// Index of its first token.
    pub(super) first: i64,
    pub(super) count: i64,
    /// What its tokens see, for each of the model's windows.
    pub(super) seen: Vec<Seen>,
}

/// The tokens that are trained.
#[derive(Debug)]
pub(super) struct Targets {
    /// Index of the token before each, whose logits are about it.
    pub(super) rows: Vec<usize>,
    /// The same, int64.
    pub(super) index: Tensor,
    /// The tokens themselves, int64.
    pub(super) tokens: Tensor,
    /// Weight of each, in f32.
    pub(super) weights: Tensor,
    /// How many each segment has.
    pub(super) counts: Vec<usize>,
}

impl Packed {
    /// Lays a batch that was checked out for a model whose layers look through `windows`.
    pub(super) fn new(
        batch: &Batch,
        windows: &[Option<usize>],
        device: Device,
    ) -> Result<Self, TchError> {
        let (mut tokens, mut places, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let mut counts = Vec::new();
        for segment in &batch.segments {
            let (first, count) = (tokens.len(), segment.tokens.len());
            tokens.extend(segment.tokens.iter().map(|&token| i64::from(token)));
            places.extend((0..count as u32).map(|position| Place {
                sample: segment.sample,
                position,
            }));
            let before = rows.len();
            for position in (1..count).filter(|position| segment.trained[*position]) {
                rows.push(first + position - 1);
                targets.push(i64::from(segment.tokens[position]));
                weights.push(segment.weight);
            }
            counts.push(rows.len() - before);
            let seen = |window: &Option<usize>| Ok(view(0, count, *window, device)?.seen);
            spans.push(Span {
                first: first as i64,
                count: count as i64,
                seen: windows.iter().map(seen).collect::<Result<_, TchError>>()?,
            });
        }
        let upload = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        let positions = places.iter().map(|place| i64::from(place.position));
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        Ok(Self {
            tokens: upload(&tokens)?,
            positions: upload(&positions.collect::<Vec<_>>())?,
            places,
            spans,
            targets: Targets {
                index: upload(&index)?,
                rows,
                tokens: upload(&targets)?,
                weights: Tensor::f_from_slice(&weights)?.f_to_device(device)?,
                counts,
            },
        })
    }
}

/// Refuses a batch that a model of this configuration cannot read.
pub(super) fn check(batch: &Batch, config: &DecoderConfig) -> Result<(), LearnError> {
    if batch.segments.is_empty() {
        return Err(LearnError::Batch("it has no segments".into()));
    }
    for (index, segment) in batch.segments.iter().enumerate() {
        if let Some(why) = fault(segment, config) {
            return Err(LearnError::Batch(format!("segment {index} {why}")));
        }
    }
    Ok(())
}

fn fault(segment: &Segment, config: &DecoderConfig) -> Option<String> {
    let (tokens, trained) = (&segment.tokens, &segment.trained);
    let (count, most, vocab) = (tokens.len(), config.max_positions, config.vocab_size);
    if count < 2 {
        return Some(format!("has {count} tokens, but at least 2 are needed"));
    }
    if count > most {
        return Some(format!(
            "has {count} tokens, but the model has {most} positions"
        ));
    }
    if trained.len() != count {
        let marks = trained.len();
        return Some(format!(
            "has {count} tokens, but {marks} marks of what is trained"
        ));
    }
    if trained[0] {
        return Some("trains its first token, which nothing predicts".to_owned());
    }
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
        return Some(format!("has token {token}, but the model has {vocab}"));
    }
    (!segment.weight.is_finite()).then(|| format!("has the weight {}", segment.weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(tokens: &[u32], trained: &[bool]) -> Segment {
        Segment {
            sample: 0,
            tokens: tokens.to_vec(),
            trained: trained.to_vec(),
            weight: 0.5,
        }
    }

    #[test]
    fn logits_before_a_trained_token_are_about_it() {
        let batch = Batch {
            segments: vec![
                segment(&[5, 6, 7], &[false, false, true]),
                segment(&[8, 9], &[false, true]),
            ],
        };
        let packed = Packed::new(&batch, &[None], Device::Cpu).unwrap();
        assert_eq!(packed.targets.rows, [1, 3]);
        assert_eq!(packed.targets.counts, [1, 1]);
        let tokens: Vec<i64> = (&packed.targets.tokens).try_into().unwrap();
        assert_eq!(tokens, [7, 9]);
        let positions: Vec<i64> = (&packed.positions).try_into().unwrap();
        assert_eq!(positions, [0, 1, 2, 0, 1]);
    }
}
