//! The models that are compared, in our layout and as GGUF.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{paths::Cache, proc, ui::Step, weights};

/// A model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// SmolLM2-135M-Instruct.
    SmolLm2,
    /// Gemma-3-270m.
    Gemma3,
}

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Bf16,
    Int8,
    Int4,
}

impl Form {
    /// The value of our `--quantization`.
    pub(super) fn ours(self) -> &'static str {
        match self {
            Self::Bf16 => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// llama.cpp's name of the nearest.
    pub(super) fn gguf(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Int8 => "Q8_0",
            Self::Int4 => "Q4_0",
        }
    }
}

/// Finds and makes models.
pub(super) struct Models<'a> {
    pub(super) cache: &'a Cache,
    pub(super) log: PathBuf,
}

impl Models<'_> {
    /// The Hugging Face folder of a model.
    pub(super) fn folder(&self, model: Model, step: &Step) -> Result<PathBuf> {
        match model {
            Model::SmolLm2 => weights::ensure_smollm2(self.cache, &self.log, step),
            Model::Gemma3 => weights::ensure_gemma3(self.cache, &self.log, step),
        }
    }

    /// The GGUF file of a model, made with `quantize`, llama.cpp's program. Our weights were
    /// made from the same source, so both compute with the same numbers before each rounds them.
    pub(super) fn gguf(
        &self,
        model: Model,
        form: Form,
        quantize: &Path,
        step: &Step,
    ) -> Result<PathBuf> {
        let name = match model {
            Model::SmolLm2 => "smollm2",
            Model::Gemma3 => "gemma3",
        };
        let kind = form.gguf();
        let dir = self
            .cache
            .ensure(&format!("peers/gguf/{name}-{kind}"), |dir| {
                let source = dir.join("source.gguf");
                let bytes = match model {
                    Model::SmolLm2 => weights::smollm2_gguf(self.cache, dir, &self.log),
                    Model::Gemma3 => weights::gemma3_gguf(self.cache, dir, &self.log, step),
                }?;
                fs::write(&source, bytes)?;
                proc::logged(
                    Command::new(quantize)
                        .arg("--allow-requantize")
                        .arg(&source)
                        .arg(dir.join("model.gguf"))
                        .arg(kind),
                    &self.log,
                )?;
                Ok(fs::remove_file(source)?)
            })?;
        Ok(dir.join("model.gguf"))
    }
}
