//! One answer's way through a grammar.

use llguidance::api::StopReason;

/// Says which tokens may come next.
pub(crate) struct Matcher {
    inner: llguidance::Matcher,
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
    pub(super) fn new(inner: llguidance::Matcher) -> Self {
        Self {
            inner,
            mask: Vec::new(),
        }
    }

    /// The tokens that may come next, a bit each, lowest first.
    pub(crate) fn mask(&mut self) -> Result<&[u32], MatcherError> {
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

    /// Takes a token that the mask allowed, and says whether the text is complete with it.
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

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Matcher")
    }
}
