//! Any decoder that [`hyprstream_models::DecoderConfig`] describes.

mod load;

use hyprstream_models::{Activation, adapter::Linear as Map};
use tch::{Kind, TchError, Tensor};

pub(crate) use load::kind_of;

use crate::{
    adapter::{Changes, Part},
    attention::Attend,
    cache::KvCache,
    layers::{Linear, RmsNorm, activate, soften},
    plan::{Plan, Rows},
    rope::{Rope, Turns},
};

/// A loaded model. Its weights may lie in mapped files, which must outlive it.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// `[vocab, hidden]`.
    pub(crate) embedding: Tensor,
    /// Factor of the embedding, rounded to the model's type.
    pub(crate) embedding_scale: f64,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Linear,
    pub(crate) logit_softcap: Option<f64>,
    pub(crate) ropes: Vec<Rope>,
    /// The windows that layers look through, each once.
    pub(crate) windows: Vec<Option<usize>>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: RmsNorm,
    pub(crate) attention: Attention,
    pub(crate) attention_post_norm: Option<RmsNorm>,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
    pub(crate) mlp_post_norm: Option<RmsNorm>,
}

#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) query_norm: Option<RmsNorm>,
    pub(crate) key_norm: Option<RmsNorm>,
    pub(crate) output: Linear,
    /// Index into [`Decoder::ropes`].
    pub(crate) rope: usize,
    pub(crate) attend: Attend,
    pub(crate) num_heads: i64,
    pub(crate) num_kv_heads: i64,
    pub(crate) head_dim: i64,
}

#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
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
    /// What adapters change.
    changes: Option<&'a Changes<'a>>,
}

impl Decoder {
    /// The windows that layers look through, each once: what a [`Plan`] is laid out for.
    pub(crate) fn windows(&self) -> &[Option<usize>] {
        &self.windows
    }

    /// What `plan` asks for, with what adapters change. Keys and values go to `cache`.
    pub(crate) fn forward(
        &self,
        plan: &Plan,
        cache: &mut KvCache,
        changes: Option<&Changes<'_>>,
    ) -> Result<Outputs, TchError> {
        let mut x = self.embedding.f_index_select(0, &plan.tokens)?;
        if let Some(changes) = changes {
            x = changes.embed(&plan.tokens, x)?;
        }
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
            changes,
        };
        for layer in &self.layers {
            x = layer.forward(x, &mut step)?;
        }
        let normed = |x: Tensor| self.norm.forward(&x);
        Ok(Outputs {
            logits: plan
                .logits
                .of(&x)?
                .map(|x| self.logits(&normed(x)?, &plan.logits, changes))
                .transpose()?,
            hidden: plan.hidden.of(&x)?.map(normed).transpose()?,
        })
    }

    /// Logits of hidden states, those of the tokens `rows`, in f32.
    fn logits(
        &self,
        hidden: &Tensor,
        rows: &Rows,
        changes: Option<&Changes<'_>>,
    ) -> Result<Tensor, TchError> {
        let change = match changes {
            None => None,
            Some(changes) => changes.of_head(rows, hidden)?,
        };
        let logits = self.head.forward(hidden, change.as_ref())?;
        let logits = logits.f_to_kind(Kind::Float)?;
        match self.logit_softcap {
            None => Ok(logits),
            Some(cap) => soften(logits, cap),
        }
    }
}

impl Layer {
    /// One of its matrices.
    pub(crate) fn linear(&self, map: Map) -> &Linear {
        match map {
            Map::Query => &self.attention.query,
            Map::Key => &self.attention.key,
            Map::Value => &self.attention.value,
            Map::Output => &self.attention.output,
            Map::Gate => &self.mlp.gate,
            Map::Up => &self.mlp.up,
            Map::Down => &self.mlp.down,
        }
    }

    fn forward(&self, mut x: Tensor, step: &mut Step) -> Result<Tensor, TchError> {
        let attended = self
            .attention
            .forward(&self.attention_norm.forward(&x)?, step)?;
        let _ = x.f_add_(&normed(attended, self.attention_post_norm.as_ref())?)?;
        let layer = self.attention.attend.layer;
        let fed = self.mlp.forward(&self.mlp_norm.forward(&x)?, layer, step)?;
        let _ = x.f_add_(&normed(fed, self.mlp_post_norm.as_ref())?)?;
        Ok(x)
    }
}

/// What an optional norm makes of `x`.
pub(crate) fn normed(x: Tensor, norm: Option<&RmsNorm>) -> Result<Tensor, TchError> {
    match norm {
        None => Ok(x),
        Some(norm) => norm.forward(&x),
    }
}

impl Step<'_> {
    /// The products of `x`, an input of the layer `layer`, with some of the matrices that read it,
    /// and what adapters change in them.
    fn products<const N: usize>(
        &self,
        layer: usize,
        part: Part,
        x: &Tensor,
        maps: [(Map, &Linear); N],
    ) -> Result<[Tensor; N], TchError> {
        let narrowed = match self.changes {
            None => None,
            Some(changes) => changes.narrow(layer, part, x)?,
        };
        let mut products = [const { None }; N];
        for (product, (map, linear)) in products.iter_mut().zip(maps) {
            let change = match &narrowed {
                None => None,
                Some(narrowed) => narrowed.linear(map)?,
            };
            *product = Some(linear.forward(x, change.as_ref())?);
        }
        Ok(products.map(|product| product.expect("each was computed")))
    }
}

impl Attention {
    /// Products, `[tokens, heads * head_dim]`, head by head, each normalised.
    pub(crate) fn heads(&self, y: &Tensor, norm: Option<&RmsNorm>) -> Result<Tensor, TchError> {
        let count = y.size()[1] / self.head_dim;
        normed(y.f_view([-1, count, self.head_dim])?, norm)
    }

    fn forward(&self, x: &Tensor, step: &mut Step) -> Result<Tensor, TchError> {
        let layer = self.attend.layer;
        let maps = [
            (Map::Query, &self.query),
            (Map::Key, &self.key),
            (Map::Value, &self.value),
        ];
        let [query, key, value] = step.products(layer, Part::Hidden, x, maps)?;
        let query = self.heads(&query, self.query_norm.as_ref())?;
        let key = self.heads(&key, self.key_norm.as_ref())?;
        let value = self.heads(&value, None)?;
        let turned = step.turns[self.rope].apply(&Tensor::f_cat(&[query, key], 1)?)?;
        let query = turned.f_narrow(1, 0, self.num_heads)?;
        let key = turned.f_narrow(1, self.num_heads, self.num_kv_heads)?;
        step.cache.write(layer, &step.plan.slots, &key, &value)?;
        let attended = self.attend.forward(&query, step.cache, step.plan)?;
        let maps = [(Map::Output, &self.output)];
        let [output] = step.products(layer, Part::Attended, &attended, maps)?;
        Ok(output)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor, layer: usize, step: &Step) -> Result<Tensor, TchError> {
        let maps = [(Map::Gate, &self.gate), (Map::Up, &self.up)];
        let [gate, up] = step.products(layer, Part::Gated, x, maps)?;
        let gated = activate(self.activation, gate)?.f_mul(&up)?;
        let maps = [(Map::Down, &self.down)];
        let [down] = step.products(layer, Part::Inner, &gated, maps)?;
        Ok(down)
    }
}
