//! A model whose weights are packed for the kernels.

use std::io;

use hyprstream_models::{
    Activation, DecoderConfig, LayerWeights, LinearWeights, LoadError, StoredTensor,
    Weights as StoredWeights,
};

use crate::{
    calibration::{Calibration, Importance},
    format::{Format, bf16_bits, bf16_value},
    kernels::{LANES, Ops},
    pool::Pool,
    step::Part,
    weights::{Matrix, PanelSource, Weights, panels_of},
};

/// How a model's weights are kept and what it computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Precision {
    /// The matrices of the layers.
    pub(crate) layers: Format,
    /// Those that give the keys and values of attention: few weights that much depends on.
    pub(crate) keys_values: Format,
    /// The head.
    pub(crate) head: Format,
    /// Keys and values are bf16, not f32.
    pub(crate) half_cache: bool,
}

/// `y = x W^T + b`, several of them one after the other where they have the same input.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weights: Weights,
    /// Inputs.
    pub(crate) inputs: usize,
    /// One for each column of all panels; empty where there is none.
    pub(crate) bias: Vec<f32>,
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    /// Query, key and value, each beginning with a panel: see [`Columns`].
    pub(crate) qkv: Linear,
    /// Key and value where they are in another format; the output of `qkv` ends before them then.
    pub(crate) key_value: Option<Linear>,
    pub(crate) query_norm: Option<Vec<f32>>,
    pub(crate) key_norm: Option<Vec<f32>>,
    pub(crate) output: Linear,
    pub(crate) attention_post_norm: Option<Vec<f32>>,
    pub(crate) mlp_norm: Vec<f32>,
    /// Panels of gate and of up by turns.
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
    pub(crate) mlp_post_norm: Option<Vec<f32>>,
}

/// Where query, key and value begin in the output of [`Layer::qkv`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) key: usize,
    pub(crate) value: usize,
    /// Of a whole row.
    pub(crate) all: usize,
}

/// A packed model. The embedding stays in its mapped file: a step reads few rows of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: DecoderConfig,
    pub(crate) columns: Columns,
    pub(crate) embedding: StoredTensor,
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    pub(crate) head: Linear,
    pub(crate) precision: Precision,
    /// Bytes of the packed weights.
    pub(crate) weight_bytes: u64,
}

/// How the matrices of one input are kept.
#[derive(Clone, Copy)]
struct Form<'a> {
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

impl Model {
    /// Packs `stored`. Pages of the files that have been packed are given back as it goes, so that
    /// the model is in memory once.
    ///
    /// The scales of weights in 4 bits favour the inputs that `sample`, tokens of some text, makes
    /// large. They are found by running it through the layers before these are packed, so that
    /// one layer more is in memory meanwhile. Without a sample all inputs count alike.
    pub(crate) fn pack(
        config: DecoderConfig,
        stored: StoredWeights,
        precision: Precision,
        sample: &[u32],
        ops: &Ops,
        pool: &mut Pool,
    ) -> Result<Self, LoadError> {
        let width = config.head_dim;
        let key = (config.num_heads * width).next_multiple_of(LANES);
        let value = key + (config.num_kv_heads * width).next_multiple_of(LANES);
        let columns = Columns {
            key,
            value,
            all: value + value - key,
        };
        let mut packer = Packer {
            ops,
            pool,
            plus_one: config.norm_plus_one,
        };
        let stored_head = stored.head.as_ref().unwrap_or(&stored.embedding);
        let panels: Vec<_> = panels_of(&stored_head.into()).collect();
        let head = packer
            .linear(&panels, precision.head.into())
            .map_err(out_of_memory)?;
        stored_head.release();
        let scale = config.embedding_scale as f32;
        let mut model = Self {
            weight_bytes: 0,
            columns,
            embedding: stored.embedding,
            embedding_scale: if precision.layers == Format::F32 {
                scale
            } else {
                bf16_value(bf16_bits(scale))
            },
            layers: Vec::with_capacity(stored.layers.len()),
            norm: packer.norm(&stored.norm),
            head,
            precision,
            config,
        };
        let mut calibration = if precision.layers == Format::Int4 && !sample.is_empty() {
            Some(Calibration::new(&model, sample, ops, packer.pool)?)
        } else {
            None
        };
        for (index, layer) in stored.layers.iter().enumerate() {
            let importance = match &mut calibration {
                Some(calibration) => {
                    let whole = packer.layer(layer, calibration.precision(), None);
                    let whole = whole.map_err(out_of_memory)?;
                    Some(calibration.layer(&model, index, &whole, ops, packer.pool)?)
                }
                None => None,
            };
            let layer = packer.layer(layer, precision, importance.as_ref());
            model.layers.push(layer.map_err(out_of_memory)?);
        }
        let layers = model.layers.iter().map(Layer::bytes).sum::<usize>();
        model.weight_bytes = (layers + model.head.weights.bytes()) as u64;
        Ok(model)
    }

