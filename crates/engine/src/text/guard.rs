//! Keeps what users write from becoming control tokens.
//!
//! A chat template writes control tokens such as `<|im_end|>` as text, and the tokenizer turns
//! that text into tokens wherever it stands: also where a user wrote it. So before rendering,
//! every special token written in a message gets a mark after its first character; after
//! rendering, the text is tokenized in the pieces between the marks. A special token of the
//! template is whole and is recognised; one of a user is cut in two and is ordinary text.
//!
//! A conversation without such text is not touched and is tokenized in one piece, exactly as
//! transformers does.
//!
//! Limitation: special tokens of a single character cannot be cut. Added tokens that are not
//! special (`<think>` of some models) are left to users, as transformers does.

use std::ops::Range;

use super::{Tokenizer, TokenizerError};

const MARK: char = '\u{fdd0}';

/// Marks special tokens in the messages of one conversation.
#[derive(Debug)]
pub struct Guard<'a> {
    tokenizer: &'a Tokenizer,
    mark: String,
    marked: bool,
}

impl<'a> Guard<'a> {
    /// A guard for the conversation made of `texts`, from which its mark differs.
    pub fn new<'t>(tokenizer: &'a Tokenizer, texts: impl Iterator<Item = &'t str>) -> Self {
        // U+FDD0 is a noncharacter: no text should hold it. Should some all the same, then more
        // in a row than they have together, side by side, are in none.
        let longest: usize = texts.map(|text| longest_run(text, MARK)).sum();
        let mark = MARK.to_string().repeat(longest + 1);
        Self {
            tokenizer,
            mark,
            marked: false,
        }
    }

    /// `text` with every special token in it marked.
    pub fn mark(&mut self, text: &str) -> String {
        let mut cuts: Vec<usize> = self
            .tokenizer
            .special_tokens()
            .iter()
            .filter_map(|token| {
                let first = token.chars().next()?.len_utf8();
                (first < token.len()).then_some((token, first))
            })
            .flat_map(|(token, first)| occurrences(text, token).map(move |at| at + first))
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        self.marked |= !cuts.is_empty();
        let mut marked = String::with_capacity(text.len() + cuts.len() * self.mark.len());
        let mut from = 0;
        for cut in cuts {
            marked.push_str(&text[from..cut]);
            marked.push_str(&self.mark);
            from = cut;
        }
        marked.push_str(&text[from..]);
        marked
    }

    /// The tokens of `rendered`, a text of a template and of marked messages, of which there may
    /// be `limit`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn encode(&self, rendered: &str, limit: usize) -> Result<Vec<u32>, TokenizerError> {
        if !self.marked {
            return self.tokenizer.encode_within(rendered, false, limit);
        }
        let mut tokens = Vec::new();
        for piece in rendered.split(self.mark.as_str()) {
            let left = limit - tokens.len();
            let more = self.tokenizer.encode_within(piece, false, left);
            tokens.extend(more.map_err(|error| match error {
                TokenizerError::TooLong { .. } => TokenizerError::TooLong { limit },
                other => other,
            })?);
        }
        Ok(tokens)
    }
}

impl Guard<'_> {
    /// The tokens of `rendered` as [`Self::encode`] gives them, each with the bytes of `rendered`,
    /// marks included, that it stands for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_places(
        &self,
        rendered: &str,
    ) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        if !self.marked {
            return self.tokenizer.encode_with_places(rendered);
        }
        let mut tokens = Vec::new();
        let mut from = 0;
        for piece in rendered.split(self.mark.as_str()) {
            let more = self.tokenizer.encode_with_places(piece)?;
            let moved =
                |(token, place): (u32, Range<usize>)| (token, place.start + from..place.end + from);
            tokens.extend(more.into_iter().map(moved));
            from += piece.len() + self.mark.len();
        }
        Ok(tokens)
    }
}

/// How often `wanted` stands in `text` in a row at most.
fn longest_run(text: &str, wanted: char) -> usize {
    let runs = text.split(|c| c != wanted);
    runs.map(|run| run.chars().count()).max().unwrap_or(0)
}

/// Where `token` begins in `text`, overlaps included.
fn occurrences<'t>(text: &'t str, token: &'t str) -> impl Iterator<Item = usize> + 't {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + text.get(from..)?.find(token)?;
        from = at + text[at..].chars().next().map_or(1, char::len_utf8);
        Some(at)
    })
}
