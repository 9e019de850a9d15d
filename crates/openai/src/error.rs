//! Errors as the OpenAI API tells them.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of an error answer, and the last data of a stream that broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// What went wrong, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// A sentence for the caller. It never holds more than an excerpt of what was sent.
    pub message: String,
    /// Class, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field at fault, such as `messages[0].role`.
    pub param: Option<String>,
    /// Machine-readable reason, such as `model_not_found`.
    pub code: Option<String>,
}

/// Class of an error; it decides the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: a field is missing, unknown, malformed or out of bounds.
    Invalid,
    /// 401: no key, or a wrong one.
    Unauthenticated,
    /// 404: no such model, adapter or path.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 408: the body took too long to come.
    Timeout,
    /// 409: what is there is not what was expected.
    Conflict,
    /// 413: the body is longer than what is read.
    TooLarge,
    /// 415: the body is not declared as JSON.
    UnsupportedMediaType,
    /// 429: too many requests wait already.
    RateLimited,
    /// 501: the path is known, what it does is not there.
    NotImplemented,
    /// 500: something of ours failed.
    Internal,
    /// 503: not ready yet, or not any more.
    Unavailable,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RateLimited => 429,
            Self::NotImplemented => 501,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Invalid
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::NotImplemented
            | Self::Timeout
            | Self::Conflict
            | Self::TooLarge
            | Self::UnsupportedMediaType => "invalid_request_error",
            Self::Unauthenticated => "authentication_error",
            Self::RateLimited => "rate_limit_error",
            Self::Internal => "server_error",
            Self::Unavailable => "service_unavailable_error",
        }
    }
}

/// An error on its way to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Class.
    pub kind: ErrorKind,
    /// A sentence for the caller.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Machine-readable reason.
    pub code: Option<Cow<'static, str>>,
    /// Value of `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Adapters that are not there, which a header tells.
    pub missing_adapters: Vec<String>,
}

impl ApiError {
    /// An error of `kind` without a field or code.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            missing_adapters: Vec::new(),
        }
    }

    /// A 400 that names the field `param`. The message begins with the field's name.
    pub fn invalid(param: impl Into<String>, why: impl fmt::Display) -> Self {
        let param = param.into();
        Self {
            message: format!("{param}: {why}"),
            param: Some(param),
            ..Self::new(ErrorKind::Invalid, "")
        }
    }

    /// A 404 for the model that a request named.
    pub fn model_not_found(message: impl Into<String>) -> Self {
        Self {
            param: Some("model".to_owned()),
            ..Self::new(ErrorKind::NotFound, message).with_code("model_not_found")
        }
    }

    /// The same error with a code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// The same error with a time after which a retry makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The body to send.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                kind: self.kind.class().to_owned(),
                param: self.param.clone(),
                code: self.code.as_deref().map(str::to_owned),
            },
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// The beginning of what a client sent, short enough and tame enough to be sent back or logged.
pub fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = chars.by_ref().take(MAX_CHARS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_field_and_has_every_member_on_the_wire() {
        let error = ApiError::invalid("n", "must be from 1 to 8");
        assert_eq!(
            serde_json::to_string(&error.body()).unwrap(),
            r#"{"error":{"message":"n: must be from 1 to 8","type":"invalid_request_error","param":"n","code":null}}"#
        );
    }

    #[test]
    fn an_excerpt_is_short_and_holds_no_control_characters() {
        let text = excerpt(&"a\n".repeat(1000));
        assert_eq!(text.chars().count(), 61);
        assert!(!text.contains('\n'));
    }
}
