//! Tokens to text, one at a time.

use super::Tokenizer;

/// Turns the tokens of one answer into whole characters.
///
/// Limitation: decoders that clean up or strip spaces at the beginning of a text are not
/// followed in that; an answer continues a prompt, and its first space counts.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    /// Invariant: the beginning of a character whose rest has not come yet; at most 3 bytes.
    pending: Vec<u8>,
    skip_special: bool,
}

impl Detokenizer {
    pub(crate) fn new(skip_special: bool) -> Self {
        Self {
            pending: Vec::new(),
            skip_special,
        }
    }

    /// Appends to `text` the characters that `token` completes. Bytes that cannot be UTF-8 become
    /// U+FFFD, as in [`String::from_utf8_lossy`] of the whole.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) {
        if self.skip_special && tokenizer.is_special(token) {
            return;
        }
        self.pending.extend_from_slice(tokenizer.token_bytes(token));
        let mut rest = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            rest += chunk.valid().len();
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_beginning(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                rest += invalid.len();
            }
        }
        self.pending.drain(..rest);
    }
}

/// Whether `bytes`, which are no UTF-8, could become one character by more bytes after them.
fn is_beginning(bytes: &[u8]) -> bool {
    // `error_len` is absent exactly when the input ends too early.
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}
