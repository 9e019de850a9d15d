//! Calls of the registry's API, beside git and LFS.

use std::{path::PathBuf, time::Duration};

use hyprstream_contract::registry::ApiError;
use hyprstream_tls::Trust;
use serde::Serialize;

use crate::fetch::chain;

/// Longest that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_BYTES: usize = 64 << 20;

/// The registry of the cluster.
pub(crate) struct RegistryApi {
    http: reqwest::Client,
    url: String,
    token_file: Option<PathBuf>,
}

impl RegistryApi {
    /// The registry at `url`, which is one without a path, whose calls take at most `timeout`. The
    /// token is read from its file for every call.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub(crate) fn new(
        url: &str,
        token_file: Option<PathBuf>,
        trust: &Trust,
        timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .no_proxy()
            .tls_backend_preconfigured(trust.client_config())
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            token_file,
        })
    }

    /// The body of the answer to a call of `path`.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Vec<u8>, String> {
        let url = format!("{}{path}", self.url);
        let mut call = self.http.post(&url).json(body);
        if let Some(path) = &self.token_file {
            let token = tokio::fs::read_to_string(path).await.map_err(|e| {
                let path = path.display();
                format!("the token for the registry cannot be read from {path}: {e}")
            })?;
            call = call.bearer_auth(token.trim());
        }
        let mut response = call.send().await.map_err(|e| chain(&e))?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| chain(&e))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_BYTES {
                return Err(format!("its answer is longer than {MAX_BYTES} bytes"));
            }
        }
        let status = response.status();
        if !status.is_success() {
            return Err(match serde_json::from_slice::<ApiError>(&body) {
                Ok(error) => error.to_string(),
                Err(_) => format!("{url} answered with {status}"),
            });
        }
        Ok(body)
    }
}
