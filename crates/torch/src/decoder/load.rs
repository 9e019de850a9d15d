//! From stored tensors to a decoder on a device.
#![allow(unsafe_code)]

use hyprstream_models::{
    AttentionKind, DecoderConfig, LayerWeights, LinearWeights, LoadError, StoredTensor, StoredType,
    Weights,
};
use tch::{Device, Kind, TchError, Tensor};

use super::{Attention, Decoder, Layer, Mlp};
use crate::{
    attention::Attend,
    error::load_error,
    layers::{Linear, RmsNorm},
    load::dtype_name,
    rope::Rope,
};

impl Decoder {
    /// The model that `config` describes, in the type `kind` on `device`.
    ///
    /// Tensors that are stored in this type, on the CPU, point into the files of `weights`, which
    /// must outlive the decoder.
    pub(crate) fn load(
        config: &DecoderConfig,
        weights: &Weights,
        kind: Kind,
        device: Device,
    ) -> Result<Self, LoadError> {
        let mut windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let loader = Loader {
            config,
            kind,
            device,
        };
        let embedding = loader.tensor(&weights.embedding)?;
        let head = Linear {
            weight: match &weights.head {
                None => embedding.shallow_clone(),
                Some(head) => loader.tensor(head)?,
            },
            bias: None,
        };
        let layers = weights
            .layers
            .iter()
            .zip(&config.layers)
            .enumerate()
            .map(|(index, (weights, attention))| loader.layer(index, weights, *attention, &windows))
            .collect::<Result<_, _>>()?;
        let ropes = config.ropes.iter().map(|r| Rope::new(r, kind, device));
        Ok(Self {
            embedding,
            embedding_scale: rounded(config.embedding_scale, kind)
                .map_err(load_error("preparing the embedding"))?,
            layers,
            norm: loader.norm(&weights.norm)?,
            head,
            logit_softcap: config.logit_softcap,
            ropes: ropes
                .collect::<Result<_, _>>()
                .map_err(load_error("preparing the rotary embedding"))?,
            windows,
        })
    }
}

struct Loader<'a> {
    config: &'a DecoderConfig,
    kind: Kind,
    device: Device,
}

