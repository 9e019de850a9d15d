//! Copies of the model's own tensors in the file of an adapter. PEFT saves them beside an adapter
//! of the embedding or the head.

use half::{bf16, f16};

use super::site::{HEAD, Root};
use crate::{LayerWeights, LinearWeights, StoredTensor, StoredType, Weights};

/// How a copy compares to the model's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// It is that of the model, or what that becomes in the type of the copy.
    Same,
    /// Its numbers differ.
    Changed,
    /// Its shape differs.
    Resized,
    /// The model has no such tensor.
    Unknown,
}

impl Copy {
    /// Compares `copy` with the weight, or bias, of the module of this name.
    pub(super) fn of(copy: &StoredTensor, module: &str, bias: bool, base: &Weights) -> Self {
        let parts = find(module, bias, base);
        let Some(first) = parts.first() else {
            return Self::Unknown;
        };
        // A fused tensor has been taken apart, row after row.
        let rows: usize = parts.iter().map(|part| part.shape()[0]).sum();
        let shape = copy.shape();
        if shape.first() != Some(&rows) || shape[1..] != first.shape()[1..] {
            return Self::Resized;
        }
        let mut from = 0;
        for part in parts {
            let count = part.shape()[0];
            if !same(&copy.rows(from..from + count), part) {
                return Self::Changed;
            }
            from += count;
        }
        Self::Same
    }
}

/// The model's tensor, in parts where it was fused.
fn find<'a>(module: &str, bias: bool, base: &'a Weights) -> Vec<&'a StoredTensor> {
    let suffix = if bias { "bias" } else { "weight" };
    let is_head = module.rsplit('.').next() == Some(HEAD);
    if is_head && base.head.is_none() && !bias {
        return vec![&base.embedding];
    }
    let name = if is_head {
        format!("{HEAD}.{suffix}")
    } else {
        let below = Root::ALL.iter().find_map(|root| root.strip(module));
        format!("model.{}.{suffix}", below.unwrap_or(module))
    };
    tensors(base)
        .filter(|tensor| tensor.name() == name)
        .collect()
}

/// Every tensor of the model.
fn tensors(base: &Weights) -> impl Iterator<Item = &StoredTensor> {
    let ends = [Some(&base.embedding), Some(&base.norm), base.head.as_ref()];
    ends.into_iter()
        .flatten()
        .chain(base.layers.iter().flat_map(of_layer))
}

fn of_layer(layer: &LayerWeights) -> impl Iterator<Item = &StoredTensor> {
    let LayerWeights {
        attention_norm,
        query,
        key,
        value,
        query_norm,
        key_norm,
        output,
        attention_post_norm,
        mlp_norm,
        gate,
        up,
        down,
        mlp_post_norm,
    } = layer;
    let norms = [
        Some(attention_norm),
        query_norm.as_ref(),
        key_norm.as_ref(),
        attention_post_norm.as_ref(),
        Some(mlp_norm),
        mlp_post_norm.as_ref(),
    ];
    let linears = [query, key, value, output, gate, up, down].into_iter();
    let linears = linears.flat_map(|LinearWeights { weight, bias }| [Some(weight), bias.as_ref()]);
    norms.into_iter().chain(linears).flatten()
}

/// Whether a copy of the same shape holds the numbers of the model's tensor, rounded to its type.
fn same(copy: &StoredTensor, base: &StoredTensor) -> bool {
    /// Rows that are compared at a time.
    const ROWS: usize = 1024;
    if copy.dtype() == base.dtype() {
        return copy.bytes() == base.bytes();
    }
    let round = match copy.dtype() {
        StoredType::F32 => |x| x,
        StoredType::F16 => |x| f16::from_f32(x).to_f32(),
        StoredType::BF16 => |x| bf16::from_f32(x).to_f32(),
    };
    let rows = copy.shape()[0];
    (0..rows).step_by(ROWS).all(|from| {
        let range = from..(from + ROWS).min(rows);
        let base = base.rows(range.clone()).to_f32();
        copy.rows(range)
            .to_f32()
            .into_iter()
            .eq(base.into_iter().map(round))
    })
}
