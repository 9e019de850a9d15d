//! An adapter as the kernels want it.

use hyprstream_models::{
    DecoderConfig,
    adapter::{Linear, Site},
};

use crate::{
    format::Format,
    kernels::{Kernels, LANES},
    model::{Columns, Model, Part},
    weights::Weights,
};

/// Everything about a model that packed adapters depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(super) layers: usize,
    pub(super) vocab: usize,
    /// Inputs of each [`Part`].
    pub(super) inputs: [usize; 4],
    /// Those of a layer.
    pub(super) maps: [(Linear, Map); 7],
    kernels: Kernels,
    /// Of the first factors: what the rows of a layer are multiplied by.
    pub(crate) narrow: Format,
    /// Of the second ones.
    pub(crate) wide: Format,
}

/// A linear map that can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) part: Part,
    pub(super) outputs: usize,
    /// Its first panel in the output of its part, and the distance to the next.
    pub(super) first: usize,
    pub(super) stride: usize,
}

impl Shape {
    pub(crate) fn of(model: &Model, kernels: Kernels) -> Self {
        let config = &model.config;
        let (narrow, wide) = formats(model.precision.layers);
        Self {
            layers: config.num_layers(),
            vocab: config.vocab_size,
            inputs: [
                config.hidden_size,
                config.num_heads * config.head_dim,
                config.hidden_size,
                config.intermediate_size,
            ],
            maps: maps(config, model.columns),
            kernels,
            narrow,
            wide,
        }
    }

    /// The head, as a map of the layer after the last.
    pub(super) fn head(&self) -> Map {
        Map {
            part: Part::Hidden,
            outputs: self.vocab,
            first: 0,
            stride: 1,
        }
    }

    /// Outputs and inputs at a place of the model; `None` where it has no such layer.
    pub(super) fn size(&self, site: Site) -> Option<(usize, usize)> {
        let hidden = self.inputs[Part::Hidden as usize];
        match site {
            Site::Layer(index, _) if index >= self.layers => None,
            Site::Layer(_, linear) => {
                let (_, map) = self.maps.iter().find(|(of, _)| *of == linear)?;
                Some((map.outputs, self.inputs[map.part as usize]))
            }
            Site::Embedding => Some((hidden, self.vocab)),
            Site::Head => Some((self.vocab, hidden)),
        }
    }
}

/// How the factors are kept for a model whose layers have matrices in `layers`: the first one as
/// the input of those matrices wants it.
pub(crate) fn formats(layers: Format) -> (Format, Format) {
    match layers {
        Format::F32 => (Format::F32, Format::F32),
        Format::Bf16 => (Format::Bf16, Format::Bf16),
        Format::Int8 | Format::Int4 => (Format::Int8, Format::Bf16),
    }
}

fn maps(config: &DecoderConfig, columns: Columns) -> [(Linear, Map); 7] {
    Linear::ALL.map(|linear| {
        let (part, first, stride) = match linear {
            Linear::Query => (Part::Hidden, 0, 1),
            Linear::Key => (Part::Hidden, columns.key / LANES, 1),
            Linear::Value => (Part::Hidden, columns.value / LANES, 1),
            Linear::Output => (Part::Attended, 0, 1),
            // Their panels take turns.
            Linear::Gate => (Part::Gated, 0, 2),
            Linear::Up => (Part::Gated, 1, 2),
            Linear::Down => (Part::Inner, 0, 1),
        };
        let (outputs, _) = linear.size(config);
        let map = Map {
            part,
            outputs,
            first,
            stride,
        };
        (linear, map)
    })
}

/// A packed adapter.
#[derive(Debug)]
pub(crate) struct Packed {
    /// What it was packed for.
    pub(crate) shape: Shape,
    /// The last one is the head, whose input counts as [`Part::Hidden`].
    pub(super) layers: Vec<[Option<Factors>; 4]>,
    pub(crate) embedding: Option<TokenFactors>,
    /// Most values that a token has between the factors of an input.
    pub(crate) width: usize,
}

/// The factors of all maps of one input.
#[derive(Debug)]
pub(crate) struct Factors {
    /// The first ones, one after the other.
    pub(crate) narrow: Weights,
    pub(crate) wide: Vec<Wide>,
}

/// The second factor of a map.
#[derive(Debug)]
pub(crate) struct Wide {
    pub(crate) weights: Weights,
    /// With DoRA: what is added to the product of the matrix, as a share of it, for each column of
    /// all panels.
    pub(crate) gains: Option<Vec<f32>>,
    /// Where its inputs begin among the outputs of [`Factors::narrow`].
    pub(crate) from: usize,
    /// Its first panel in the output of the part, and the distance to the next.
    pub(crate) first: usize,
    pub(crate) stride: usize,
}

/// The factors of the embedding.
#[derive(Debug)]
pub(crate) struct TokenFactors {
    pub(super) rank: usize,
    /// `[vocab, rank]`.
    pub(super) narrow: Vec<f32>,
    /// `[rank, hidden]`.
    pub(super) wide: Vec<f32>,
    /// As [`Wide::gains`], `[hidden]`.
    pub(super) gains: Option<Vec<f32>>,
}

impl TokenFactors {
    /// Adds `scale` times the change of `token` to `x`; its embedding is `base`.
    pub(crate) fn add(&self, token: usize, scale: f32, base: &[f32], x: &mut [f32]) {
        if let Some(gains) = &self.gains {
            for ((x, base), gain) in x.iter_mut().zip(base).zip(gains) {
                *x += scale * gain * base;
            }
        }
        let narrow = &self.narrow[token * self.rank..][..self.rank];
        for (factor, row) in narrow.iter().zip(self.wide.chunks_exact(x.len())) {
            let factor = scale * factor;
            for (x, value) in x.iter_mut().zip(row) {
                *x += factor * value;
            }
        }
    }
}

impl Packed {
    /// The factors of one input of a layer, if it changes what that becomes. The layer after the
    /// last is the head.
    pub(crate) fn factors(&self, layer: usize, part: Part) -> Option<&Factors> {
        self.layers[layer][part as usize].as_ref()
    }
}
