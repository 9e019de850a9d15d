//! Causal attention with grouped queries over the cache.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    cache::KvCache,
    plan::{Plan, Span},
};

/// Attends `query`, `[tokens, heads, head_dim]`, to one layer of the cache, into which the step's
/// own keys and values have been written. Returns `[tokens, heads * head_dim]`.
pub(crate) fn attend(
    query: &Tensor,
    cache: &KvCache,
    layer: usize,
    plan: &Plan,
) -> Result<Tensor, TchError> {
    let outputs = plan
        .spans
        .iter()
        .map(|span| {
            let query = query.f_narrow(0, span.first, span.count)?;
            let (key, value) = cache.read(layer, &span.blocks, span.length)?;
            if span.count == 1 {
                attend_one(&query, &key, &value)
            } else {
                attend_many(&query, &key, &value, span)
            }
        })
        .collect::<Result<Vec<_>, TchError>>()?;
    match <[Tensor; 1]>::try_from(outputs) {
        Ok([only]) => Ok(only),
        Err(outputs) => Tensor::f_cat(&outputs, 0),
    }
}

/// One token against all positions. The queries that share a key head form one matrix; aten's
/// fused attention would go through them one by one.
fn attend_one(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor, TchError> {
    let size = query.size();
    let (heads, head_dim) = (size[1], size[2]);
    let kv_heads = key.size()[1];
    let kind = query.f_kind()?;
    // On the CPU the conversion costs less than what a small product in 16 bits takes longer.
    let inner = if query.device() == Device::Cpu {
        Kind::Float
    } else {
        kind
    };
    let scale = 1.0 / (head_dim as f64).sqrt();
    let query = query
        .f_view([kv_heads, heads / kv_heads, head_dim])?
        .f_to_kind(inner)?
        .f_mul_scalar(scale)?;
    let scores = query.f_bmm(&key.f_to_kind(inner)?.f_permute([1, 2, 0])?)?;
    let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(inner)?;
    weights
        .f_bmm(&value.f_to_kind(inner)?.f_transpose(0, 1)?)?
        .f_to_kind(kind)?
        .f_view([1, heads * head_dim])
}

/// Several tokens of one sequence.
fn attend_many(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    span: &Span,
) -> Result<Tensor, TchError> {
    let size = query.size();
    let (count, heads, head_dim) = (size[0], size[1], size[2]);
    let grouped = key.size()[1] != heads;
    // `[1, heads, tokens, head_dim]`, as a view.
    let by_head = |x: &Tensor| x.f_transpose(0, 1)?.f_unsqueeze(0);
    let causal = span.mask.is_none();
    Tensor::f_scaled_dot_product_attention(
        &by_head(query)?,
        &by_head(key)?,
        &by_head(value)?,
        span.mask.as_ref(),
        0.0,
        causal,
        None,
        grouped,
    )?
    .f_transpose(1, 2)?
    .f_reshape([count, heads * head_dim])
}
