//! The tokenizer's files out of the GGUF's metadata.

mod byte_level;
mod sentence_piece;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::gguf::{Gguf, Value as Field};

/// Token types of the format.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Gemma's turns, for a base model that comes without a template, so that chats can be tried.
const TURNS: &str = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}\
    {% set r = 'model' %}{% elif m['role'] == 'system' %}{% set r = 'user' %}{% else %}\
    {% set r = m['role'] %}{% endif %}{{ '<start_of_turn>' + r + '\n' + m['content'] | trim + \
    '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<start_of_turn>model\n' }}{% endif %}";

/// What differs between the kinds of tokenizers.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Value,
}

/// The files and how many tokens there are.
pub(super) struct Files {
    pub(super) tokenizer: Value,
    pub(super) config: Value,
    pub(super) special: Value,
    pub(super) size: usize,
}

/// Builds the files.
pub(super) fn files(gguf: &Gguf) -> Result<Files> {
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
        tokenizer: tokenizer(gguf, &tokens, &types, &added)?,
        config: config(gguf, &added, &special)?,
        special,
        size: tokens.len(),
    })
}

fn tokenizer(gguf: &Gguf, tokens: &[&str], types: &[i64], added: &[Value]) -> Result<Value> {
    let vocabulary: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    ensure!(
        vocabulary.len() == tokens.len(),
        "a token stands twice in the vocabulary"
    );
    let parts = match gguf.text("tokenizer.ggml.model")? {
        "gpt2" => byte_level::parts(gguf, &vocabulary)?,
        "llama" => sentence_piece::parts(gguf, tokens, types, &vocabulary)?,
        other => bail!("tokenizers of the kind {other:?} are not converted"),
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": parts.post_processor,
        "decoder": parts.decoder,
        "model": parts.model,
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
        json!(gguf.integer(&format!(
            "{}.context_length",
            gguf.text("general.architecture")?
        ))?),
    );
    fields.insert("clean_up_tokenization_spaces".into(), json!(false));
    let add_bos = gguf.get("tokenizer.ggml.add_bos_token") == Some(&Field::Bool(true));
    fields.insert("add_bos_token".into(), json!(add_bos));
    let template = match gguf.get("tokenizer.chat_template") {
        Some(_) => gguf.text("tokenizer.chat_template")?,
        None => TURNS,
    };
    fields.insert("chat_template".into(), json!(template));
    fields.insert("added_tokens_decoder".into(), Value::Object(decoder));
    Ok(config)
}
