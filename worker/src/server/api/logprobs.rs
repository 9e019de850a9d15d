//! Log-probabilities in the two forms of the API.

use hyprstream_engine::{TokenLogprobs, Tokenizer};
use hyprstream_openai::{
    chat::{ChatLogprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob},
    completion::CompletionLogprobs,
};
use serde_json::{Map, Number, Value};

use super::exact;

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
        // The token itself is always among them.
        top.entry(text(tokenizer, entry.token))
            .or_insert_with(|| number(entry.logprob));
        to.top_logprobs.push(Some(top));
    }
}

/// Appends the tokens of an echoed prompt to the older form. The `first` follows nothing and has no
/// probability.
pub(super) fn echo(
    tokenizer: &Tokenizer,
    first: u32,
    entries: &[Option<TokenLogprobs>],
    offset: &mut usize,
    to: &mut CompletionLogprobs,
) {
    for entry in entries {
        if let Some(entry) = entry {
            completion(tokenizer, std::slice::from_ref(entry), offset, to);
        } else {
            let token = text(tokenizer, first);
            to.text_offset.push(*offset);
            *offset += token.chars().count();
            to.tokens.push(token);
            to.token_logprobs.push(None);
            to.top_logprobs.push(None);
        }
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
}
