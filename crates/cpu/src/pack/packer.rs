//! Packs matrix by matrix.

use std::sync::atomic::{AtomicBool, Ordering};

use hyprstream_models::{LayerWeights, LinearWeights, LoadError, StoredTensor};

use super::calibration::Importance;
use crate::{
    buffer::Arena,
    format::Format,
    kernels::{LANES, Ops},
    model::{Layer, Linear, Part, Precision},
    pool::Pool,
    weights::{Matrix, PackError, PanelSource, Weights, panels_of},
};

/// Packs matrices.
pub(super) struct Packer<'a> {
    pub(super) ops: &'a Ops,
    pub(super) pool: &'a mut Pool,
    /// Where the matrices go.
    pub(super) arena: Arena,
    /// Norms multiply by one more than is stored.
    pub(super) plus_one: bool,
}

/// How the matrices of one input are kept.
#[derive(Clone, Copy)]
pub(super) struct Form<'a> {
    format: Format,
    /// How much each input counts, if they do not count alike.
    importance: Option<&'a [f32]>,
}

impl From<Format> for Form<'_> {
    fn from(format: Format) -> Self {
        Self {
            format,
            importance: None,
        }
    }
}

impl Packer<'_> {
    /// Refuses what is not finite, with all threads.
    pub(super) fn check_finite(&mut self, tensor: &StoredTensor) -> Result<(), LoadError> {
        const PIECE: usize = 1 << 20;
        let (bytes, finite) = (tensor.bytes(), AtomicBool::new(true));
        self.pool.run(|team| {
            team.each(bytes.len().div_ceil(PIECE), |piece| {
                let piece = &bytes[piece * PIECE..];
                if !tensor.dtype().all_finite(&piece[..PIECE.min(piece.len())]) {
                    finite.store(false, Ordering::Relaxed);
                }
            });
        });
        if finite.into_inner() {
            Ok(())
        } else {
            tensor.check_finite()
        }
    }

    pub(super) fn norm(&self, tensor: &StoredTensor) -> Result<Vec<f32>, LoadError> {
        tensor.check_finite()?;
        let mut weights = tensor.to_f32();
        if self.plus_one {
            for weight in &mut weights {
                *weight += 1.0;
            }
        }
        Ok(weights)
    }

    fn optional_norm(&self, tensor: Option<&StoredTensor>) -> Result<Option<Vec<f32>>, LoadError> {
        tensor.map(|tensor| self.norm(tensor)).transpose()
    }

    /// Packs `panels`, which are of `tensors`.
    pub(super) fn linear(
        &mut self,
        panels: &[PanelSource<'_>],
        form: Form<'_>,
        tensors: &[&StoredTensor],
    ) -> Result<Linear, LoadError> {
        let Form { format, importance } = form;
        Ok(Linear {
            weights: Weights::pack(
                panels,
                format,
                importance,
                &mut self.arena,
                self.ops,
                self.pool,
            )
            .map_err(|error| refused(&error, tensors, format))?,
            inputs: panels.first().map_or(0, |panel| panel.matrix.inputs),
            bias: Vec::new(),
        })
    }

    /// Several maps of one input, one after the other.
    fn stack(&mut self, parts: &[&LinearWeights], form: Form<'_>) -> Result<Linear, LoadError> {
        let panels: Vec<_> = parts
            .iter()
            .flat_map(|part| panels_of(&Matrix::from(&part.weight)))
            .collect();
        let tensors: Vec<_> = parts.iter().map(|part| &part.weight).collect();
        let mut linear = self.linear(&panels, form, &tensors)?;
        if parts.iter().any(|part| part.bias.is_some()) {
            for part in parts {
                linear.bias.extend(bias(part)?);
            }
        }
        release(parts);
        Ok(linear)
    }

    /// Two maps of one input, panel by panel.
    fn interleave(
        &mut self,
        [first, second]: [&LinearWeights; 2],
        form: Form<'_>,
    ) -> Result<Linear, LoadError> {
        let two = panels_of(&Matrix::from(&second.weight));
        let both: Vec<_> = panels_of(&Matrix::from(&first.weight))
            .zip(two)
            .flat_map(|(a, b)| [a, b])
            .collect();
        let mut linear = self.linear(&both, form, &[&first.weight, &second.weight])?;
        if first.bias.is_some() || second.bias.is_some() {
            let (one, two) = (bias(first)?, bias(second)?);
            for (a, b) in one.chunks_exact(LANES).zip(two.chunks_exact(LANES)) {
                linear.bias.extend_from_slice(a);
                linear.bias.extend_from_slice(b);
            }
        }
        release(&[first, second]);
        Ok(linear)
    }

    pub(super) fn layer(
        &mut self,
        layer: &LayerWeights,
        precision: Precision,
        importance: Option<&Importance>,
    ) -> Result<Layer, LoadError> {
        let format = precision.layers;
        let [hidden, attended, gated, inner] = Part::ALL.map(|part| Form {
            format,
            importance: importance.map(|importance| importance.of(part)),
        });
        let (query, rest) = (&layer.query, [&layer.key, &layer.value]);
        let (first, key_value) = if precision.keys_values == format {
            (vec![query, &layer.key, &layer.value], None)
        } else {
            let rest = self.stack(&rest, precision.keys_values.into())?;
            (vec![query], Some(rest))
        };
        Ok(Layer {
            attention_norm: self.norm(&layer.attention_norm)?,
            qkv: self.stack(&first, hidden)?,
            key_value,
            query_norm: self.optional_norm(layer.query_norm.as_ref())?,
            key_norm: self.optional_norm(layer.key_norm.as_ref())?,
            output: self.stack(&[&layer.output], attended)?,
            attention_post_norm: self.optional_norm(layer.attention_post_norm.as_ref())?,
            mlp_norm: self.norm(&layer.mlp_norm)?,
            gate_up: self.interleave([&layer.gate, &layer.up], gated)?,
            down: self.stack(&[&layer.down], inner)?,
            mlp_post_norm: self.optional_norm(layer.mlp_post_norm.as_ref())?,
        })
    }
}

