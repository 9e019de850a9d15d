//! How a worker answers.

use std::time::Duration;

use hyprstream_openai::tools::ToolFormat;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How a worker answers, whatever its model is.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Longest request body in bytes.
    pub max_body_bytes: usize,
    /// Keys of which one must be shown; none when all are welcome.
    pub keys: ApiKeys,
    /// How calls of tools are found in answers.
    pub tool_calls: ToolCallParser,
    /// How thoughts are found in answers.
    pub reasoning: ReasoningMode,
    /// How long a client may take nothing of its answer before it is given up.
    pub write_timeout: Duration,
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: hyprstream_contract::worker::MAX_BODY_BYTES,
            keys: ApiKeys::default(),
            tool_calls: ToolCallParser::Auto,
            reasoning: ReasoningMode::Auto,
            write_timeout: Duration::from_mins(1),
        }
    }
}

/// How calls of tools are found in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ToolCallParser {
    /// As the chat template of the model teaches.
    Auto,
    /// As Hermes and Qwen write them.
    Hermes,
    /// As Llama 3 writes them.
    Llama3,
    /// As Mistral writes them.
    Mistral,
    /// Not at all: requests with tools are refused.
    None,
}

impl ToolCallParser {
    /// The format of a model with the chat template `source`. A template that knows no tools, or
    /// teaches a form that is not known, gets that of Hermes.
    pub(super) fn format(self, source: &str) -> Option<ToolFormat> {
        match self {
            Self::Auto => Some(ToolFormat::of_template(source).unwrap_or(ToolFormat::Hermes)),
            Self::Hermes => Some(ToolFormat::Hermes),
            Self::Llama3 => Some(ToolFormat::Llama3),
            Self::Mistral => Some(ToolFormat::Mistral),
            Self::None => None,
        }
    }
}

/// How thoughts are found in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReasoningMode {
    /// Between `<think>` and `</think>` if the chat template of the model has that.
    Auto,
    /// Between `<think>` and `</think>`.
    Think,
    /// Not at all: they are text.
    None,
}

impl ReasoningMode {
    /// Whether thoughts are looked for in answers of a model with the chat template `source`.
    pub(super) fn applies(self, source: &str) -> bool {
        match self {
            Self::Auto => source.contains("<think>") || source.contains("</think>"),
            Self::Think => true,
            Self::None => false,
        }
    }
}

/// Keys of an API, kept as digests.
#[derive(Clone, Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// The keys of `keys` that are not blank.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        let keys = keys
            .into_iter()
            .map(str::trim)
            .filter(|key| !key.is_empty());
        Self {
            digests: keys.map(|key| Sha256::digest(key).into()).collect(),
        }
    }

    /// Whether there are none, so that all are welcome.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether `key` is one of them. The time that this takes says nothing about them: digests
    /// of one length are compared, and all of them.
    pub fn accept(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let found = self
            .digests
            .iter()
            .fold(subtle::Choice::from(0), |found, known| {
                found | known.ct_eq(&digest)
            });
        found.into()
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.digests.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2025_59425_keys_are_compared_as_digests_and_all_of_them() {
        let keys = ApiKeys::new(["first", " second\n", "", "  "]);
        assert_eq!(keys.digests.len(), 2);
        assert!(keys.accept(b"first") && keys.accept(b"second"));
        for wrong in ["", "firs", "first ", "firstfirst", "third"] {
            assert!(!keys.accept(wrong.as_bytes()), "{wrong}");
        }
        assert!(ApiKeys::new(["  "]).is_empty());
        assert_eq!(format!("{keys:?}"), "2 keys");
    }
}
