//! How much a grammar may be.

use std::time::Duration;

use serde_json::Value;

use super::Grammar;

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

impl GrammarLimits {
    /// Refuses a grammar for its size. Its text is measured as it is written, before anything
    /// looks at what it means.
    pub(super) fn check(&self, grammar: &Grammar) -> Result<(), GrammarError> {
        let (bytes, depth) = match grammar {
            Grammar::JsonObject => (0, 0),
            Grammar::JsonSchema(schema) => {
                // Deeper ones are not even written out: that recurses.
                let depth = depth_of(schema, self.max_depth);
                let too_deep = depth > self.max_depth;
                let bytes = if too_deep {
                    0
                } else {
                    schema.to_string().len()
                };
                (bytes, depth)
            }
            Grammar::Regex(text) | Grammar::Lark(text) => (text.len(), brackets(text)),
            Grammar::Choice(texts) => (texts.iter().map(|text| text.len() + 1).sum(), 0),
        };
        for (what, size, limit) in [
            ("length in bytes", bytes, self.max_bytes),
            ("nesting", depth, self.max_depth),
        ] {
            if size > limit {
                return Err(GrammarError::TooLarge { what, limit });
            }
        }
        Ok(())
    }
}

/// How deep `value` is nested, or more than `limit`.
fn depth_of(value: &Value, limit: usize) -> usize {
    let mut level = vec![value];
    for depth in 0..=limit {
        let mut next = Vec::new();
        for value in level {
            match value {
                Value::Array(items) => next.extend(items),
                Value::Object(members) => next.extend(members.values()),
                _ => {}
            }
        }
        if next.is_empty() {
            return depth;
        }
        level = next;
    }
    limit + 1
}

/// How deep brackets are nested in `text`, at most: those in strings count too.
fn brackets(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
