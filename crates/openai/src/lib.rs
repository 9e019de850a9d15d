//! Wire types of the OpenAI API, shared by worker and gateway.
//!
//! Requests are read strictly: a field is honoured, harmless, or refused with an error that names
//! it; nothing is dropped. Members of past messages that are not known are the client's history and
//! no request: they are read over, and named ([`Ignored`]). Limits are checked while reading, before anything fans out. Answers
//! are plain serde types. [`openapi`] describes both, from the code that reads and the types that
//! are written. This crate does no IO and knows no HTTP library.

pub mod adapters;
pub mod chat;
mod closed;
pub mod completion;
pub mod embeddings;
mod error;
mod fields;
pub mod files;
pub mod fine_tuning;
pub mod grammar;
mod ignored;
mod models;
pub mod openapi;
mod page;
mod reasoning;
pub mod responses;
mod sampling;
mod structured;
mod tokenize;
pub mod tools;
mod usage;

pub use closed::closed;
pub use error::{ApiError, ErrorBody, ErrorKind, ErrorObject, excerpt};
pub use ignored::Ignored;
pub use models::{Model, ModelList, Provenance};
pub use page::Page;
pub use reasoning::{ReasoningParser, Thought};
pub use sampling::{MAX_CHOICES, MAX_LOGPROBS, MAX_STOP_STRINGS, Sampling, StreamOptions};
pub use structured::{MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH, Structured};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
pub use usage::{PromptTokensDetails, Timings, Usage};
