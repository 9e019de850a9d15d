//! Why a request is not accepted, and why an answer breaks off.

use std::time::Duration;

use super::request::InvalidRequest;

/// A request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// It cannot be run at all.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Too many requests wait already.
    #[error("too many requests wait already, there may be room in {} s", retry_after.as_secs())]
    Full {
        /// When there will probably be room, judged by recent throughput.
        retry_after: Duration,
    },
    /// The engine is no more.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why an answer broke off.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerationError {
    /// It was not begun.
    #[error(transparent)]
    Refused(#[from] SubmitError),
    /// The backend or the sampler failed on this request; others go on.
    #[error("the model failed on this request: {0}")]
    Failed(String),
    /// The grammar of this request turned out to be too complex, or wrong, while it was followed.
    #[error("{0}")]
    Grammar(String),
    /// The engine ended.
    #[error("the engine has stopped")]
    EngineStopped,
}
