//! The tokenizer of a model.

use std::{cell::Cell, fs, ops::Range, path::Path};

use tokenizers::{AddedToken, Model, ModelWrapper, OffsetType, PreTokenizer};

use super::{pieces::Pieces, shrink::shrink};

/// A model's `tokenizer.json`, ready to be used from any thread.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    special: Vec<String>,
    /// How many times as long as what its tokens stand for a text may be; none when there is no
    /// limit to that.
    shrink: Option<usize>,
    /// Whether one token, or none, may stand for any number of bytes that the vocabulary lacks.
    lumps: bool,
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
    /// A text has too many tokens.
    #[error("the text has more than {limit} tokens")]
    TooLong {
        /// Most tokens.
        limit: usize,
    },
}

impl TokenizerError {
    /// A word for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "MissingFile",
            Self::Read(_) => "InternalError",
            Self::LfsPointer | Self::Invalid(_) | Self::Encode(_) | Self::TooLong { .. } => {
                "InvalidTokenizer"
            }
        }
    }
}

impl Tokenizer {
    /// The tokenizer in the Hugging Face folder `dir`.
    ///
    /// # Errors
    /// The file is missing or is no tokenizer.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        Self::load_with(dir, &[])
    }

    /// The same with the tokens `added` beside its own, or in their place where they are written
    /// alike.
    pub(crate) fn load_with(dir: &Path, added: &[AddedToken]) -> Result<Self, TokenizerError> {
        match fs::read(dir.join("tokenizer.json")) {
            Ok(json) => Self::with_added(&json, added),
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
        Self::with_added(json, &[])
    }

    fn with_added(json: &[u8], added: &[AddedToken]) -> Result<Self, TokenizerError> {
        if json.starts_with(b"version https://git-lfs") {
            return Err(TokenizerError::LfsPointer);
        }
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(invalid)?;
        // Both belong to training and would cut or fill prompts.
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        // Looking for tokens is prepared anew by every call.
        if !added.is_empty() {
            inner.add_tokens(added);
        }
        let pieces = Pieces::new(&inner);
        let added = inner.get_added_tokens_decoder();
        let in_bytes = match inner.get_model() {
            ModelWrapper::BPE(model) => model.byte_fallback || pieces.is_byte_level(),
            ModelWrapper::Unigram(model) => model.byte_fallback(),
            ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => false,
        };
        let lumps = !(in_bytes && pieces.has_every_byte());
        let takes_spaces = added.values().any(|t| t.lstrip || t.rstrip);
        let shrink = match inner.get_normalizer() {
            _ if lumps || takes_spaces => None,
            None => Some(1),
            Some(normalizer) => shrink(normalizer),
        };
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
            shrink,
            lumps,
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

    /// The tokens of `text` as [`Self::encode`] gives them, unless there are more than `limit`:
    /// most of the work of a text that is far too long is not done then.
    ///
    /// # Errors
    /// As [`Self::encode`], and [`TokenizerError::TooLong`].
    pub fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        limit: usize,
    ) -> Result<Vec<u32>, TokenizerError> {
        let too_long = TokenizerError::TooLong { limit };
        if self.least_tokens(text) > limit {
            return Err(too_long);
        }
        // The stages of the library's own `encode_fast`.
        let failed = |error: tokenizers::Error| TokenizerError::Encode(error.to_string());
        let (inner, model) = (&self.inner, self.inner.get_model());
        let added = inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let longest = self.pieces.longest_name().max(1);
        let left = Cell::new(Some(limit));
        let counted = pieces.tokenize(|piece| {
            let least = if self.lumps {
                0
            } else {
                piece.get().len() / longest
            };
            let room = left.get().filter(|room| least <= *room);
            left.set(room);
            let tokens = match room {
                Some(_) => model.tokenize(piece.get())?,
                None => return Err("enough".into()),
            };
            left.set(room.and_then(|room| room.checked_sub(tokens.len())));
            Ok(tokens)
        });
        if left.get().is_none() {
            return Err(too_long);
        }
        counted.map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None);
        let encoding = encoding.and_then(|e| inner.post_process(e, None, add_special));
        let tokens = encoding.map_err(failed)?.get_ids().to_vec();
        if tokens.len() > limit {
            return Err(too_long);
        }
        Ok(tokens)
    }

    /// The tokens of `text` as [`Self::encode`] gives them without what belongs around a text, each
    /// with the bytes of `text` that it stands for. Tokens that share a character have its bytes.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_places(
        &self,
        text: &str,
    ) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        // The stages of the library's own `encode`, but for the last, which may take spaces off
        // the places of tokens.
        let failed = |error: tokenizers::Error| TokenizerError::Encode(error.to_string());
        let (inner, model) = (&self.inner, self.inner.get_model());
        let added = inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let tokenized = pieces.tokenize(|piece| model.tokenize(piece.get()));
        tokenized.map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::Byte);
        let encoding = encoding.map_err(failed)?;
        let places = encoding.get_offsets().iter().map(|(from, to)| *from..*to);
        Ok(encoding.get_ids().iter().copied().zip(places).collect())
    }

    /// No more than the number of tokens of `text`, found without tokenizing it: a text that is
    /// far too long is known to be so at no cost. 0 for tokenizers of which that cannot be said.
    pub fn least_tokens(&self, text: &str) -> usize {
        match self.shrink {
            Some(shrink) => text.len() / (self.pieces.longest().max(1) * shrink),
            None => 0,
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
