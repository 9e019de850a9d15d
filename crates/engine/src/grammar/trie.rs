//! The vocabulary as llguidance wants it.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::GrammarError;
use crate::text::Tokenizer;

/// The tokens of a model by their bytes. They come from our own tables and not from
/// `toktrie_hf_tokenizers`, which is built on another version of the tokenizers library.
pub(super) fn token_environment(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    eos: &[u32],
) -> Result<TokEnv, GrammarError> {
    let Some(&first_eos) = eos.first() else {
        let why = "the model has no token that ends a text";
        return Err(GrammarError::Tokenizer(why.to_owned()));
    };
    if let Some(token) = eos.iter().find(|token| **token as usize >= vocab_size) {
        let why = format!("the ending token {token} is not below {vocab_size}");
        return Err(GrammarError::Tokenizer(why));
    }
    let words: Vec<Vec<u8>> = (0..vocab_size as u32)
        .map(|token| word(tokenizer, token))
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first_eos), &words);
    Ok(Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(eos))))
}

/// How `token` is written. No text is made of special tokens, so those have a mark before them;
/// an empty word is never allowed.
fn word(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    const MARK: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let bytes = tokenizer.token_bytes(token);
    if tokenizer.is_special(token) {
        return [&[MARK], bytes].concat();
    }
    // The mark is no UTF-8, so this is in no valid text either.
    if bytes.first() == Some(&MARK) {
        return Vec::new();
    }
    bytes.to_vec()
}
