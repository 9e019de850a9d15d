//! Adapters for [`crate::TinyModel`] in PEFT's form, made on the spot.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    Repository,
    tensors::{self, Random},
    tiny::{HIDDEN, INNER, LAYERS},
};

/// An adapter of `o_proj` and `down_proj` with random matrices, large enough that the answers of
/// the model are others.
#[derive(Clone, Copy, Debug)]
pub struct TinyAdapter {
    /// Seed of the matrices.
    pub seed: u64,
    /// Rank of all of them.
    pub rank: usize,
    /// Inputs of `o_proj`; another number than the model's fits no tiny model.
    pub hidden: usize,
}

impl TinyAdapter {
    /// The adapter of a seed, of rank 4.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rank: 4,
            hidden: HIDDEN,
        }
    }

    /// Writes PEFT's two files into a folder of a working copy.
    pub fn write(&self, repository: &Repository, folder: &str) -> Result<()> {
        self.write_as(
            repository,
            &format!("{folder}/adapter_model.safetensors"),
            &self.config(),
        )
    }

    /// Writes the tensors to a path, and beside them, under the name that belongs to it, `config`.
    pub fn write_as(&self, repository: &Repository, path: &str, config: &Value) -> Result<()> {
        repository.write(path, &self.tensors()?)?;
        let beside = match path.strip_suffix("adapter_model.safetensors") {
            Some(folder) => format!("{folder}adapter_config.json"),
            None => format!("{}.config.json", path.trim_end_matches(".safetensors")),
        };
        repository.write(&beside, serde_json::to_string_pretty(config)?.as_bytes())
    }

    /// `adapter_config.json`.
    pub fn config(&self) -> Value {
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": self.rank,
            "lora_alpha": 4 * self.rank, "target_modules": ["o_proj", "down_proj"],
            "bias": "none", "base_model_name_or_path": "tiny",
        })
    }

    /// The safetensors file.
    pub fn tensors(&self) -> Result<Vec<u8>> {
        let mut shapes = Vec::new();
        for layer in 0..LAYERS {
            for (module, inputs) in [("self_attn.o_proj", self.hidden), ("mlp.down_proj", INNER)] {
                let name = format!("base_model.model.model.layers.{layer}.{module}");
                shapes.push((format!("{name}.lora_A.weight"), vec![self.rank, inputs]));
                shapes.push((format!("{name}.lora_B.weight"), vec![HIDDEN, self.rank]));
            }
        }
        let mut random = Random::new(self.seed);
        tensors::file(shapes, |_| random.next())
    }
}
