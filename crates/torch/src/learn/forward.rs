//! The way through the model for training.

use hyprstream_models::adapter::{Linear as Map, Site};
use hyprstream_training::Dropout;
use tch::{Kind, TchError, Tensor};

use super::{
    TorchLearner, dropout,
    leaves::{LeafPart, Leaves},
    packed::{Packed, Place},
};
use crate::{
    decoder::{Attention, Layer, Mlp, normed},
    layers::{Linear, activate},
    rope::Turns,
};

/// One batch on its way through a model with an adapter.
pub(super) struct Pass<'a> {
    pub(super) learner: &'a TorchLearner,
    pub(super) packed: &'a Packed,
    pub(super) leaves: &'a Leaves,
    dropout: Dropout,
    /// For each rotary embedding.
    turns: Vec<Turns>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        learner: &'a TorchLearner,
        packed: &'a Packed,
        leaves: &'a Leaves,
        dropout: Dropout,
    ) -> Result<Self, TchError> {
        let ropes = learner.model.ropes.iter();
        let turns = ropes.map(|rope| rope.at(&packed.positions));
        Ok(Self {
            learner,
            packed,
            leaves,
            dropout,
            turns: turns.collect::<Result<_, _>>()?,
        })
    }

    /// What the first layer is given, `[tokens, hidden]`.
    pub(super) fn embed(&self) -> Result<Tensor, TchError> {
        let model = &self.learner.model;
        let tokens = &self.packed.tokens;
        let mut x = model.embedding.f_index_select(0, tokens)?;
        if let Some(part) = self.leaves.get(Site::Embedding) {
            // The input is 1 at the token and 0 elsewhere: the product is a column of A.
            let mut low = part.a.tensor.f_index_select(1, tokens)?.f_transpose(0, 1)?;
            let (places, device) = (&self.packed.places, self.learner.device);
            let tokens: Vec<i64> = tokens.try_into()?;
            let factors = dropout::factors_of_tokens(self.dropout, places, &tokens, device)?;
            if let Some(factors) = factors {
                low = low.f_mul(&factors)?;
            }
            x = part.change(&x, &low)?.f_to_kind(x.f_kind()?)?;
        }
        #[expect(
            clippy::float_cmp,
            reason = "exactly 1 is what families without it have"
        )]
        if model.embedding_scale != 1.0 {
            x = x.f_mul_scalar(model.embedding_scale)?;
        }
        Ok(x)
    }

    /// What a layer makes of `x`, `[tokens, hidden]`.
    pub(super) fn layer(&self, index: usize, x: &Tensor) -> Result<Tensor, TchError> {
        let layer: &Layer = &self.learner.model.layers[index];
        let attended = self.attend(index, &layer.attention, &layer.attention_norm.forward(x)?)?;
        let x = x.f_add(&normed(attended, layer.attention_post_norm.as_ref())?)?;
        let fed = self.feed(index, &layer.mlp, &layer.mlp_norm.forward(&x)?)?;
        x.f_add(&normed(fed, layer.mlp_post_norm.as_ref())?)
    }

    fn attend(&self, layer: usize, attention: &Attention, x: &Tensor) -> Result<Tensor, TchError> {
        let maps = [
            (Map::Query, &attention.query),
            (Map::Key, &attention.key),
            (Map::Value, &attention.value),
        ];
        let [query, key, value] = self.products(layer, x, maps)?;
        let query = attention.heads(&query, attention.query_norm.as_ref())?;
        let key = attention.heads(&key, attention.key_norm.as_ref())?;
        let value = attention.heads(&value, None)?;
        let turns = &self.turns[attention.rope];
        let (query, key) = (turns.apply(&query)?, turns.apply(&key)?);
        let attend = &attention.attend;
        let each = self.packed.spans.iter().map(|span| {
            let of = |x: &Tensor| x.f_narrow(0, span.first, span.count);
            let seen = &span.seen[attend.window];
            attend.over(&of(&query)?, &of(&key)?, &of(&value)?, seen)
        });
        let attended = Tensor::f_cat(&each.collect::<Result<Vec<_>, _>>()?, 0)?;
        let maps = [(Map::Output, &attention.output)];
        let [output] = self.products(layer, &attended, maps)?;
        Ok(output)
    }

    fn feed(&self, layer: usize, mlp: &Mlp, x: &Tensor) -> Result<Tensor, TchError> {
        let maps = [(Map::Gate, &mlp.gate), (Map::Up, &mlp.up)];
        let [gate, up] = self.products(layer, x, maps)?;
        let gated = activate(mlp.activation, gate)?.f_mul(&up)?;
        let [down] = self.products(layer, &gated, [(Map::Down, &mlp.down)])?;
        Ok(down)
    }

    /// The products of `x`, an input of a layer, with matrices that read it, changed by the adapter.
    fn products<const N: usize>(
        &self,
        layer: usize,
        x: &Tensor,
        maps: [(Map, &Linear); N],
    ) -> Result<[Tensor; N], TchError> {
        // Products with those A that parts share.
        let mut lows: Vec<(Site, Tensor)> = Vec::new();
        let mut products = [const { None }; N];
        for (product, (map, linear)) in products.iter_mut().zip(maps) {
            let Some(part) = self.leaves.get(Site::Layer(layer, map)) else {
                *product = Some(linear.forward(x, None)?);
                continue;
            };
            let known = lows.iter().position(|(first, _)| *first == part.first);
            let at = if let Some(at) = known {
                at
            } else {
                lows.push((part.first, self.low(part, x, &self.packed.places)?));
                lows.len() - 1
            };
            *product = Some(changed(part, linear, x, &lows[at].1)?);
        }
        Ok(products.map(|product| product.expect("each was computed")))
    }

    /// The logits of `hidden`, those of the tokens at `places`, before they are capped.
    pub(super) fn logits(&self, hidden: &Tensor, places: &[Place]) -> Result<Tensor, TchError> {
        let head = &self.learner.model.head;
        match self.leaves.get(Site::Head) {
            None => head.forward(hidden, None),
            Some(part) => changed(part, head, hidden, &self.low(part, hidden, places)?),
        }
    }

    /// The product of `x`, the input of tokens at `places`, with a part's A, `[rows, rank]`, in f32.
    fn low(&self, part: &LeafPart, x: &Tensor, places: &[Place]) -> Result<Tensor, TchError> {
        let (columns, device) = (x.size()[1] as usize, self.learner.device);
        let (site, threads) = (part.first, self.learner.num_threads);
        let factors = dropout::factors(self.dropout, site, places, columns, device, threads)?;
        let mut x = x.f_to_kind(Kind::Float)?;
        if let Some(factors) = factors {
            x = x.f_mul(&factors)?;
        }
        x.f_linear(&part.a.tensor, None::<Tensor>)
    }
}

/// The product of a matrix and what changes it, in the type of `x`. A bias is not rescaled by DoRA.
fn changed(part: &LeafPart, linear: &Linear, x: &Tensor, low: &Tensor) -> Result<Tensor, TchError> {
    let kind = x.f_kind()?;
    let bias = linear.bias.as_ref();
    let Some(bias) = bias.filter(|_| part.dora.is_some()) else {
        return part
            .change(&x.f_linear(&linear.weight, bias)?, low)?
            .f_to_kind(kind);
    };
    let y = x.f_linear(&linear.weight, None::<Tensor>)?;
    part.change(&y, low)?.f_add(bias)?.f_to_kind(kind)
}
