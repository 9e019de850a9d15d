//! Log-probabilities in the two forms of the API.

use std::fmt::Write;

use hyprstream_engine::{TokenLogprobs, Tokenizer};
use hyprstream_openai::{
    chat::{ChatLogprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob},
    completion::CompletionLogprobs,
};
use serde_json::{Map, Number, Value};

use super::exact;

/// The newer form.
pub(super) fn chat(tokenizer: &Tokenizer, entries: &[TokenLogprobs]) -> ChatLogprobs {
    ChatLogprobs {
        content: rows(tokenizer, entries),
        refusal: None,
    }
}

/// The entries of the newer form.
pub(super) fn rows(tokenizer: &Tokenizer, entries: &[TokenLogprobs]) -> Vec<TokenLogprob> {
    entries
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
        .collect()
}

/// Appends a row to the older form: a token that begins at `offset`, in characters. The first token
/// of a prompt follows nothing and has no entry.
pub(super) fn push(
    tokenizer: &Tokenizer,
    token: u32,
    entry: Option<&TokenLogprobs>,
    offset: usize,
    to: &mut CompletionLogprobs,
) {
    to.text_offset.push(offset);
    to.tokens.push(name(tokenizer, token));
    to.token_logprobs
        .push(entry.map(|entry| finite(entry.logprob)));
    to.top_logprobs
        .push(entry.map(|entry| columns(tokenizer, entry)));
}

/// The likeliest tokens by name, and the token itself, which is always among them.
fn columns(tokenizer: &Tokenizer, entry: &TokenLogprobs) -> Map<String, Value> {
    let own = name(tokenizer, entry.token);
    let mut top = Map::new();
    for &(token, logprob) in &entry.top {
        let mut key = name(tokenizer, token);
        // Two tokens can have one text, as a special token and the same in words.
        if (key == own && token != entry.token) || top.contains_key(&key) {
            key = format!("token_id:{token}");
        }
        top.insert(key, number(logprob));
    }
    top.entry(own).or_insert_with(|| number(entry.logprob));
    top
}

/// What a token is called where no bytes are told beside: its text, or the bytes of a part of a
/// character as the OpenAI API writes them.
fn name(tokenizer: &Tokenizer, token: u32) -> String {
    let bytes = tokenizer.token_bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
            // Writing to memory does not fail.
            let _ = write!(name, "\\x{byte:02x}");
            name
        }),
    }
}

/// vLLM's form for prompts.
pub(super) fn prompt(tokenizer: &Tokenizer, entries: &[Option<TokenLogprobs>]) -> PromptLogprobs {
    let told = |token: u32, logprob: f32, rank: Option<usize>| {
        let entry = PromptLogprob {
            logprob: finite(logprob),
            rank,
            decoded_token: text(tokenizer, token),
        };
        (token.to_string(), entry)
    };
    entries
        .iter()
        .map(|entry| {
            let entry = entry.as_ref()?;
            let own = told(entry.token, entry.logprob, None);
            let top = entry.top.iter().zip(1..);
            let top = top.map(|(&(token, logprob), rank)| told(token, logprob, Some(rank)));
            Some(std::iter::once(own).chain(top).collect())
        })
        .collect()
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned()
}

/// JSON has no infinity; so improbable a token is told as vLLM does.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// With the digits that an f32 has elsewhere: clients look for the greatest by comparing.
fn number(logprob: f32) -> Value {
    Number::from_f64(exact(finite(logprob))).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use hyprstream_engine::fake;

    use super::*;

    #[test]
    fn a_number_has_the_same_digits_in_every_form() {
        for logprob in [
            -0.263_406_75_f32,
            -11.590_473,
            0.0,
            -1e-7,
            f32::NEG_INFINITY,
        ] {
            let told = serde_json::to_string(&finite(logprob)).unwrap();
            assert_eq!(number(logprob).to_string(), told);
        }
    }

    #[test]
    fn parts_of_characters_have_names_of_their_own() {
        // The tokens of bytes come in order after three special ones.
        let parts = [0xe2_u32, 0x82, 0xac, 0xf0, 0x9f].map(|byte| byte + 3);
        let entry = TokenLogprobs {
            token: parts[2],
            logprob: -3.0,
            top: (0..5).map(|at| (parts[at], -(at as f32) - 1.0)).collect(),
        };
        let mut told = CompletionLogprobs::default();
        push(&fake::tokenizer(), entry.token, Some(&entry), 0, &mut told);
        let top = told.top_logprobs[0].as_ref().unwrap();
        assert_eq!(top.len(), 5, "{top:?}");
        assert_eq!(told.tokens[0], r"bytes:\xac");
        assert_eq!(top[r"bytes:\xac"], -3.0);
        assert_eq!(top[r"bytes:\x9f"], -5.0);
    }
}
