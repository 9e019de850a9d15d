//! Answers that have a prescribed form.
//!
//! A grammar comes from a user, so everything about it is bounded: its text, its nesting, the
//! time of its compilation, how many are compiled at once and kept, and the work for one token
//! (by llguidance). What goes wrong in a grammar while an answer is generated ends that answer
//! alone.

mod compiler;
mod limits;
mod matcher;
mod trie;

use serde_json::Value;

pub use compiler::{Constraint, GrammarCompiler};
pub use limits::{GrammarError, GrammarLimits};
pub(crate) use matcher::{Matcher, MatcherError};

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that a schema allows, on one line. Keywords of JSON Schema that cannot be enforced
    /// are refused.
    JsonSchema(Value),
    /// Any JSON object, on one line.
    JsonObject,
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in
    /// [llguidance's variant of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    Lark(String),
}

#[cfg(test)]
mod tests;
