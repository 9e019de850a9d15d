//! The layers that a decoder is made of.

use hyprstream_models::Activation;
use tch::{Kind, TchError, Tensor};

use crate::adapter::Change;

/// `y = x W^T + b`, and what adapters add to it.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Tensor,
    /// `[out]`.
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// Maps `x`, `[tokens, in]`, to `[tokens, out]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        change: Option<&Change<'_>>,
    ) -> Result<Tensor, TchError> {
        let bias = self.bias.as_ref();
        let Some(change) = change else {
            return x.f_linear(&self.weight, bias);
        };
        if !change.rescales() {
            return change.add(x.f_linear(&self.weight, bias)?);
        }
        let mut y = change.rescale(x.f_linear(&self.weight, None::<Tensor>)?)?;
        if let Some(bias) = bias {
            y = y.f_add_(bias)?;
        }
        change.add(y)
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

/// Nonlinearity of the gate, in place unless derivatives are wanted.
pub(crate) fn activate(kind: Activation, mut x: Tensor) -> Result<Tensor, TchError> {
    match (kind, x.requires_grad()) {
        (Activation::Silu, false) => x.f_silu_(),
        (Activation::Silu, true) => x.f_silu(),
        (Activation::GeluTanh, false) => x.f_gelu_("tanh"),
        (Activation::GeluTanh, true) => x.f_gelu("tanh"),
    }
}

/// `cap * tanh(x / cap)`, in place unless derivatives are wanted.
pub(crate) fn soften(mut x: Tensor, cap: f64) -> Result<Tensor, TchError> {
    if x.requires_grad() {
        x.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)
    } else {
        x.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)
    }
}
