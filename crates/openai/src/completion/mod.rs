//! `/v1/completions`.

mod request;
mod response;

pub use request::{CompletionRequest, Prompt};
pub(crate) use request::{prompt_schema, prompts};
pub use response::{Completion, CompletionChoice, CompletionChunk, CompletionLogprobs};

#[cfg(test)]
mod tests;