impl Loader<'_> {
    fn layer(
        &self,
        index: usize,
        weights: &LayerWeights,
        kind: AttentionKind,
        windows: &[Option<usize>],
    ) -> Result<Layer, LoadError> {
        let config = self.config;
        Ok(Layer {
            attention_norm: self.norm(&weights.attention_norm)?,
            attention: Attention {
                query: self.linear(&weights.query)?,
                key: self.linear(&weights.key)?,
                value: self.linear(&weights.value)?,
                query_norm: self.optional_norm(weights.query_norm.as_ref())?,
                key_norm: self.optional_norm(weights.key_norm.as_ref())?,
                output: self.linear(&weights.output)?,
                rope: kind.rope,
                attend: Attend {
                    layer: index,
                    window: windows.iter().position(|w| *w == kind.window).unwrap_or(0),
                    scale: config.attention_scale,
                    softcap: config.attention_softcap,
                },
                num_heads: config.num_heads as i64,
                num_kv_heads: config.num_kv_heads as i64,
                head_dim: config.head_dim as i64,
            },
            attention_post_norm: self.optional_norm(weights.attention_post_norm.as_ref())?,
            mlp_norm: self.norm(&weights.mlp_norm)?,
            mlp: Mlp {
                gate: self.linear(&weights.gate)?,
                up: self.linear(&weights.up)?,
                down: self.linear(&weights.down)?,
                activation: config.activation,
            },
            mlp_post_norm: self.optional_norm(weights.mlp_post_norm.as_ref())?,
        })
    }

    fn linear(&self, weights: &LinearWeights) -> Result<Linear, LoadError> {
        Ok(Linear {
            weight: self.tensor(&weights.weight)?,
            bias: weights.bias.as_ref().map(|b| self.tensor(b)).transpose()?,
        })
    }

    fn norm(&self, weight: &StoredTensor) -> Result<RmsNorm, LoadError> {
        let eps = self.config.norm_eps;
        let weight = self.tensor(weight)?;
        if self.config.norm_plus_one {
            RmsNorm::plus_one(&weight, eps).map_err(load_error("preparing a norm"))
        } else {
            Ok(RmsNorm::new(weight, eps))
        }
    }

    fn optional_norm(&self, weight: Option<&StoredTensor>) -> Result<Option<RmsNorm>, LoadError> {
        weight.map(|weight| self.norm(weight)).transpose()
    }

    fn tensor(&self, stored: &StoredTensor) -> Result<Tensor, LoadError> {
        let tensor = view(stored)
            .and_then(|tensor| tensor.f_to_device(self.device)?.f_to_kind(self.kind))
            .map_err(load_error("moving the weights to the device"))?;
        self.check_finite(stored, &tensor)?;
        Ok(tensor)
    }

    /// Refuses numbers that are not finite, in the file or in the type of the model.
    fn check_finite(&self, stored: &StoredTensor, tensor: &Tensor) -> Result<(), LoadError> {
        let finite = if self.device == Device::Cpu && self.kind == kind_of(stored.dtype()) {
            stored.dtype().all_finite(stored.bytes())
        } else {
            // On the device, which is faster at it.
            tensor
                .f_isfinite()
                .and_then(|finite| finite.f_all()?.f_int64_value(&[]))
                .map_err(load_error("looking for weights that are not finite"))?
                != 0
        };
        if finite {
            return Ok(());
        }
        stored.check_finite()?;
        Err(stored.invalid(format_args!(
            "holds a weight that is too large for {}: use another dtype",
            dtype_name(self.kind)
        )))
    }
}

/// The stored tensor on the CPU. It points into the file, unless it is not aligned there.
fn view(stored: &StoredTensor) -> Result<Tensor, TchError> {
    let (bytes, kind) = (stored.bytes(), kind_of(stored.dtype()));
    let shape: Vec<i64> = stored.shape().iter().map(|&size| size as i64).collect();
    let width = kind.elt_size_in_bytes();
    if bytes.as_ptr().addr().is_multiple_of(width) {
        // SAFETY: the bytes are those of a tensor of this shape and type, by the invariant of
        // `StoredTensor`; they are aligned; they stay mapped as long as the backend keeps the
        // file, which it drops last; and no weight is written to.
        unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &[], kind, Device::Cpu) }
    } else {
        Tensor::f_from_data_size(bytes, &shape, kind)
    }
}

/// libtorch's name of a type.
pub(crate) fn kind_of(stored: StoredType) -> Kind {
    match stored {
        StoredType::F32 => Kind::Float,
        StoredType::F16 => Kind::Half,
        StoredType::BF16 => Kind::BFloat16,
    }
}

/// The number as `kind` holds it.
fn rounded(number: f64, kind: Kind) -> Result<f64, TchError> {
    Tensor::f_from_slice(&[number as f32])?
        .f_to_kind(kind)?
        .f_double_value(&[0])
}

#[cfg(test)]
mod tests {
    use hyprstream_models::Checkpoint;

    use super::*;

    #[test]
    fn tensors_point_into_the_file_where_their_type_allows() {
        let header = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        for padding in 0..8 {
            let header = format!("{header}{}", " ".repeat(padding));
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend([1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()));
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
            let stored = Checkpoint::open(dir.path())
                .unwrap()
                .take("x", &[2])
                .unwrap();
            let tensor = view(&stored).unwrap();
            assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [1.0, 2.0]);
            let mapped = tensor.data_ptr().addr() == stored.bytes().as_ptr().addr();
            let aligned = (8 + header.len()).is_multiple_of(4);
            assert_eq!(mapped, aligned, "{padding}");
        }
    }
}
