//! Why a request is not served, in the form that its client understands.

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyprstream_contract::registry::{ApiError, reason};
use hyprstream_git2db::lfs::batch::{CONTENT_TYPE, ErrorBody};

/// A request that is not served.
///
/// As a response it has no body; [`render`] writes one as the protocol of the path wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) retriable: bool,
}

impl Refusal {
    /// The request cannot be understood.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message, false)
    }

    /// No valid token came with it. Makes git and git-lfs ask for one.
    pub(crate) fn unauthorized() -> Self {
        let message = "a token of this registry is needed, as bearer token or as password";
        Self::new(
            StatusCode::UNAUTHORIZED,
            reason::ACCESS_DENIED,
            message,
            false,
        )
    }

    /// The token does not allow it.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, reason::ACCESS_DENIED, message, false)
    }

    /// It is not there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            reason::REPOSITORY_NOT_FOUND,
            message,
            false,
        )
    }

    /// Too much is going on.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason::BUSY, message, true)
    }

    /// There is no space for it.
    pub(crate) fn disk_full(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            reason::DISK_FULL,
            message,
            true,
        )
    }

    /// Something of ours failed. The client learns only `act`; the log gets the cause.
    pub(crate) fn internal(act: &'static str, error: &dyn std::error::Error) -> Self {
        tracing::error!(act, error = chain(error), "a request failed");
        let message = format!("{act} failed on the registry; its log says why");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            reason::INTERNAL,
            message,
            true,
        )
    }

    /// A refusal with everything given.
    pub(crate) fn new(
        status: StatusCode,
        reason: &'static str,
        message: impl Into<String>,
        retriable: bool,
    ) -> Self {
        Self {
            status,
            reason,
            message: message.into(),
            retriable,
        }
    }

    fn api_error(&self) -> ApiError {
        ApiError {
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            retriable: self.retriable,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives refusals a body: JSON for the API and for LFS, text for git, which shows it to its user.
pub(crate) async fn render(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let (api, lfs) = (path.starts_with("/api/"), path.contains("/info/lfs/"));
    let response = next.run(request).await;
    let Some(refusal) = response.extensions().get::<Refusal>() else {
        return response;
    };
    let mut rendered = if api {
        (refusal.status, Json(refusal.api_error())).into_response()
    } else if lfs {
        let message = refusal.message.clone();
        let body = ErrorBody {
            message,
            documentation_url: None,
            request_id: None,
        };
        let mut rendered = (refusal.status, Json(body)).into_response();
        let content_type = HeaderValue::from_static(CONTENT_TYPE);
        rendered
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        rendered
    } else {
        (refusal.status, format!("{}\n", refusal.message)).into_response()
    };
    let headers = rendered.headers_mut();
    if let Some(connection) = response.headers().get(header::CONNECTION) {
        headers.insert(header::CONNECTION, connection.clone());
    }
    match refusal.status {
        StatusCode::UNAUTHORIZED => {
            let challenge =
                HeaderValue::from_static("Basic realm=\"hyprstream\", charset=\"UTF-8\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        _ => {}
    }
    rendered
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Whether an IO error says that no space is left.
pub(crate) fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
