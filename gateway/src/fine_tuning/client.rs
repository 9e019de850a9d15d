//! Who asks.

use std::{sync::Arc, time::Duration};

use axum::extract::FromRequestParts;
use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyprstream_openai::ApiError;
use tokio::time::timeout;

use super::{FineTuning, FineTuningError, ids::Origin};
use crate::{GatewayError, budget::Share, forward::State};

/// Largest body of JSON.
const MAX_JSON_BYTES: usize = 1 << 20;
/// Header by which a client says that a request repeats another.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longest value of it.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// What all requests of the API share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    /// `None` where it is off.
    pub(crate) api: Option<Arc<FineTuning>>,
}

/// A client whose key opens a namespace, with a place for its request.
pub(super) struct Client {
    pub(super) api: Arc<FineTuning>,
    pub(super) state: Arc<State>,
    pub(super) namespace: Arc<str>,
    pub(super) idempotency_key: Option<String>,
    pub(super) place: Share,
}

impl FromRequestParts<Shared> for Client {
    type Rejection = FineTuningError;

    async fn from_request_parts(
        parts: &mut Parts,
        shared: &Shared,
    ) -> Result<Self, FineTuningError> {
        let api = shared.api.clone().ok_or(FineTuningError::Off)?;
        let key = bearer(&parts.headers).ok_or(FineTuningError::Key)?;
        let namespace = api.keys().namespace(key).ok_or(FineTuningError::Key)?;
        Ok(Self {
            place: shared.state.place(&namespace)?,
            state: Arc::clone(&shared.state),
            idempotency_key: idempotency_key(&parts.headers)?,
            api,
            namespace,
        })
    }
}

impl Client {
    /// The repository of the namespace's files.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.namespace, super::REPOSITORY)
    }

    /// What ids of this request's objects are made of.
    pub(super) fn origin(&self) -> Origin<'_> {
        match &self.idempotency_key {
            None => Origin::Chance,
            Some(idempotency_key) => Origin::Request {
                namespace: &self.namespace,
                idempotency_key,
            },
        }
    }

    /// How long a client may take for a body of JSON, or for any part of a larger one.
    pub(super) fn body_timeout(&self) -> Duration {
        self.state.config.body_timeout
    }

    /// A body of JSON.
    pub(super) async fn read_json(&self, body: axum::body::Body) -> Result<Bytes, FineTuningError> {
        let limit_bytes = MAX_JSON_BYTES.min(self.state.config.max_body_bytes);
        let read = timeout(
            self.body_timeout(),
            Limited::new(body, limit_bytes).collect(),
        );
        let read = read
            .await
            .map_err(|_| GatewayError::BodyTimeout(self.body_timeout()))?;
        match read {
            Ok(read) => Ok(read.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(GatewayError::BodyTooLarge { limit_bytes }.into())
            }
            Err(error) => Err(GatewayError::BodyBroken(axum::Error::new(error)).into()),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if (1..=MAX_IDEMPOTENCY_KEY).contains(&text.len()) => Ok(Some(text.to_owned())),
        _ => {
            let why = format!("must be a text of 1 to {MAX_IDEMPOTENCY_KEY} characters of ASCII");
            Err(ApiError::invalid("Idempotency-Key", why))
        }
    }
}
