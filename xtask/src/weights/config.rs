//! config.json and generation_config.json out of the GGUF's metadata.

use anyhow::Result;
use serde_json::{Value, json};

use super::{gguf::Gguf, tensors::Layout};

/// Every so many layers of Gemma 3 attend globally; the format does not say so.
const GLOBAL_PERIOD: i64 = 6;
/// Base of the rotary embedding of Gemma 3's local layers, of which the format says nothing.
const LOCAL_ROPE_THETA: f64 = 10_000.0;

/// The configuration of the model.
pub(super) fn model(gguf: &Gguf, layout: Layout, tied: bool, vocabulary: usize) -> Result<Value> {
    let family = gguf.text("general.architecture")?;
    let integer = |name: &str| gguf.integer(&format!("{family}.{name}"));
    let float = |name: &str| gguf.float(&format!("{family}.{name}"));
    let hidden = integer("embedding_length")?;
    let heads = integer("attention.head_count")?;
    let layers = integer("block_count")?;
    let head = match gguf.get(&format!("{family}.attention.key_length")) {
        Some(_) => integer("attention.key_length")?,
        None => hidden / heads,
    };
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv")?,
        "head_dim": head,
        "max_position_embeddings": integer("context_length")?,
        "rms_norm_eps": short(float("attention.layer_norm_rms_epsilon")?)?,
        "rope_theta": float("rope.freq_base")?,
        "rope_scaling": null,
        "tie_word_embeddings": tied,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.integer("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.integer("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": gguf.integer("tokenizer.ggml.padding_token_id")?,
        "torch_dtype": "bfloat16",
        "use_cache": true,
    });
    match layout {
        Layout::Llama(_) => {
            config["mlp_bias"] = false.into();
            config["hidden_act"] = "silu".into();
        }
        Layout::Gemma3 => {
            config["architectures"] = json!(["Gemma3ForCausalLM"]);
            config["model_type"] = "gemma3_text".into();
            config["hidden_activation"] = "gelu_pytorch_tanh".into();
            config["query_pre_attn_scalar"] = head.into();
            config["sliding_window"] = integer("attention.sliding_window")?.into();
            config["rope_local_base_freq"] = LOCAL_ROPE_THETA.into();
            config["layer_types"] = (1..=layers)
                .map(|layer| match layer % GLOBAL_PERIOD {
                    0 => "full_attention",
                    _ => "sliding_attention",
                })
                .collect();
            config["attn_logit_softcapping"] = Value::Null;
            config["final_logit_softcapping"] = Value::Null;
        }
    }
    Ok(config)
}

/// What its makers advise for generation.
pub(super) fn generation(gguf: &Gguf, layout: Layout) -> Result<Value> {
    let eos = gguf.integer("tokenizer.ggml.eos_token_id")?;
    let mut config = json!({
        "bos_token_id": gguf.integer("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": eos,
        "pad_token_id": gguf.integer("tokenizer.ggml.padding_token_id")?,
    });
    if layout == Layout::Gemma3 {
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        if let Some(id) = tokens.iter().position(|t| *t == "<end_of_turn>") {
            config["eos_token_id"] = json!([eos, id]);
        }
        config["do_sample"] = true.into();
        config["top_k"] = 64.into();
        config["top_p"] = 0.95.into();
    }
    Ok(config)
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
