//! Why a request is not answered by a worker, and how the client is told.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyprstream_openai::{ErrorBody, ErrorObject};

use crate::table::ResolveError;

/// Longest message to a client, in characters: what a client sent is not echoed at length.
const MAX_MESSAGE_CHARS: usize = 2000;

/// A request that the gateway itself answers with an error.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The body is not what it must be.
    #[error("{message}")]
    InvalidRequest {
        /// What is wrong.
        message: String,
        /// The field.
        param: Option<&'static str>,
    },
    /// The body is of another type.
    #[error("the body must be application/json without a content-encoding")]
    UnsupportedMediaType,
    /// The body is too large.
    #[error("the body is larger than {limit_bytes} bytes")]
    BodyTooLarge {
        /// Largest allowed.
        limit_bytes: usize,
    },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} s", .0.as_secs())]
    BodyTimeout(Duration),
    /// The client broke off.
    #[error("the body could not be read")]
    BodyBroken(#[source] axum::Error),
    /// The reference names no Model.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// There is no such path.
    #[error("{method} {path} is not served here")]
    NoRoute {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// There is the path, but not with this method.
    #[error("{path} is not served with {method}")]
    WrongMethod {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// Too many requests or bytes at the same time.
    #[error("the gateway is at its limit of {0}; try again later")]
    Overloaded(&'static str),
    /// Others needed what the request had while its body was still coming.
    #[error(
        "the body came too slowly while others needed the gateway's memory and places; try again \
         later"
    )]
    BodyGaveWay,
    /// The Model or its namespace has as much as it may have while others could ask.
    #[error("the model or its namespace has its share of the gateway's {0}; try again later")]
    Contended(&'static str),
    /// Too many requests wait for Models that are starting.
    #[error("too many requests wait for models that are starting; try again later")]
    TooManyHeld,
    /// No worker will come by itself.
    #[error("the model {model:?} is not available: {reason}: {message}")]
    Unavailable {
        /// The Model.
        model: String,
        /// CamelCase reason.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// No worker came in time.
    #[error("the model {model:?} was not ready within {} s: {reason}: {message}", .waited.as_secs())]
    HoldTimeout {
        /// The Model.
        model: String,
        /// CamelCase reason.
        reason: String,
        /// A sentence.
        message: String,
        /// How long the request waited.
        waited: Duration,
    },
    /// No worker had an adapter in time.
    #[error(
        "the adapter {adapter:?} of the model {model:?} was on no worker within {} s: {reason}: {message}",
        .waited.as_secs()
    )]
    AdapterTimeout {
        /// The Model.
        model: String,
        /// The served name.
        adapter: String,
        /// CamelCase reason.
        reason: String,
        /// A sentence.
        message: String,
        /// How long the request waited.
        waited: Duration,
    },
    /// The list of Models is not there yet.
    #[error("the gateway is starting and does not know the models yet")]
    Starting,
    /// The gateway shuts down.
    #[error("the gateway is shutting down; try again")]
    ShuttingDown,
    /// The worker says nothing any more.
    #[error("a worker of the model {model:?} sent nothing for {} s", .limit.as_secs())]
    WorkerSilent {
        /// The Model.
        model: String,
        /// How long it may be silent.
        limit: Duration,
    },
    /// No worker takes this gateway for one that may ask.
    #[error("the workers of the model {model:?} do not accept the gateway's key")]
    WorkerRefuses {
        /// The Model.
        model: String,
    },
    /// The worker broke off.
    #[error(
        "the worker of the model {model:?} closed the connection before its answer was complete"
    )]
    WorkerLost {
        /// The Model.
        model: String,
    },
}

impl GatewayError {
    /// Status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::InvalidRequest { .. }
            | Self::BodyBroken(_)
            | Self::Resolve(
                ResolveError::Ambiguous { .. } | ResolveError::AmbiguousAdapter { .. },
            ) => StatusCode::BAD_REQUEST,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Resolve(_) | Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyHeld | Self::Contended(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded(_)
            | Self::BodyGaveWay
            | Self::Unavailable { .. }
            | Self::HoldTimeout { .. }
            | Self::AdapterTimeout { .. }
            | Self::Starting
            | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::WorkerLost { .. } | Self::WorkerRefuses { .. } => StatusCode::BAD_GATEWAY,
            Self::WorkerSilent { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest { .. } => "invalid_value",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyTimeout(_) | Self::BodyBroken(_) => "body_not_received",
            Self::Resolve(
                ResolveError::Ambiguous { .. } | ResolveError::AmbiguousAdapter { .. },
            ) => "model_ambiguous",
            Self::Resolve(_) => "model_not_found",
            Self::NoRoute { .. } => "unknown_url",
            Self::WrongMethod { .. } => "method_not_allowed",
            Self::Overloaded(_) | Self::BodyGaveWay => "overloaded",
            Self::TooManyHeld | Self::Contended(_) => "rate_limit_exceeded",
            Self::Unavailable { .. } => "model_unavailable",
            Self::HoldTimeout { .. } => "model_not_ready",
            Self::AdapterTimeout { .. } => "adapter_not_ready",
            Self::Starting => "starting",
            Self::ShuttingDown => "shutting_down",
            Self::WorkerLost { .. } => "worker_lost",
            Self::WorkerRefuses { .. } => "worker_refused",
            Self::WorkerSilent { .. } => "worker_timeout",
        }
    }

    fn kind(&self) -> &'static str {
        match self.status().as_u16() {
            429 => "rate_limit_error",
            502 | 504 => "server_error",
            503 => "service_unavailable_error",
            _ => "invalid_request_error",
        }
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest { param, .. } => *param,
            Self::Resolve(_)
            | Self::Unavailable { .. }
            | Self::HoldTimeout { .. }
            | Self::AdapterTimeout { .. } => Some("model"),
            _ => None,
        }
    }

    fn retry_after_seconds(&self) -> Option<u32> {
        match self {
            Self::Overloaded(_)
            | Self::BodyGaveWay
            | Self::Contended(_)
            | Self::Starting
            | Self::ShuttingDown => Some(1),
            Self::TooManyHeld | Self::HoldTimeout { .. } | Self::AdapterTimeout { .. } => Some(10),
            Self::Unavailable { .. } => Some(60),
            _ => None,
        }
    }

    /// The error object of the OpenAI API, as bytes of JSON.
    pub fn body(&self) -> Bytes {
        let message: String = self.to_string().chars().take(MAX_MESSAGE_CHARS).collect();
        let body = ErrorBody {
            error: ErrorObject {
                message,
                kind: self.kind().to_owned(),
                param: self.param().map(str::to_owned),
                code: Some(self.code().to_owned()),
            },
        };
        serde_json::to_vec(&body).expect("strings are JSON").into()
    }
}

impl IntoResponse for GatewayError {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response =
            (self.status(), [(header::CONTENT_TYPE, json)], self.body()).into_response();
        if let Some(seconds) = self.retry_after_seconds() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
