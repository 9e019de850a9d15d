//! What a model is: its weights, packed, and what they are for. How it is computed is not known
//! here.

use hyprstream_models::{Activation, DecoderConfig, StoredTensor};

use crate::{format::Format, weights::Weights};

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

impl Precision {
    /// As [`hyprstream_models::DType`] names it.
    pub(crate) fn dtype(self) -> &'static str {
        if self.half_cache {
            "bfloat16"
        } else {
            "float32"
        }
    }
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

/// The inputs of the matrices of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Of query, key and value.
    Hidden,
    /// Of the output of attention.
    Attended,
    /// Of gate and up.
    Gated,
    /// Of down.
    Inner,
}

impl Part {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Hidden, Self::Attended, Self::Gated, Self::Inner];
}

impl Model {
    /// Whether the gate is a GELU.
    pub(crate) fn gelu(&self) -> bool {
        self.config.activation == Activation::GeluTanh
    }
}

impl Layer {
    /// Bytes of its matrices in memory.
    pub(crate) fn bytes(&self) -> usize {
        let all = [&self.qkv, &self.output, &self.gate_up, &self.down];
        let all = all.into_iter().chain(&self.key_value);
        all.map(|linear| linear.weights.bytes()).sum()
    }
}
