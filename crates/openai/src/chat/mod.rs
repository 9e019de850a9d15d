//! `/v1/chat/completions`.

mod message;
mod request;
mod response;

pub(crate) use message::parse_arguments;
pub use message::{Message, PastCall, Role};
pub use request::{ChatPrompt, ChatRequest};
pub(crate) use request::{EFFORTS, harmless};
pub(crate) use response::nullable;
pub use response::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Delta,
    PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob,
};

#[cfg(test)]
mod tests;
