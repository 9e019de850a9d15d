//! The engine's thread and what talks to it.
//!
//! From below: [`shared`], which the thread and those who give it work both see; what is asked for
//! ([`adapter`], [`request`]) and told ([`error`], [`event`], [`observer`]); what becomes of what the
//! model computes ([`answer`], [`embedding`], and [`job`] for either); the loop of the thread
//! ([`worker`]), and beside it what gives it work ([`handle`]); and [`engine`], which starts them.
//! None knows one above it.

mod adapter;
mod answer;
mod embedding;
mod engine;
mod error;
mod event;
mod handle;
mod job;
mod observer;
mod pace;
mod request;
mod shared;
mod stream;
mod worker;

pub use adapter::{Adapter, AdapterDigest, AttachError};
pub use engine::{Engine, EngineConfig, StartError};
pub use error::{GenerationError, SubmitError};
pub use event::{FinishReason, Stats, TokenLogprobs};
pub use handle::{EngineHandle, Load};
pub use observer::{NoObserver, Observer, StepReport};
pub use request::{InvalidRequest, Pooling, Request, StopRules};
pub use stream::{TextPiece, TextStream};

#[cfg(test)]
mod tests;