/// A bias for each column of the panels.
fn bias(linear: &LinearWeights) -> Result<Vec<f32>, LoadError> {
    let mut bias = Vec::new();
    if let Some(tensor) = &linear.bias {
        tensor.check_finite()?;
        bias = tensor.to_f32();
    }
    bias.resize(linear.weight.shape()[0].next_multiple_of(LANES), 0.0);
    Ok(bias)
}

fn release(parts: &[&LinearWeights]) {
    for part in parts {
        part.weight.release();
    }
}

/// Why `tensors` could not be packed as `format`, with the name of the one that is at fault.
fn refused(error: &PackError, tensors: &[&StoredTensor], format: Format) -> LoadError {
    let faults = || {
        tensors
            .iter()
            .find_map(|tensor| tensor.check_finite().err())
    };
    match error {
        PackError::Memory(source) => LoadError::OutOfMemory(format!("{error}: {source}")),
        PackError::NotFinite => faults().expect("a number in one of them is not finite"),
        PackError::TooLarge => {
            let largest = |tensor: &&StoredTensor| {
                let numbers = tensor.to_f32().into_iter();
                numbers.fold(0.0_f32, |largest, number| largest.max(number.abs()))
            };
            let each = tensors.iter().map(|tensor| (largest(tensor), tensor));
            let (value, tensor) = each
                .max_by(|(a, _), (b, _)| a.total_cmp(b))
                .expect("there is a tensor");
            let (what, help) = match format {
                Format::Bf16 | Format::F32 => ("bfloat16", "dtype float32"),
                Format::Int8 => ("8 bits", "quantization none"),
                Format::Int4 => ("4 bits", "quantization none or int8"),
            };
            tensor.invalid(format_args!(
                "holds a weight of magnitude {value:e}, which is too large for {what}: use {help}"
            ))
        }
    }
}
