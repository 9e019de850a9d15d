//! Calls of the API server.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Longest answer that is read: a review is a few kilobytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the API server is, and how to show it who asks.
pub(super) struct ApiServer {
    url: String,
    token_file: PathBuf,
    ca_file: Option<PathBuf>,
    /// The client for the certificates that the file held when it was last read.
    agent: Mutex<Option<(Vec<u8>, ureq::Agent)>>,
}

/// A call had no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("there is no certificate in {path}")]
    NoCertificate { path: PathBuf },
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<ureq::Error>),
    #[error(
        "the API server answered {verb} {call} with {status}: 401 and 403 mean that the registry's \
         service account may not {verb} it"
    )]
    Status {
        verb: &'static str,
        call: String,
        status: u16,
    },
    #[error("the API server's answer cannot be read")]
    Answer(#[source] Box<ureq::Error>),
}

impl ApiServer {
    pub(super) fn new(url: &str, token_file: PathBuf, ca_file: Option<PathBuf>) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            token_file,
            ca_file,
            agent: Mutex::default(),
        }
    }

    /// Creates an object, such as a review, and returns what the API server made of it. Blocks.
    pub(super) fn create<T: DeserializeOwned>(
        &self,
        path: &str,
        object: &Value,
    ) -> Result<T, CallError> {
        let response = self
            .agent()?
            .post(format!("{}{path}", self.url))
            .header("authorization", self.authorization()?)
            .send_json(object)
            .map_err(|error| CallError::Unreachable(Box::new(error)))?;
        let status = response.status().as_u16();
        if !(200..300).contains(&status) {
            return Err(refused("create", path, status));
        }
        body(response)
    }

    /// The object at `path`, whose last part is its name; `None` if the API server says that there
    /// is none. A 404 that does not speak of this name, as of a proxy or of another program at the
    /// address, says nothing. Blocks.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, CallError> {
        let response = self
            .agent()?
            .get(format!("{}{path}", self.url))
            .header("authorization", self.authorization()?)
            .call()
            .map_err(|error| CallError::Unreachable(Box::new(error)))?;
        let status = response.status().as_u16();
        if (200..300).contains(&status) {
            return body(response).map(Some);
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if status == 404 {
            let said: Value = body(response)?;
            let is = |path: &str, text: &str| said.pointer(path).is_some_and(|v| v == text);
            if is("/kind", "Status") && is("/reason", "NotFound") && is("/details/name", name) {
                return Ok(None);
            }
        }
        Err(refused("get", path, status))
    }

    fn authorization(&self) -> Result<String, CallError> {
        // The kubelet writes a new token long before the old one ends.
        let token = read(&self.token_file)?;
        Ok(format!("Bearer {}", String::from_utf8_lossy(&token).trim()))
    }

    fn agent(&self) -> Result<ureq::Agent, CallError> {
        let bundle = match &self.ca_file {
            Some(path) => read(path)?,
            None => Vec::new(),
        };
        let mut kept = self.agent.lock();
        if let Some((of, agent)) = &*kept
            && *of == bundle
        {
            return Ok(agent.clone());
        }
        let agent = new_agent(self.ca_file.as_deref(), &bundle)?;
        *kept = Some((bundle, agent.clone()));
        Ok(agent)
    }
}

fn refused(verb: &'static str, path: &str, status: u16) -> CallError {
    let call = path.rsplit('/').next().unwrap_or_default().to_owned();
    CallError::Status { verb, call, status }
}

fn body<T: DeserializeOwned>(
    mut response: ureq::http::Response<ureq::Body>,
) -> Result<T, CallError> {
    let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES);
    body.read_json()
        .map_err(|error| CallError::Answer(Box::new(error)))
}

/// A client that trusts the cluster's certificates and nobody else's. It takes no proxy: the API
/// server is in the cluster, and the token is for nobody on the way.
fn new_agent(ca_file: Option<&Path>, bundle: &[u8]) -> Result<ureq::Agent, CallError> {
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(PATIENCE));
    if let Some(path) = ca_file {
        let certificates: Vec<Certificate<'static>> = parse_pem(bundle)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(CallError::NoCertificate {
                path: path.to_owned(),
            });
        }
        let roots = RootCerts::Specific(Arc::new(certificates));
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    Ok(config.build().into())
}

fn read(path: &Path) -> Result<Vec<u8>, CallError> {
    std::fs::read(path).map_err(|source| CallError::Read {
        path: path.to_owned(),
        source,
    })
}
