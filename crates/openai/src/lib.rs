//! Wire types of the OpenAI API, shared by worker and gateway.
//!
//! Requests are read strictly: a field is honoured, harmless, or refused with an error that names
//! it; nothing is dropped. Limits are checked while reading, before anything fans out. Answers
//! are plain serde types. This crate does no IO and knows no HTTP library.

pub mod chat;
pub mod completion;
mod error;
mod fields;
mod models;
mod sampling;
mod tokenize;
mod usage;

pub use error::{ApiError, ErrorBody, ErrorKind, ErrorObject, excerpt};
pub use models::{Model, ModelList, Provenance};
pub use sampling::{MAX_CHOICES, MAX_LOGPROBS, MAX_STOP_STRINGS, Sampling, StreamOptions};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
pub use usage::Usage;
