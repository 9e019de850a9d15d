//! Rotary position embedding, after <https://arxiv.org/abs/2104.09864>, in the halves layout.

use hyprstream_models as models;
use tch::{Device, Kind, TchError, Tensor};

/// What turns queries and keys by their positions.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[rotated / 2]` in f32: radians per position.
    frequencies: Tensor,
    attention_factor: f64,
    kind: Kind,
}

/// Cosines and sines of the positions of one step.
#[derive(Debug)]
pub(crate) struct Turns {
    /// `[tokens, 1, rotated]`.
    cos: Tensor,
    /// `[tokens, 1, rotated]`, negated in the first half.
    sin: Tensor,
    half: i64,
}

impl Rope {
    /// An embedding for heads of type `kind` on `device`.
    pub(crate) fn new(rope: &models::Rope, kind: Kind, device: Device) -> Result<Self, TchError> {
        Ok(Self {
            frequencies: Tensor::f_from_slice(&rope.frequencies)?.f_to_device(device)?,
            attention_factor: f64::from(rope.attention_factor),
            kind,
        })
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
                .f_mul_scalar(self.attention_factor)?
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
    /// Turns `x`, `[tokens, heads, head_dim]`: with `x = [a, b, c]`, where `a` and `b` together
    /// are what is turned, this is `[a cos - b sin, b cos + a sin, c]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (rotated, width) = (2 * self.half, x.size()[2]);
        if rotated == width {
            return self.turn(x);
        }
        let turned = self.turn(&x.f_narrow(2, 0, rotated)?)?;
        Tensor::f_cat(&[turned, x.f_narrow(2, rotated, width - rotated)?], 2)
    }

    fn turn(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let swapped = x.f_roll(self.half, -1)?;
        x.f_mul(&self.cos)?.f_addcmul_(&swapped, &self.sin)
    }
}
