//! One answer's way through a grammar.

use llguidance::{api::StopReason, toktrie::TokEnv};

use crate::sampling::Allowed;

/// Says which tokens may come next.
pub(crate) struct Matcher {
    inner: llguidance::Matcher,
    environment: TokEnv,
    mask: Vec<u32>,
}

/// No token can be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MatcherError {
    /// The grammar allows no continuation: the text is complete, or cannot be completed.
    #[error("the grammar allows no further token")]
    Ended,
    /// It is too complex for one step, or wrong.
    #[error("the grammar failed: {0}")]
    Failed(String),
}

impl Matcher {
    pub(super) fn new(inner: llguidance::Matcher, environment: TokEnv) -> Self {
        Self {
            inner,
            environment,
            mask: Vec::new(),
        }
    }

    /// Takes a token that is allowed, and says whether the text is complete with it.
    pub(crate) fn accept(&mut self, token: u32) -> Result<bool, MatcherError> {
        match self.inner.consume_token(token) {
            Ok(()) => Ok(self.has_ended()),
            Err(error) => Err(self.why(&error)),
        }
    }

    /// Whether nothing can follow what was accepted.
    fn has_ended(&self) -> bool {
        matches!(
            self.inner.stop_reason(),
            StopReason::NoExtension | StopReason::NoExtensionBias | StopReason::EndOfSentence
        )
    }

    fn why(&self, error: &dyn std::fmt::Display) -> MatcherError {
        if self.has_ended() {
            return MatcherError::Ended;
        }
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        MatcherError::Failed(first.chars().take(200).collect())
    }
}

impl Allowed for Matcher {
    type Error = MatcherError;

    fn allows(&mut self, token: u32) -> Result<bool, MatcherError> {
        if self.has_ended() {
            return Err(MatcherError::Ended);
        }
        // llguidance takes any number of tokens without bytes, but its masks have none of them.
        let trie = self.environment.tok_trie();
        if token as usize >= trie.vocab_size() || trie.token(token).is_empty() {
            return Ok(false);
        }
        match self.inner.validate_tokens(&[token]) {
            Ok(valid) => Ok(valid == 1),
            Err(error) => Err(self.why(&error)),
        }
    }

    fn mask(&mut self) -> Result<&[u32], MatcherError> {
        if self.has_ended() {
            return Err(MatcherError::Ended);
        }
        match self.inner.compute_mask() {
            Ok(mask) => {
                self.mask.clear();
                self.mask.extend_from_slice(mask.as_slice());
                Ok(&self.mask)
            }
            Err(error) => Err(self.why(&error)),
        }
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Matcher")
    }
}
