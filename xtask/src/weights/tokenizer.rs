//! The tokenizer's files out of the GGUF's metadata.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::gguf::{Gguf, Value as Field};

/// Token types of the format.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The files and how many tokens there are.
pub(super) struct Files {
    pub(super) tokenizer: Value,
    pub(super) config: Value,
    pub(super) special: Value,
    pub(super) size: usize,
}

/// Builds the files.
pub(super) fn files(gguf: &Gguf) -> Result<Files> {
    let model = gguf.text("tokenizer.ggml.model")?;
    ensure!(
        model == "gpt2",
        "tokenizers of the kind {model:?} are not converted"
    );
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    let types = gguf.integers("tokenizer.ggml.token_type")?;
    ensure!(
        tokens.len() == types.len(),
        "tokens and their types do not match"
    );
    let added: Vec<Value> = tokens
        .iter()
        .zip(&types)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind == CONTROL,
            })
        })
        .collect();
    let special = special(gguf, &tokens)?;
    Ok(Files {
        tokenizer: tokenizer(gguf, &tokens, &added)?,
        config: config(gguf, &added, &special)?,
        special,
        size: tokens.len(),
    })
}

fn tokenizer(gguf: &Gguf, tokens: &[&str], added: &[Value]) -> Result<Value> {
    let vocabulary: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    ensure!(
        vocabulary.len() == tokens.len(),
        "a token stands twice in the vocabulary"
    );
    let merges = gguf
        .texts("tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ').context("a merge has one part only")?;
            Ok(json!([left, right]))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        // What llama.cpp calls "smollm": every digit is alone.
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        },
        "model": {
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
        },
    }))
}

fn special(gguf: &Gguf, tokens: &[&str]) -> Result<Value> {
    let token = |kind: &str| -> Result<&str> {
        let id = gguf.integer(&format!("tokenizer.ggml.{kind}_token_id"))?;
        tokens
            .get(usize::try_from(id)?)
            .copied()
            .with_context(|| format!("the {kind} token {id} does not exist"))
    };
    Ok(json!({
        "bos_token": token("bos")?,
        "eos_token": token("eos")?,
        "unk_token": token("unknown")?,
        "pad_token": token("padding")?,
    }))
}

fn config(gguf: &Gguf, added: &[Value], special: &Value) -> Result<Value> {
    let decoder: Map<String, Value> = added
        .iter()
        .filter(|token| token["special"] == true)
        .map(|token| {
            let mut rest = token.clone();
            if let Some(fields) = rest.as_object_mut() {
                fields.shift_remove("id");
            }
            (token["id"].to_string(), rest)
        })
        .collect();
    let mut config = special.clone();
    let fields = config
        .as_object_mut()
        .context("the special tokens are no object")?;
    fields.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    fields.insert(
        "model_max_length".into(),
        json!(gguf.integer("llama.context_length")?),
    );
    fields.insert("clean_up_tokenization_spaces".into(), json!(false));
    let add_bos = gguf.get("tokenizer.ggml.add_bos_token") == Some(&Field::Bool(true));
    fields.insert("add_bos_token".into(), json!(add_bos));
    fields.insert(
        "chat_template".into(),
        json!(gguf.text("tokenizer.chat_template")?),
    );
    fields.insert("added_tokens_decoder".into(), Value::Object(decoder));
    Ok(config)
}
