//! The engine: scheduling, cache blocks with a prefix cache, sampling, grammars, stopping,
//! tokenising and chat templates.
//!
//! It links no libtorch and speaks no HTTP. A [`Backend`] computes; the engine decides what.
//! [`Engine::start`] puts a backend on a thread of its own; [`EngineHandle::submit`] gives it a
//! [`Request`] and returns a [`TextStream`], whose drop stops the generation.
//!
//! Deliberately absent: clocks and randomness in the scheduler, text in the backend, and locks
//! that the engine's thread could wait for.

pub mod backend;
mod cache;
#[doc(hidden)]
pub mod fake;
mod files;
mod grammar;
#[doc(hidden)]
pub mod measure;
mod run;
mod sampling;
mod scheduler;
mod template;
mod text;

pub use backend::{
    AdapterId, Backend, BackendError, BlockId, LogitsWanted, ModelSpec, PackedAdapter,
    SequenceStep, StepBatch, StepLogits,
};
pub use files::{FilesError, GenerationDefaults, ModelFiles};
pub use grammar::{Constraint, Grammar, GrammarCompiler, GrammarError, GrammarLimits};
pub use run::{
    Adapter, AdapterDigest, AttachError, Engine, EngineConfig, EngineHandle, FinishReason,
    GenerationError, InvalidRequest, Load, NoObserver, Observer, Pooling, Request, StartError,
    Stats, StepReport, StopRules, SubmitError, TextPiece, TextStream, TokenLogprobs,
};
pub use sampling::{InvalidParams, SamplingParams};
pub use template::{ChatTemplate, Conversation, MarkedPrompt, TemplateError, TemplateMessage};
pub use text::{Aside, Guard, Tokenizer, TokenizerError};
