//! `/v1/chat/completions`.

mod message;
mod request;
mod response;

pub use message::{Message, Role};
pub use request::ChatRequest;
pub(crate) use response::nullable;
pub use response::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Delta,
    TokenLogprob, TopLogprob,
};

#[cfg(test)]
mod tests;
