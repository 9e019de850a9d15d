//! Tools: what a client offers, what a model calls, and the text between.
//!
//! [`ToolParser`] finds calls in a model's text, in the form of its family ([`ToolFormat`]);
//! [`crate::grammar::calls`] is the other direction: a grammar of the texts that are calls.

mod call;
mod format;
mod parser;
mod request;

pub use call::{FunctionCall, FunctionDelta, ToolCall, ToolCallDelta};
pub use format::ToolFormat;
pub(crate) use parser::overlap;
pub use parser::{ToolEvent, ToolParser};
pub(crate) use request::{MAX_TOOLS, choice, distinct, function, tools};
pub use request::{Tool, ToolChoice};

#[cfg(test)]
mod tests;
