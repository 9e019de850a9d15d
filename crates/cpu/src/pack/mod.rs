//! Packing a stored model for the kernels.

mod calibration;
mod packer;

use hyprstream_models::{DecoderConfig, LoadError, Weights as StoredWeights};

use calibration::Calibration;
pub use calibration::SAMPLE_TEXT;
use packer::Packer;

use crate::{
    buffer::Arena,
    format::{Format, bf16_bits, bf16_value},
    kernels::{LANES, Ops},
    model::{Columns, Layer, Model, Precision},
    pool::Pool,
    weights::panels_of,
};

/// Packs `stored`. Pages of the files that have been packed are given back as it goes, so that
/// the model is in memory once.
///
/// The scales of weights in 4 bits favour the inputs that `sample`, tokens of some text, makes
/// large. They are found by running it through the layers before these are packed, so that
/// one layer more is in memory meanwhile. Without a sample all inputs count alike.
pub(crate) fn pack(
    config: DecoderConfig,
    stored: &StoredWeights,
    precision: Precision,
    sample: &[u32],
    ops: &Ops,
    pool: &mut Pool,
) -> Result<Model, LoadError> {
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
    let mut model = Model {
        weight_bytes: 0,
        columns,
        embedding: stored.embedding.clone(),
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
