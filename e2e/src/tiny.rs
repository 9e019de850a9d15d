//! A real but very small Llama in the Hugging Face layout, made on the spot.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{
    Repository,
    tensors::{self, Random},
};

/// Two layers, random weights, one token per byte: loads at once and answers with noise that
/// depends on the seed alone.
#[derive(Clone, Copy, Debug)]
pub struct TinyModel {
    /// Seed of the weights; another seed gives other answers.
    pub seed: u64,
    /// Name of the architecture in `config.json`.
    pub architecture: &'static str,
}

pub(crate) const HIDDEN: usize = 64;
pub(crate) const INNER: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
pub(crate) const LAYERS: usize = 2;
/// 256 bytes and `<|end|>`.
const VOCABULARY: usize = 257;

impl TinyModel {
    /// The model of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            architecture: "LlamaForCausalLM",
        }
    }

    /// Writes its files into a working copy.
    pub fn write(&self, repository: &Repository) -> Result<()> {
        let file = |name: &str, value: &Value| {
            repository.write(name, serde_json::to_string_pretty(value)?.as_bytes())
        };
        file("config.json", &self.config())?;
        file(
            "generation_config.json",
            &json!({"bos_token_id": 256, "eos_token_id": 256}),
        )?;
        file("tokenizer.json", &tokenizer())?;
        file(
            "tokenizer_config.json",
            &json!({
                "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>",
                "chat_template": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}\
                    {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
            }),
        )?;
        repository.write("model.safetensors", &self.weights()?)
    }

    /// `model.safetensors.index.json` that says that all tensors are in `file`.
    pub fn index(&self, file: &str) -> Result<String> {
        let bytes = self.weights()?;
        let length = bytes.first_chunk().map_or(0, |l| u64::from_le_bytes(*l));
        let header = &bytes[8..8 + usize::try_from(length)?];
        let header: Map<String, Value> = serde_json::from_slice(header)?;
        let map: Map<_, _> = header
            .into_iter()
            .map(|(name, _)| (name, json!(file)))
            .collect();
        Ok(json!({"metadata": {}, "weight_map": map}).to_string())
    }

    fn config(self) -> Value {
        json!({
            "architectures": [self.architecture],
            "model_type": if self.architecture == "LlamaForCausalLM" { "llama" } else { "other" },
            "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": 2048, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
            "attention_bias": false, "mlp_bias": false, "torch_dtype": "float32",
            "bos_token_id": 256, "eos_token_id": 256,
        })
    }

    /// The safetensors file: `u64` length of the header, header, f32 data.
    pub fn weights(&self) -> Result<Vec<u8>> {
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]),
            ("model.norm.weight".into(), vec![HIDDEN]),
            ("lm_head.weight".into(), vec![VOCABULARY, HIDDEN]),
        ];
        let kv = HIDDEN / HEADS * KV_HEADS;
        for layer in 0..LAYERS {
            for (name, shape) in [
                ("input_layernorm", vec![HIDDEN]),
                ("post_attention_layernorm", vec![HIDDEN]),
                ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
                ("self_attn.k_proj", vec![kv, HIDDEN]),
                ("self_attn.v_proj", vec![kv, HIDDEN]),
                ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
                ("mlp.gate_proj", vec![INNER, HIDDEN]),
                ("mlp.up_proj", vec![INNER, HIDDEN]),
                ("mlp.down_proj", vec![HIDDEN, INNER]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let mut random = Random::new(self.seed);
        tensors::file(shapes, |name| {
            if name.ends_with("norm.weight") {
                1.0
            } else {
                random.next()
            }
        })
    }
}

/// A byte-level BPE without merges: one token per byte.
fn tokenizer() -> Value {
    // The table of GPT-2: printable bytes stand for themselves, the others for U+0100 and on.
    let printable =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut vocabulary = Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        let symbol = char::from_u32(code)
            .expect("below the surrogates")
            .to_string();
        vocabulary.insert(symbol, json!(byte));
    }
    vocabulary.insert("<|end|>".into(), json!(256));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 256, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": []},
    })
}
