//! Log-probabilities in the two forms of the API.

use hyprstream_engine::{TokenLogprobs, Tokenizer};
use hyprstream_openai::{
    chat::{ChatLogprobs, TokenLogprob, TopLogprob},
    completion::CompletionLogprobs,
};
use serde_json::{Map, Number, Value};

/// The newer form.
pub(super) fn chat(tokenizer: &Tokenizer, entries: &[TokenLogprobs]) -> ChatLogprobs {
    let content = entries
        .iter()
        .map(|entry| TokenLogprob {
            token: text(tokenizer, entry.token),
            logprob: finite(entry.logprob),
            bytes: Some(tokenizer.token_bytes(entry.token).to_vec()),
            top_logprobs: entry
                .top
                .iter()
                .map(|&(token, logprob)| TopLogprob {
                    token: text(tokenizer, token),
                    logprob: finite(logprob),
                    bytes: Some(tokenizer.token_bytes(token).to_vec()),
                })
                .collect(),
        })
        .collect();
    ChatLogprobs {
        content,
        refusal: None,
    }
}

/// Appends to the older form; `offset` is where the next token's text begins, in characters.
pub(super) fn completion(
    tokenizer: &Tokenizer,
    entries: &[TokenLogprobs],
    offset: &mut usize,
    to: &mut CompletionLogprobs,
) {
    for entry in entries {
        let token = text(tokenizer, entry.token);
        to.text_offset.push(*offset);
        *offset += token.chars().count();
        to.tokens.push(token);
        to.token_logprobs.push(Some(finite(entry.logprob)));
        let mut top = Map::new();
        for &(token, logprob) in &entry.top {
            // Two tokens can have the same replaced text; the likelier one stays.
            top.entry(text(tokenizer, token))
                .or_insert_with(|| number(logprob));
        }
        to.top_logprobs.push(Some(top));
    }
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned()
}

/// JSON has no infinity; so improbable a token is told as vLLM does.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn number(logprob: f32) -> Value {
    Number::from_f64(f64::from(finite(logprob))).map_or(Value::Null, Value::Number)
}
