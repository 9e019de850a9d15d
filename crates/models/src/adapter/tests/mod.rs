//! Files as they are met, good and bad. What PEFT computes with them is in the goldens.

mod digest;
mod refusals;
mod spellings;
mod write;

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use half::{bf16, f16};
use serde_json::{Value, json};

use super::*;
use crate::{Checkpoint, StoredType};

/// A tiny model of the goldens.
pub(super) struct Base {
    pub(super) config: DecoderConfig,
    pub(super) weights: Weights,
}

impl Base {
    fn read(name: &str) -> Self {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/data");
        let dir = goldens.join(name);
        let (config, _) = DecoderConfig::read(&dir).unwrap();
        let weights = Weights::take(&config, Checkpoint::open(&dir).unwrap()).unwrap();
        Self { config, weights }
    }
}

/// Two layers of width 32 with 4 query heads and 2 key heads of 8, intermediate 48, vocabulary 64,
/// whose embedding is the head.
pub(super) static TIED: LazyLock<Base> = LazyLock::new(|| Base::read("tied"));
/// The same sizes in f16, with fused projections and a head of its own.
pub(super) static PHI3: LazyLock<Base> = LazyLock::new(|| Base::read("phi3"));

/// A stored tensor in the making.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) dtype: StoredType,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

impl Stored {
    /// A tensor of numbers that every type holds exactly, others for each name.
    pub(super) fn new(name: &str, shape: &[usize]) -> Self {
        let mut state = name.bytes().fold(7_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
        });
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as f32 / 128.0 - 1.0
        };
        let count = shape.iter().product();
        Self {
            dtype: StoredType::F32,
            shape: shape.to_vec(),
            values: (0..count).map(|_| next()).collect(),
        }
    }

    pub(super) fn of(shape: &[usize], values: Vec<f32>) -> Self {
        Self {
            dtype: StoredType::F32,
            shape: shape.to_vec(),
            values,
        }
    }

    pub(super) fn transposed(&self) -> Self {
        let matrix = Matrix::new(self.shape[0], self.values.clone()).transposed();
        Self {
            dtype: self.dtype,
            shape: vec![self.shape[1], self.shape[0]],
            values: matrix.values().to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.dtype {
            StoredType::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            StoredType::F16 => values
                .flat_map(|x| f16::from_f32(*x).to_le_bytes())
                .collect(),
            StoredType::BF16 => values
                .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                .collect(),
        }
    }
}

/// The two files of an adapter in the making.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) config: Value,
    /// In the order of the file.
    pub(super) tensors: Vec<(String, Stored)>,
}

impl Files {
    /// An adapter of PEFT for these modules of every layer, of rank 2 and alpha 4.
    pub(super) fn peft(base: &Base, targets: &[&str]) -> Self {
        let mut files = Self {
            config: json!({
                "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
                "target_modules": targets, "bias": "none", "lora_dropout": 0.05,
            }),
            tensors: Vec::new(),
        };
        for module in site::Root::PLAIN.modules(&base.config) {
            let name = module.to_string();
            if targets.iter().any(|target| name.ends_with(target)) {
                files.add(base, &name, 2);
            }
        }
        files
    }

    /// Adds the tensors of a module.
    pub(super) fn add(&mut self, base: &Base, module: &str, rank: usize) {
        let sites = site::Module::parse(module).unwrap().sites();
        let sizes = sites.iter().map(|site| site.size(&base.config));
        let outputs = sizes.clone().map(|(outputs, _)| outputs).sum();
        let inputs = sizes.map(|(_, inputs)| inputs).max().unwrap();
        let (a, b) = if module.ends_with("embed_tokens") {
            ("lora_embedding_A", "lora_embedding_B")
        } else {
            ("lora_A.weight", "lora_B.weight")
        };
        for (part, shape) in [(a, [rank, inputs]), (b, [outputs, rank])] {
            let name = format!("base_model.model.{module}.{part}");
            let tensor = Stored::new(&name, &shape);
            self.tensors.push((name, tensor));
        }
    }

    pub(super) fn with(mut self, option: &str, value: impl Into<Value>) -> Self {
        self.config[option] = value.into();
        self
    }

