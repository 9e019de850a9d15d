//! The engine's thread and what talks to it.

mod answer;
mod embedding;
mod engine;
mod event;
mod job;
mod observer;
mod pace;
mod request;
mod stream;
mod worker;

pub use engine::{Engine, EngineConfig, EngineHandle, Load, StartError, SubmitError};
pub use event::{FinishReason, GenerationError, Stats, TokenLogprobs};
pub use observer::{NoObserver, Observer, StepReport};
pub use request::{InvalidRequest, Pooling, Request, StopRules};
pub use stream::{TextPiece, TextStream};

#[cfg(test)]
mod tests;
