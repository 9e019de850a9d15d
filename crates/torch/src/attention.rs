//! Causal attention with grouped queries over the cache.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    cache::KvCache,
    layers::soften,
    plan::{Plan, Seen},
};

/// How one layer attends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attend {
    /// Its index in the cache.
    pub(crate) layer: usize,
    /// Its window's index in [`crate::plan::Span::views`].
    pub(crate) window: usize,
    /// Factor of the scores.
    pub(crate) scale: f64,
    /// Soft cap of the scores.
    pub(crate) softcap: Option<f64>,
}

impl Attend {
    /// Attends `query`, `[tokens, heads, head_dim]`, to the cache, into which the step's own keys
    /// and values have been written. Returns `[tokens, heads * head_dim]`.
    pub(crate) fn forward(
        &self,
        query: &Tensor,
        cache: &KvCache,
        plan: &Plan,
    ) -> Result<Tensor, TchError> {
        let outputs = plan
            .spans
            .iter()
            .map(|span| {
                let query = query.f_narrow(0, span.first, span.count)?;
                let view = &span.views[self.window];
                let (key, value) = cache.read(self.layer, &span.blocks, view.start, span.length)?;
                self.over(&query, &key, &value, &view.seen)
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        match <[Tensor; 1]>::try_from(outputs) {
            Ok([only]) => Ok(only),
            Err(outputs) => Tensor::f_cat(&outputs, 0),
        }
    }

    /// Attends tokens of one sequence, `[tokens, heads, head_dim]`, to these keys and values,
    /// `[positions, kv_heads, head_dim]`. Returns `[tokens, heads * head_dim]`.
    pub(crate) fn over(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        seen: &Seen,
    ) -> Result<Tensor, TchError> {
        if query.size()[0] == 1 || self.softcap.is_some() {
            self.step_by_step(query, key, value, seen)
        } else {
            self.fused(query, key, value, seen)
        }
    }

    /// The queries that share a key head form one matrix. For one token, aten's fused attention
    /// would go through them one by one; and it knows no soft caps.
    fn step_by_step(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        seen: &Seen,
    ) -> Result<Tensor, TchError> {
        let size = query.size();
        let (count, heads, head_dim) = (size[0], size[1], size[2]);
        let (length, kv_heads) = (key.size()[0], key.size()[1]);
        let group = heads / kv_heads;
        let kind = query.f_kind()?;
        // On the CPU the conversion costs less than what a small product in 16 bits takes longer.
        let inner = if query.device() == Device::Cpu {
            Kind::Float
        } else {
            kind
        };
        // `[kv_heads, group * tokens, head_dim]`.
        let query = query
            .f_view([count, kv_heads, group, head_dim])?
            .f_permute([1, 2, 0, 3])?
            .f_reshape([kv_heads, group * count, head_dim])?
            .f_to_kind(inner)?
            .f_mul_scalar(self.scale)?;
        let mut scores = query.f_bmm(&key.f_to_kind(inner)?.f_permute([1, 2, 0])?)?;
        if let Some(cap) = self.softcap {
            scores = soften(scores, cap)?;
        }
        let hidden = match seen {
            Seen::All => None,
            Seen::Triangle => {
                let all = Tensor::f_ones([count, length], (Kind::Bool, scores.device()))?;
                Some(all.f_triu(1)?)
            }
            Seen::Mask(mask) => Some(mask.f_logical_not()?),
        };
        if let Some(hidden) = hidden {
            scores = scores
                .f_view([kv_heads, group, count, length])?
                .f_masked_fill(&hidden, f64::NEG_INFINITY)?
                .f_view([kv_heads, group * count, length])?;
        }
        let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(inner)?;
        weights
            .f_bmm(&value.f_to_kind(inner)?.f_transpose(0, 1)?)?
            .f_to_kind(kind)?
            .f_view([kv_heads, group, count, head_dim])?
            .f_permute([2, 0, 1, 3])?
            .f_reshape([count, heads * head_dim])
    }

    /// Several tokens of one sequence.
    fn fused(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        seen: &Seen,
    ) -> Result<Tensor, TchError> {
        let size = query.size();
        let (count, heads, head_dim) = (size[0], size[1], size[2]);
        let grouped = key.size()[1] != heads;
        // `[1, heads, tokens, head_dim]`, as a view.
        let by_head = |x: &Tensor| x.f_transpose(0, 1)?.f_unsqueeze(0);
        let mask = match seen {
            Seen::Mask(mask) => Some(mask),
            Seen::All | Seen::Triangle => None,
        };
        let output = Tensor::f_scaled_dot_product_attention(
            &by_head(query)?,
            &by_head(key)?,
            &by_head(value)?,
            mask,
            0.0,
            matches!(seen, Seen::Triangle),
            self.scale,
            grouped,
        )?
        .f_transpose(1, 2)?
        .f_reshape([count, heads * head_dim])?;
        if query.device() == Device::Cpu {
            return output.f_add(&spoiled(query)?.f_add(&spoiled(key)?)?);
        }
        Ok(output)
    }
}

/// 0, or NaN if any number of it is not finite, as a tensor of one number. aten's fused attention on
/// the CPU takes a row whose scores are all NaN for one that sees nothing, and answers 0 (seen with
/// AVX-512 in f16): what is wrong would look right.
fn spoiled(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_mul_scalar(0.0)?.f_sum(x.f_kind()?)
}