    pub(super) fn with_tensor(mut self, name: &str, tensor: Stored) -> Self {
        self.tensors.push((name.to_owned(), tensor));
        self
    }

    /// With every name changed.
    pub(super) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        for (name, _) in &mut self.tensors {
            *name = rename(name);
        }
        self
    }

    /// Changes the tensor whose name ends so.
    pub(super) fn changed(mut self, end: &str, change: impl FnOnce(&mut Stored)) -> Self {
        let found = self
            .tensors
            .iter_mut()
            .find(|(name, _)| name.ends_with(end));
        change(&mut found.unwrap().1);
        self
    }

    /// Without the tensors whose names contain this.
    pub(super) fn without(mut self, part: &str) -> Self {
        self.tensors.retain(|(name, _)| !name.contains(part));
        self
    }

    /// The tensors under the names of this module.
    pub(super) fn tensor(&self, end: &str) -> Stored {
        let found = self.tensors.iter().find(|(name, _)| name.ends_with(end));
        found.unwrap().1.clone()
    }

    fn tensor_bytes(&self) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, tensor) in &self.tensors {
            let begin = data.len();
            data.extend(tensor.bytes());
            let dtype = match tensor.dtype {
                StoredType::F32 => "F32",
                StoredType::F16 => "F16",
                StoredType::BF16 => "BF16",
            };
            header.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]}),
            );
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        bytes
    }

    /// Puts them into a folder.
    pub(super) fn save(&self) -> (tempfile::TempDir, AdapterFiles) {
        let dir = tempfile::tempdir().unwrap();
        let files = AdapterFiles {
            tensors: dir.path().join("adapter_model.safetensors"),
            config: dir.path().join("adapter_config.json"),
        };
        fs::write(&files.tensors, self.tensor_bytes()).unwrap();
        fs::write(&files.config, self.config.to_string()).unwrap();
        (dir, files)
    }

    pub(super) fn try_read(&self, base: &Base) -> Result<Adapter, AdapterError> {
        let (_dir, files) = self.save();
        Adapter::read(
            &files,
            &base.config,
            &base.weights,
            AdapterLimits::default(),
        )
    }

    #[track_caller]
    pub(super) fn read(&self, base: &Base) -> Adapter {
        self.try_read(base)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The name of PEFT for a tensor of a layer's module.
pub(super) fn key(layer: usize, rest: &str) -> String {
    format!("base_model.model.model.layers.{layer}.{rest}")
}

/// The same adapter of PEFT as MLX would have it.
pub(super) fn as_mlx(peft: &Files) -> Files {
    let tensors = peft.tensors.iter().map(|(name, tensor)| {
        let name = name
            .replace("base_model.model.", "")
            .replace("lora_embedding_A", "lora_a")
            .replace("lora_embedding_B", "lora_b")
            .replace("lora_A.weight", "lora_a")
            .replace("lora_B.weight", "lora_b")
            .replace("lora_magnitude_vector", "m");
        let tensor = if tensor.shape.len() == 2 {
            tensor.transposed()
        } else {
            tensor.clone()
        };
        (name, tensor)
    });
    Files {
        config: json!({
            "fine_tune_type": "lora", "num_layers": 2, "model": "some/model", "iters": 100,
            "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0, "alpha": 16},
        }),
        tensors: tensors.collect(),
    }
}

#[test]
fn a_made_up_adapter_has_all_linear_maps_in_their_sizes() {
    let config = &PHI3.config;
    let mut number = 0.0;
    let adapter = Adapter::on_all_linear(config, 3, || {
        number += 1.0;
        number
    });
    let sites: Vec<Site> = adapter.parts().map(|(site, _)| site).collect();
    assert_eq!(sites.len(), config.num_layers() * Linear::ALL.len());
    for (site, part) in adapter.parts() {
        assert_eq!((part.rank(), part.size()), (3, site.size(config)), "{site}");
    }
    // Each number stands in one place.
    assert_eq!(adapter.bytes(), number as u64 * 4);
    let other = Adapter::on_all_linear(config, 3, || 0.5);
    assert_ne!(adapter.digest(), other.digest());
}
