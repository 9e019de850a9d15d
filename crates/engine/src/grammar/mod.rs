//! Answers that have a prescribed form.

use std::{fmt, time::Duration};

use serde_json::Value;

use crate::text::Tokenizer;

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that a schema allows.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in llguidance's variant of Lark.
    Lark(String),
}

/// How large a grammar may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Most bytes of its text.
    pub max_bytes: usize,
    /// Deepest nesting: of objects and lists of a schema, of brackets elsewhere.
    pub max_depth: usize,
    /// Longest time that its compilation may take.
    pub timeout: Duration,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            max_bytes: 256 * 1024,
            max_depth: 64,
            timeout: Duration::from_secs(5),
        }
    }
}

/// A grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The tokenizer has no vocabulary to constrain.
    #[error("structured output does not work with this tokenizer: {0}")]
    Tokenizer(String),
    /// It has a mistake, or says something that cannot be enforced.
    #[error("the grammar cannot be compiled: {0}")]
    Invalid(String),
    /// It is too large or too complex.
    #[error("the grammar's {what} exceeds {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// What is allowed.
        limit: usize,
    },
    /// It is too complex to be compiled in time.
    #[error("the grammar takes more than {} s to compile", .0.as_secs_f64())]
    Timeout(Duration),
    /// Too many grammars are being compiled.
    #[error("too many grammars are being compiled")]
    Busy,
}

/// Compiles grammars for one model. Cheap to clone.
#[derive(Clone)]
pub struct GrammarCompiler {}

impl GrammarCompiler {
    /// A compiler for the model that `tokenizer` belongs to, with logits of length `vocab_size`
    /// and the tokens `eos` that end its answers.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`].
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        eos: &[u32],
    ) -> Result<Self, GrammarError> {
        let _ = (tokenizer, vocab_size, eos);
        Ok(Self {})
    }

    /// Compiles `grammar`, or takes it from those that were compiled lately. It takes up to
    /// [`GrammarLimits::timeout`] and must not be called on a thread that others wait for.
    ///
    /// # Errors
    /// The grammar is wrong, or beyond `limits`.
    pub fn compile(
        &self,
        grammar: &Grammar,
        limits: &GrammarLimits,
    ) -> Result<Constraint, GrammarError> {
        let _ = (grammar, limits);
        Err(GrammarError::Invalid("not supported yet".to_owned()))
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrammarCompiler")
    }
}

/// A compiled grammar, for any number of requests. Cheap to clone.
#[derive(Clone)]
pub struct Constraint {}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}
