//! Byte-level BPE, as SmolLM2 and GPT-2 have it.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Parts;
use crate::weights::gguf::Gguf;

/// The parts of the tokenizer.
pub(super) fn parts(gguf: &Gguf, vocabulary: &Map<String, Value>) -> Result<Parts> {
    let merges = gguf
        .texts("tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ').context("a merge has one part only")?;
            Ok(json!([left, right]))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Parts {
        normalizer: Value::Null,
        // What llama.cpp calls "smollm": every digit is alone.
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]}),
        post_processor: Value::Null,
        decoder: json!({
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        }),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        }),
    })
}
