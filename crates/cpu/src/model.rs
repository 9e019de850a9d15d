//! A model whose weights are packed for the kernels.

use std::sync::atomic::{AtomicBool, Ordering};

use hyprstream_models::{
    Activation, DecoderConfig, LayerWeights, LinearWeights, LoadError, StoredTensor,
    Weights as StoredWeights,
};

use crate::{
    buffer::Arena,
    calibration::{Calibration, Importance},
    format::{Format, bf16_bits, bf16_value},
    kernels::{LANES, Ops},
    pool::Pool,
    step::Part,
    weights::{Matrix, PackError, PanelSource, Weights, panels_of},
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
            arena: Arena::default(),
            plus_one: config.norm_plus_one,
        };
        let stored_head = stored.head.as_ref().unwrap_or(&stored.embedding);
        let panels: Vec<_> = panels_of(&stored_head.into()).collect();
        let head = packer.linear(&panels, precision.head.into(), &[stored_head])?;
        stored_head.release();
        if stored.head.is_some() {
            packer.check_finite(&stored.embedding)?;
        }
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
            norm: packer.norm(&stored.norm)?,
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
                    // It goes away again, so it shares no map with what stays.
                    let kept = std::mem::take(&mut packer.arena);
                    let whole = packer.layer(layer, calibration.precision(), None)?;
                    packer.arena = kept;
                    Some(calibration.layer(&model, index, &whole, ops, packer.pool)?)
                }
                None => None,
            };
            let layer = packer.layer(layer, precision, importance.as_ref());
            model.layers.push(layer?);
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

struct Packer<'a> {
    ops: &'a Ops,
    pool: &'a mut Pool,
    /// Where the matrices go.
    arena: Arena,
    plus_one: bool,
}

impl Packer<'_> {
    /// Refuses what is not finite, with all threads.
    fn check_finite(&mut self, tensor: &StoredTensor) -> Result<(), LoadError> {
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

    fn norm(&self, tensor: &StoredTensor) -> Result<Vec<f32>, LoadError> {
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
    fn linear(
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

    fn layer(
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

impl Layer {
    /// Bytes of its matrices in memory.
    fn bytes(&self) -> usize {
        let all = [&self.qkv, &self.output, &self.gate_up, &self.down];
        let all = all.into_iter().chain(&self.key_value);
        all.map(|linear| linear.weights.bytes()).sum()
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
