//! Why a request of the fine-tuning API is not answered, and how the client is told.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use hyprstream_openai::{ApiError, ErrorKind};
use tracing::{debug, warn};

use super::{files::LineError, registry::RegistryError};
use crate::GatewayError;

/// A request that is not answered as it was meant.
#[derive(Debug, thiserror::Error)]
pub enum FineTuningError {
    /// The API is off.
    #[error(
        "files and fine-tuning are off here: whoever runs this cluster sets the chart's \
         gateway.fineTuning.enabled, and gateway.fineTuning.existingSecret to a Secret with keys"
    )]
    Off,
    /// No key came, or none that is known.
    #[error("files and fine-tuning need a key of a namespace, as Authorization: Bearer KEY")]
    Key,
    /// What any request may meet.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// A field or parameter is wrong.
    #[error(transparent)]
    Invalid(#[from] ApiError),
    /// The body is no form.
    #[error("the body must be multipart/form-data with the fields purpose and file: {0}")]
    Form(String),
    /// A line of a file cannot be learnt from.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A file is too large.
    #[error("the file is larger than {limit_bytes} bytes")]
    FileTooLarge {
        /// Largest allowed.
        limit_bytes: u64,
    },
    /// The disk for files on their way failed.
    #[error("a file could not be kept on its way to the registry")]
    Spool(#[source] std::io::Error),
    /// The namespace has no such file.
    #[error("no such file: {id}")]
    NoFile {
        /// Its id.
        id: String,
    },
    /// The namespace has no such job.
    #[error("no such fine-tuning job: {id}")]
    NoJob {
        /// Its id.
        id: String,
    },
    /// The job's state does not allow it.
    #[error("{verb} is not possible: the job {id} is {status}")]
    WrongState {
        /// Its id.
        id: String,
        /// What was asked for.
        verb: &'static str,
        /// What it is.
        status: &'static str,
    },
    /// Another request had the same key.
    #[error(
        "another request had this Idempotency-Key: a key is for one request and its repetitions"
    )]
    KeyReused,
    /// The registry failed.
    #[error("the registry, where files lie, {}", .0.for_clients())]
    Registry(#[source] RegistryError),
    /// The API server failed.
    #[error("the API server, which keeps the jobs, {}", cluster_for_clients(.0))]
    Cluster(#[source] Box<kube::Error>),
    /// An object of the cluster is not what we made.
    #[error("the job {id} cannot be read")]
    Unreadable {
        /// Its id.
        id: String,
        /// Why.
        why: String,
    },
    /// Others changed the job all the time.
    #[error("the job {id} is being changed by others; try again")]
    Busy {
        /// Its id.
        id: String,
    },
}

impl From<RegistryError> for FineTuningError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<kube::Error> for FineTuningError {
    fn from(error: kube::Error) -> Self {
        Self::Cluster(Box::new(error))
    }
}

/// What the API server said is told only where it is about the request.
fn cluster_for_clients(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if is_of_request(status.code) => {
            format!("refuses it: {}", status.message)
        }
        kube::Error::Api(status) => format!("answered with status {}", status.code),
        _ => "does not answer; try again later".to_owned(),
    }
}

/// Invalid objects, quotas and rights.
fn is_of_request(code: u16) -> bool {
    matches!(code, 400 | 403 | 422)
}

impl FineTuningError {
    fn api(&self) -> ApiError {
        let new = |kind, code: &'static str| {
            let message: String = self.to_string().chars().take(2000).collect();
            ApiError::new(kind, message).with_code(code)
        };
        let later =
            |code| new(ErrorKind::Unavailable, code).with_retry_after(Duration::from_secs(5));
        let of = |param: &str, error: ApiError| ApiError {
            param: Some(param.to_owned()),
            ..error
        };
        match self {
            Self::Invalid(error) => error.clone(),
            Self::Off => new(ErrorKind::NotFound, "unknown_url"),
            Self::Key => new(ErrorKind::Unauthenticated, "invalid_api_key"),
            Self::Form(_) => new(ErrorKind::Invalid, "invalid_form"),
            Self::Line(_) => of("file", new(ErrorKind::Invalid, "invalid_file_format")),
            Self::FileTooLarge { .. } => of("file", new(ErrorKind::TooLarge, "request_too_large")),
            Self::NoFile { .. } => of("id", new(ErrorKind::NotFound, "file_not_found")),
            Self::NoJob { .. } => of(
                "fine_tuning_job_id",
                new(ErrorKind::NotFound, "fine_tuning_job_not_found"),
            ),
            Self::WrongState { .. } => new(ErrorKind::Invalid, "invalid_job_state"),
            Self::KeyReused => new(ErrorKind::Conflict, "idempotency_key_reused"),
            Self::Busy { .. } => new(ErrorKind::Conflict, "conflict"),
            Self::Registry(error) if error.is_of_request() => {
                new(ErrorKind::Invalid, "registry_refused")
            }
            Self::Registry(_) => later("registry_unavailable"),
            Self::Cluster(error) => match &**error {
                kube::Error::Api(status) if is_of_request(status.code) => {
                    new(ErrorKind::Invalid, "cluster_refused")
                }
                _ => later("cluster_unavailable"),
            },
            Self::Spool(_) => later("overloaded"),
            Self::Gateway(_) | Self::Unreadable { .. } => new(ErrorKind::Internal, "unreadable"),
        }
    }
}

impl IntoResponse for FineTuningError {
    fn into_response(self) -> Response {
        match &self {
            Self::Registry(_) | Self::Cluster(_) | Self::Spool(_) | Self::Unreadable { .. } => {
                warn!(
                    error = &self as &dyn std::error::Error,
                    "a request of the fine-tuning API failed"
                );
            }
            _ => debug!(error = %self, "a request of the fine-tuning API is refused"),
        }
        if let Self::Gateway(error) = self {
            return error.into_response();
        }
        let error = self.api();
        let status = StatusCode::from_u16(error.kind.status())
            .expect("kinds of errors have statuses of HTTP");
        let mut response = (status, Json(error.body())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = error.retry_after {
            headers.insert(header::RETRY_AFTER, after.as_secs().into());
        }
        if matches!(error.kind, ErrorKind::Unauthenticated) {
            let scheme = http::HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
