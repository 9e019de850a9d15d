//! The weights: names and layout of Hugging Face, written as safetensors in bfloat16.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::{
    dequant::bfloat16,
    gguf::{Gguf, Tensor},
};

/// What the names, layout and numbers of the weights follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Llama: rows of queries and keys are stored in another order.
    Llama(Heads),
    /// Gemma 3: norms are stored with 1 added.
    Gemma3,
}

/// Numbers of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    /// Attention heads.
    pub(super) query: usize,
    /// Heads of keys and values.
    pub(super) key_value: usize,
}

/// Writes all weights to `path` and returns whether the output embedding is the input's.
pub(super) fn write(
    gguf: &Gguf,
    layout: Layout,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<bool> {
    let mut named = gguf
        .tensors
        .iter()
        // llama.cpp's precomputed frequencies; they follow from the configuration.
        .filter(|tensor| tensor.name != "rope_freqs.weight")
        .map(|tensor| Ok((hugging_face_name(tensor.name, layout)?, tensor)))
        .collect::<Result<Vec<_>>>()?;
    named.sort_by(|a, b| a.0.cmp(&b.0));

    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, tensor) in &named {
        let length = tensor.shape.iter().product::<usize>() * 2;
        header.insert(
            name.clone(),
            json!({
                "dtype": "BF16",
                "shape": tensor.shape,
                "data_offsets": [offset, offset + length],
            }),
        );
        offset += length;
    }
    let mut header = serde_json::to_string(&Value::Object(header))?;
    // Mapped tensors then begin at an address that suits them.
    while !(8 + header.len()).is_multiple_of(64) {
        header.push(' ');
    }

    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut written = 0;
    for (_, tensor) in &named {
        let numbers = numbers(tensor, layout)?;
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|n| bfloat16(*n).to_le_bytes())
            .collect();
        out.write_all(&bytes)?;
        written += bytes.len() as u64;
        progress(written);
    }
    out.into_inner()
        .context("cannot write the weights")?
        .sync_all()?;
    Ok(!named.iter().any(|(name, _)| name == "lm_head.weight"))
}

fn numbers(tensor: &Tensor, layout: Layout) -> Result<Vec<f32>> {
    let mut numbers = tensor.kind.decode(tensor.data);
    let heads = match layout {
        Layout::Llama(heads) => heads,
        Layout::Gemma3 => {
            if tensor.name.ends_with("norm.weight") {
                for number in &mut numbers {
                    *number -= 1.0;
                }
            }
            return Ok(numbers);
        }
    };
    let heads = if tensor.name.contains(".attn_q.") {
        heads.query
    } else if tensor.name.contains(".attn_k.") {
        heads.key_value
    } else {
        return Ok(numbers);
    };
    let [rows, columns] = tensor.shape[..] else {
        bail!("tensor {} is no matrix", tensor.name);
    };
    ensure!(
        heads > 0 && rows.is_multiple_of(heads * 2),
        "tensor {} has {rows} rows for {heads} heads",
        tensor.name
    );
    Ok(unpermute(&numbers, heads, rows, columns))
}

/// Undoes llama.cpp's order of the rows of a head: it has the two halves of the rotary embedding
/// interleaved, Hugging Face one after the other.
fn unpermute(numbers: &[f32], heads: usize, rows: usize, columns: usize) -> Vec<f32> {
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(numbers.len());
    for head in 0..heads {
        for part in 0..2 {
            for position in 0..half {
                let row = (head * half + position) * 2 + part;
                out.extend_from_slice(&numbers[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

fn hugging_face_name(name: &str, layout: Layout) -> Result<String> {
    let fixed = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Ok(fixed.to_owned());
    }
    let parts = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = parts.filter(|(layer, _)| layer.parse::<u32>().is_ok()) else {
        bail!("tensor {name} has no place in this family");
    };
    let gemma = layout == Layout::Gemma3;
    let part = match part {
        "attn_q_norm.weight" if gemma => "self_attn.q_norm",
        "attn_k_norm.weight" if gemma => "self_attn.k_norm",
        "post_attention_norm.weight" if gemma => "post_attention_layernorm",
        "ffn_norm.weight" if gemma => "pre_feedforward_layernorm",
        "post_ffw_norm.weight" if gemma => "post_feedforward_layernorm",
        "attn_q.weight" => "self_attn.q_proj",
        "attn_k.weight" => "self_attn.k_proj",
        "attn_v.weight" => "self_attn.v_proj",
        "attn_output.weight" => "self_attn.o_proj",
        "attn_norm.weight" => "input_layernorm",
        "ffn_norm.weight" => "post_attention_layernorm",
        "ffn_gate.weight" => "mlp.gate_proj",
        "ffn_up.weight" => "mlp.up_proj",
        "ffn_down.weight" => "mlp.down_proj",
        _ => bail!("tensor {name} has no place in a Llama"),
    };
    Ok(format!("model.layers.{layer}.{part}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_counterpart_and_no_other() {
        let llama = Layout::Llama(Heads {
            query: 1,
            key_value: 1,
        });
        for (name, expected) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            (
                "blk.29.attn_q.weight",
                "model.layers.29.self_attn.q_proj.weight",
            ),
            (
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
            ),
        ] {
            assert_eq!(hugging_face_name(name, llama).unwrap(), expected);
        }
        for name in [
            "blk.x.attn_q.weight",
            "blk.0.attn_q.bias",
            "blk.0.attn_q_norm.weight",
            "mm.0.weight",
        ] {
            assert!(hugging_face_name(name, llama).is_err(), "{name}");
        }
        assert_eq!(
            hugging_face_name("blk.3.ffn_norm.weight", Layout::Gemma3).unwrap(),
            "model.layers.3.pre_feedforward_layernorm.weight"
        );
    }

    #[test]
    fn rows_of_a_head_are_sorted_by_halves() {
        // Two heads of four rows with one column; a number says its place in Hugging Face.
        let stored = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        let sorted = unpermute(&stored, 2, 8, 1);
        assert_eq!(sorted, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
