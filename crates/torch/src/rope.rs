//! Rotary position embedding, after <https://arxiv.org/abs/2104.09864>, in the halves layout.

use std::f64::consts::PI;

use tch::{Device, Kind, TchError, Tensor};

use crate::config::{RopeConfig, RopeScaling};

/// What turns queries and keys by their positions.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[head_dim / 2]` in f32: radians per position.
    frequencies: Tensor,
    kind: Kind,
}

/// Cosines and sines of the positions of one step.
#[derive(Debug)]
pub(crate) struct Turns {
    /// `[tokens, 1, head_dim]`.
    cos: Tensor,
    /// `[tokens, 1, head_dim]`, negated in the first half.
    sin: Tensor,
    half: i64,
}

impl Rope {
    /// An embedding for heads of `head_dim` values of type `kind` on `device`.
    pub(crate) fn new(
        config: &RopeConfig,
        head_dim: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self, TchError> {
        let frequencies: Vec<f32> = frequencies(config, head_dim)
            .into_iter()
            .map(|f| f as f32)
            .collect();
        let frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(device)?;
        Ok(Self { frequencies, kind })
    }

    /// What turns the tokens at `positions`, `[tokens]`.
    pub(crate) fn at(&self, positions: &Tensor) -> Result<Turns, TchError> {
        // A position of up to 2^24 is exact in f32.
        let angles = positions
            .f_to_kind(Kind::Float)?
            .f_outer(&self.frequencies)?;
        let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
        let table = |first: &Tensor, second: &Tensor| {
            Tensor::f_cat(&[first, second], -1)?
                .f_unsqueeze(1)?
                .f_to_kind(self.kind)
        };
        Ok(Turns {
            cos: table(&cos, &cos)?,
            sin: table(&sin.f_neg()?, &sin)?,
            half: self.frequencies.size()[0],
        })
    }
}

impl Turns {
    /// Turns `x`, `[tokens, heads, head_dim]`: with `x = [a, b]` this is
    /// `[a cos - b sin, b cos + a sin]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let swapped = x.f_roll(self.half, -1)?;
        x.f_mul(&self.cos)?.f_addcmul_(&swapped, &self.sin)
    }
}

/// Frequencies of the `head_dim / 2` pairs, in radians per position.
fn frequencies(config: &RopeConfig, head_dim: i64) -> Vec<f64> {
    let plain =
        (0..head_dim / 2).map(|pair| config.theta.powf(-2.0 * pair as f64 / head_dim as f64));
    match config.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original_positions,
        } => plain
            .map(|f| {
                let turns = original_positions * f / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                kept * f + (1.0 - kept) * f / factor
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original_positions: 8192.0,
        };
        let plain = frequencies(
            &RopeConfig {
                theta: 5e5,
                scaling: RopeScaling::None,
            },
            128,
        );
        let scaled = frequencies(
            &RopeConfig {
                theta: 5e5,
                scaling,
            },
            128,
        );
        assert!((scaled[0] - plain[0]).abs() < 1e-12);
        assert!((scaled[63] - plain[63] / 8.0).abs() < 1e-12);
        assert!(
            scaled
                .iter()
                .zip(&plain)
                .all(|(s, p)| *s <= *p && *s >= p / 8.0)
        );
    }
}
