//! `/v1/completions`.

mod request;
mod response;

pub use request::{CompletionRequest, Prompt};
pub use response::{Completion, CompletionChoice, CompletionChunk, CompletionLogprobs};

#[cfg(test)]
mod tests;
