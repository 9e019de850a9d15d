//! The layers that a decoder is made of.

use hyprstream_models::Activation;
use tch::{Kind, TchError, Tensor};

/// `y = x W^T + b`, and what adapters add to it.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Tensor,
    /// `[out]`.
    pub(crate) bias: Option<Tensor>,
}

/// What the adapters of a step add to one linear layer: `((x A^T) * scale) B^T`.
///
/// The adapters that are active in the step are concatenated along the rank, and `scale` is zero
/// where a token does not use an adapter. So requests with different stacks of adapters share
/// two multiplications.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[ranks, in]`.
    pub(crate) a: Tensor,
    /// `[out, ranks]`.
    pub(crate) b: Tensor,
    /// `[tokens, ranks]`.
    pub(crate) scale: Tensor,
}

impl Linear {
    /// Maps `x`, `[tokens, in]`, to `[tokens, out]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        adapters: Option<&LowRank>,
    ) -> Result<Tensor, TchError> {
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        match adapters {
            None => Ok(y),
            Some(LowRank { a, b, scale }) => {
                let low = x.f_linear(a, None::<Tensor>)?.f_mul(scale)?;
                y.f_add(&low.f_linear(b, None::<Tensor>)?)
            }
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * w` over the last dimension.
/// <https://arxiv.org/abs/1910.07467>
#[derive(Debug)]
pub(crate) struct RmsNorm {
    /// `[width]`.
    weight: Tensor,
    eps: f64,
    /// The product with the weight is formed in 32 bits.
    wide: bool,
}

impl RmsNorm {
    /// A norm with this weight, `[width]`.
    pub(crate) fn new(weight: Tensor, eps: f64) -> Self {
        Self {
            weight,
            eps,
            wide: false,
        }
    }

    /// Gemma's norm, whose factor is `1 + weight`. It is rounded to the model's type only after
    /// it has been applied: in 16 bits the sum would lose most of the weight.
    pub(crate) fn plus_one(weight: &Tensor, eps: f64) -> Result<Self, TchError> {
        Ok(Self {
            weight: weight.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?,
            eps,
            wide: true,
        })
    }

    /// Normalises `x`, `[.., width]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let norm = |x: &Tensor| x.f_rms_norm(self.weight.size(), Some(&self.weight), self.eps);
        if self.wide {
            let kind = x.f_kind()?;
            norm(&x.f_to_kind(Kind::Float)?)?.f_to_kind(kind)
        } else {
            norm(x)
        }
    }
}

/// Nonlinearity of the gate, in place.
pub(crate) fn activate(kind: Activation, mut x: Tensor) -> Result<Tensor, TchError> {
    match kind {
        Activation::Silu => x.f_silu_(),
        Activation::GeluTanh => x.f_gelu_("tanh"),
    }
}

/// `cap * tanh(x / cap)`, in place.
pub(crate) fn soften(mut x: Tensor, cap: f64) -> Result<Tensor, TchError> {
    x.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn each_token_gets_its_own_adapters_at_its_own_scale() {
        let random = |size: &[i64]| Tensor::f_randn(size, (Kind::Double, Device::Cpu)).unwrap();
        let linear = Linear {
            weight: random(&[5, 4]),
            bias: Some(random(&[5])),
        };
        let x = random(&[3, 4]);
        // Adapter 0 has rank 2, adapter 1 rank 1. Token 0 uses none, token 1 the first at 0.5,
        // token 2 both.
        let (a, b) = (random(&[3, 4]), random(&[5, 3]));
        let scale = Tensor::from_slice(&[0., 0., 0., 0.5, 0.5, 0., 1., 1., -2.]).view([3, 3]);
        let terms = LowRank {
            a: a.shallow_clone(),
            b: b.shallow_clone(),
            scale,
        };
        let mixed = linear.forward(&x, Some(&terms)).unwrap();
        let delta = |from: i64, count: i64, scale: f64| {
            b.narrow(1, from, count).matmul(&a.narrow(0, from, count)) * scale
        };
        let zero = delta(0, 3, 0.0);
        let weights = [zero, delta(0, 2, 0.5), delta(0, 2, 1.0) + delta(2, 1, -2.0)];
        for (token, delta) in weights.into_iter().enumerate() {
            let merged = Linear {
                weight: &linear.weight + delta,
                bias: Some(linear.bias.as_ref().unwrap().shallow_clone()),
            };
            let alone = merged.forward(&x.narrow(0, token as i64, 1), None).unwrap();
            let difference = (mixed.narrow(0, token as i64, 1) - alone).abs().max();
            assert!(difference.double_value(&[]) < 1e-12);
        }
    }
}
