//! Any decoder that [`hyprstream_models::DecoderConfig`] describes.

mod load;

use hyprstream_models::Activation;
use tch::{Kind, TchError, Tensor};

pub(crate) use load::kind_of;

use crate::{
    attention::Attend,
    cache::KvCache,
    layers::{Linear, RmsNorm, activate, soften},
    plan::Plan,
    rope::{Rope, Turns},
};

/// A loaded model. Its weights may lie in mapped files, which must outlive it.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// `[vocab, hidden]`.
    embedding: Tensor,
    /// Factor of the embedding, rounded to the model's type.
    embedding_scale: f64,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    logit_softcap: Option<f64>,
    ropes: Vec<Rope>,
    /// The windows that layers look through, each once.
    windows: Vec<Option<usize>>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    attention_post_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    mlp: Mlp,
    mlp_post_norm: Option<RmsNorm>,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    output: Linear,
    /// Index into [`Decoder::ropes`].
    rope: usize,
    attend: Attend,
    num_heads: i64,
    num_kv_heads: i64,
    head_dim: i64,
}

#[derive(Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

/// What a step gives.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// `[rows, vocab]` in f32, or `None` if none were asked for.
    pub(crate) logits: Option<Tensor>,
    /// After the last norm, `[rows, hidden]`, or `None` if none were asked for.
    pub(crate) hidden: Option<Tensor>,
}

/// What the layers of one step share.
struct Step<'a> {
    plan: &'a Plan,
    /// For each rotary embedding.
    turns: Vec<Turns>,
    cache: &'a mut KvCache,
}

impl Decoder {
    /// The windows that layers look through, each once: what a [`Plan`] is laid out for.
    pub(crate) fn windows(&self) -> &[Option<usize>] {
        &self.windows
    }

    /// What `plan` asks for. Keys and values go to `cache`.
    pub(crate) fn forward(&self, plan: &Plan, cache: &mut KvCache) -> Result<Outputs, TchError> {
        let mut x = self.embedding.f_index_select(0, &plan.tokens)?;
        #[expect(
            clippy::float_cmp,
            reason = "exactly 1 is what families without it have"
        )]
        if self.embedding_scale != 1.0 {
            x = x.f_mul_scalar_(self.embedding_scale)?;
        }
        let mut step = Step {
            plan,
            turns: self
                .ropes
                .iter()
                .map(|rope| rope.at(&plan.positions))
                .collect::<Result<_, _>>()?,
            cache,
        };
        for layer in &self.layers {
            x = layer.forward(x, &mut step)?;
        }
        let normed = |x: Tensor| self.norm.forward(&x);
        Ok(Outputs {
            logits: plan
                .logits
                .of(&x)?
                .map(|x| self.logits(&normed(x)?))
                .transpose()?,
            hidden: plan.hidden.of(&x)?.map(normed).transpose()?,
        })
    }

    /// Logits of hidden states, in f32.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let logits = self.head.forward(hidden, None)?.f_to_kind(Kind::Float)?;
        match self.logit_softcap {
            None => Ok(logits),
            Some(cap) => soften(logits, cap),
        }
    }
}

impl Layer {
    fn forward(&self, mut x: Tensor, step: &mut Step) -> Result<Tensor, TchError> {
        let attended = self
            .attention
            .forward(&self.attention_norm.forward(&x)?, step)?;
        let _ = x.f_add_(&normed(attended, self.attention_post_norm.as_ref())?)?;
        let fed = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        let _ = x.f_add_(&normed(fed, self.mlp_post_norm.as_ref())?)?;
        Ok(x)
    }
}

fn normed(x: Tensor, norm: Option<&RmsNorm>) -> Result<Tensor, TchError> {
    match norm {
        None => Ok(x),
        Some(norm) => norm.forward(&x),
    }
}

impl Attention {
    fn forward(&self, x: &Tensor, step: &mut Step) -> Result<Tensor, TchError> {
        let heads = |y: Tensor, norm: Option<&RmsNorm>| {
            normed(
                y.f_view([-1, y.size()[1] / self.head_dim, self.head_dim])?,
                norm,
            )
        };
        let query = heads(self.query.forward(x, None)?, self.query_norm.as_ref())?;
        let key = heads(self.key.forward(x, None)?, self.key_norm.as_ref())?;
        let value = heads(self.value.forward(x, None)?, None)?;
        let turned = step.turns[self.rope].apply(&Tensor::f_cat(&[query, key], 1)?)?;
        let query = turned.f_narrow(1, 0, self.num_heads)?;
        let key = turned.f_narrow(1, self.num_heads, self.num_kv_heads)?;
        step.cache
            .write(self.attend.layer, &step.plan.slots, &key, &value)?;
        let attended = self.attend.forward(&query, step.cache, step.plan)?;
        self.output.forward(&attended, None)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let gate = activate(self.activation, self.gate.forward(x, None)?)?;
        let gated = gate.f_mul(&self.up.forward(x, None)?)?;
        self.down.forward(&gated, None)
    }
}
