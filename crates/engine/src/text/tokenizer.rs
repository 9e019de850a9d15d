//! The tokenizer of a model.

use std::{fs, path::Path};

use super::pieces::Pieces;

/// A model's `tokenizer.json`, ready to be used from any thread.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    special: Vec<String>,
    /// Whether the tokens of a text may stand for fewer bytes than it has.
    rewrites: bool,
}

/// The tokenizer of a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// There is no `tokenizer.json`.
    #[error("the model has no tokenizer.json")]
    Missing,
    /// It cannot be read from disk.
    #[error("tokenizer.json cannot be read")]
    Read(#[source] std::io::Error),
    /// It is the pointer of a large file that was not fetched.
    #[error("tokenizer.json is a git-lfs pointer: the file itself was not fetched")]
    LfsPointer,
    /// It is not what the tokenizers library writes.
    #[error("tokenizer.json is not a tokenizer: {0}")]
    Invalid(String),
    /// A text could not be taken apart.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

impl TokenizerError {
    /// A word for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "MissingFile",
            Self::Read(_) => "InternalError",
            Self::LfsPointer | Self::Invalid(_) | Self::Encode(_) => "InvalidTokenizer",
        }
    }
}

impl Tokenizer {
    /// The tokenizer in the Hugging Face folder `dir`.
    ///
    /// # Errors
    /// The file is missing or is no tokenizer.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        match fs::read(dir.join("tokenizer.json")) {
            Ok(json) => Self::from_json(&json),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(TokenizerError::Missing)
            }
            Err(error) => Err(TokenizerError::Read(error)),
        }
    }

    /// The tokenizer that `json`, the content of a `tokenizer.json`, describes.
    ///
    /// # Errors
    /// It does not describe one.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        if json.starts_with(b"version https://git-lfs") {
            return Err(TokenizerError::LfsPointer);
        }
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(invalid)?;
        // Both belong to training and would cut or fill prompts.
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        let pieces = Pieces::new(&inner);
        let added = inner.get_added_tokens_decoder();
        let rewrites =
            inner.get_normalizer().is_some() || added.values().any(|t| t.lstrip || t.rstrip);
        let mut special: Vec<String> = added
            .into_values()
            .filter(|token| token.special && !token.content.is_empty())
            .map(|token| token.content)
            .collect();
        special.sort();
        Ok(Self {
            inner,
            pieces,
            special,
            rewrites,
        })
    }

    /// The tokens of `text`. Special tokens written out in it become those tokens. With
    /// `add_special` the tokenizer adds what belongs around a text, such as a beginning token.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`], which depends on the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// No more than the number of tokens of `text`, found without tokenizing it: a text that is
    /// far too long is known to be so at no cost. 0 for tokenizers that rewrite texts.
    pub fn least_tokens(&self, text: &str) -> usize {
        if self.rewrites {
            0
        } else {
            text.len() / self.pieces.longest().max(1)
        }
    }

    /// The text of `tokens`, as transformers decodes them. Bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner
            .decode(tokens, skip_special)
            .map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// The bytes that `token` stands for within a text: maybe a part of a character, and none
    /// for an id that is not in the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// Whether `token` is special: written for the model, not for people.
    pub fn is_special(&self, token: u32) -> bool {
        self.pieces.is_special(token)
    }

    /// The id of the token that is written `token`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Special tokens as they are written.
    pub(crate) fn special_tokens(&self) -> &[String] {
        &self.special
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}
