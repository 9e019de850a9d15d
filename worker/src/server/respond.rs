//! Errors and bodies as HTTP answers.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyprstream_contract::header::{DRAINING, MISSING_ADAPTERS};
use hyprstream_engine::{GenerationError, SubmitError};
use hyprstream_openai::{ApiError, ErrorKind};

use super::api::context::too_long;

/// An error as an answer.
#[derive(Debug)]
pub(super) struct Failure(pub(super) ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status =
            StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(error.body())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = error.retry_after {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(after.as_secs().max(1)),
            );
        }
        if !error.missing_adapters.is_empty()
            && let Ok(names) = HeaderValue::from_str(&error.missing_adapters.join(","))
        {
            headers.insert(HeaderName::from_static(MISSING_ADAPTERS), names);
        }
        if error.code.as_deref() == Some("draining") {
            headers.insert(
                HeaderName::from_static(DRAINING),
                HeaderValue::from_static("true"),
            );
        }
        response
    }
}

/// The answer to a request that the engine did not take. `prompt` is the field that the prompt
/// came from.
pub(super) fn submit_error(error: &SubmitError, prompt: &str) -> ApiError {
    use hyprstream_engine::{InvalidParams, InvalidRequest};

    match error {
        SubmitError::Invalid(why) => {
            let param = match why {
                InvalidRequest::EmptyPrompt
                | InvalidRequest::PromptTooLong { .. }
                | InvalidRequest::UnknownToken { name: "prompt", .. }
                | InvalidRequest::MixedGroup
                | InvalidRequest::EmptyGroup => prompt,
                InvalidRequest::AnswerTooLong { .. } | InvalidRequest::NoAnswer => "max_tokens",
                InvalidRequest::MinAboveMax { .. } => "min_tokens",
                InvalidRequest::EmptyStopString => "stop",
                InvalidRequest::GroupTooLarge { .. } => "n",
                InvalidRequest::NoEmbeddings => "model",
                InvalidRequest::ForeignAdapter | InvalidRequest::AdapterScale { .. } => "adapters",
                InvalidRequest::UnknownToken { name, .. }
                | InvalidRequest::Sampling(
                    InvalidParams::OutOfRange { name, .. }
                    | InvalidParams::UnknownToken { name, .. }
                    | InvalidParams::Empty(name),
                ) => name,
            };
            match why {
                InvalidRequest::PromptTooLong { tokens, limit } => {
                    let found = format!("the prompt has {tokens} tokens");
                    too_long(param, *limit, &found)
                }
                InvalidRequest::AnswerTooLong {
                    tokens,
                    max_tokens,
                    limit,
                } => {
                    let found = format!(
                        "the prompt has {tokens} tokens and the answer may have {max_tokens}"
                    );
                    too_long(param, *limit, &found)
                }
                _ => ApiError::invalid(param, why),
            }
        }
        SubmitError::Full { retry_after } => ApiError::new(
            ErrorKind::RateLimited,
            "too many requests wait already, try again later",
        )
        .with_code("rate_limit_exceeded")
        .with_retry_after(*retry_after),
        SubmitError::Stopped => engine_stopped(),
    }
}

/// The answer to a request that broke off.
pub(super) fn generation_error(error: &GenerationError) -> ApiError {
    match error {
        GenerationError::Refused(error) => submit_error(error, "input"),
        // The cause is in the log; it may hold addresses and paths.
        GenerationError::Failed(_) => {
            ApiError::new(ErrorKind::Internal, "the model failed on this request")
                .with_code("generation_failed")
        }
        GenerationError::Grammar(why) => {
            ApiError::new(ErrorKind::Invalid, why.clone()).with_code("invalid_grammar")
        }
        GenerationError::EngineStopped => engine_stopped(),
    }
}

fn engine_stopped() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the engine has stopped")
        .with_code("engine_stopped")
        .with_retry_after(std::time::Duration::from_secs(5))
}