    /// Whether the gate is a GELU.
    pub(crate) fn gelu(&self) -> bool {
        self.config.activation == Activation::GeluTanh
    }
}

#[allow(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn out_of_memory(error: io::Error) -> LoadError {
    LoadError::OutOfMemory(format!(
        "there is no memory for the packed weights: {error}"
    ))
}

struct Packer<'a> {
    ops: &'a Ops,
    pool: &'a mut Pool,
    plus_one: bool,
}

impl Packer<'_> {
    fn norm(&self, tensor: &StoredTensor) -> Vec<f32> {
        let mut weights = tensor.to_f32();
        if self.plus_one {
            for weight in &mut weights {
                *weight += 1.0;
            }
        }
        weights
    }

    fn optional_norm(&self, tensor: Option<&StoredTensor>) -> Option<Vec<f32>> {
        tensor.map(|tensor| self.norm(tensor))
    }

    fn linear(&mut self, panels: &[PanelSource<'_>], form: Form<'_>) -> io::Result<Linear> {
        Ok(Linear {
            weights: Weights::pack(panels, form.format, form.importance, self.ops, self.pool)?,
            inputs: panels.first().map_or(0, |panel| panel.matrix.inputs),
            bias: Vec::new(),
        })
    }

    /// Several maps of one input, one after the other.
    fn stack(&mut self, parts: &[&LinearWeights], form: Form<'_>) -> io::Result<Linear> {
        let panels: Vec<_> = parts
            .iter()
            .flat_map(|part| panels_of(&Matrix::from(&part.weight)))
            .collect();
        let mut linear = self.linear(&panels, form)?;
        if parts.iter().any(|part| part.bias.is_some()) {
            linear.bias = parts.iter().flat_map(|part| bias(part)).collect();
        }
        release(parts);
        Ok(linear)
    }

    /// Two maps of one input, panel by panel.
    fn interleave(
        &mut self,
        [first, second]: [&LinearWeights; 2],
        form: Form<'_>,
    ) -> io::Result<Linear> {
        let two = panels_of(&Matrix::from(&second.weight));
        let both: Vec<_> = panels_of(&Matrix::from(&first.weight))
            .zip(two)
            .flat_map(|(a, b)| [a, b])
            .collect();
        let mut linear = self.linear(&both, form)?;
        if first.bias.is_some() || second.bias.is_some() {
            let (one, two) = (bias(first), bias(second));
            for (a, b) in one.chunks_exact(LANES).zip(two.chunks_exact(LANES)) {
                linear.bias.extend_from_slice(a);
                linear.bias.extend_from_slice(b);
            }
        }
        release(&[first, second]);
        Ok(linear)
    }

    fn layer(
        &mut self,
        layer: &LayerWeights,
        precision: Precision,
        importance: Option<&Importance>,
    ) -> io::Result<Layer> {
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
            attention_norm: self.norm(&layer.attention_norm),
            qkv: self.stack(&first, hidden)?,
            key_value,
            query_norm: self.optional_norm(layer.query_norm.as_ref()),
            key_norm: self.optional_norm(layer.key_norm.as_ref()),
            output: self.stack(&[&layer.output], attended)?,
            attention_post_norm: self.optional_norm(layer.attention_post_norm.as_ref()),
            mlp_norm: self.norm(&layer.mlp_norm),
            gate_up: self.interleave([&layer.gate, &layer.up], gated)?,
            down: self.stack(&[&layer.down], inner)?,
            mlp_post_norm: self.optional_norm(layer.mlp_post_norm.as_ref()),
        })
    }
}

impl Layer {
    /// Bytes of its matrices in memory.
    fn bytes(&self) -> usize {
        let all = [&self.qkv, &self.output, &self.gate_up, &self.down];
        let all = all.into_iter().chain(&self.key_value);
        all.map(|linear| linear.weights.bytes()).sum()
    }
}

/// A bias for each column of the panels.
fn bias(linear: &LinearWeights) -> Vec<f32> {
    let mut bias = linear
        .bias
        .as_ref()
        .map_or_else(Vec::new, StoredTensor::to_f32);
    bias.resize(linear.weight.shape()[0].next_multiple_of(LANES), 0.0);
    bias
}

fn release(parts: &[&LinearWeights]) {
    for part in parts {
        part.weight.release();
    }
}
