use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::{
    adapters::ModelName,
    worker,
    worker_adapters::{WORKER_ADAPTERS_PATH, WorkerAdapters},
    worker_tls,
};
use hyprstream_tls::Trust;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::WorkerPod;
use crate::policy::Policy;

/// How many workers are asked at once.
const AT_ONCE: usize = 64;
/// Longest answer that is read: two thousand adapters take a tenth of it.
const MAX_BYTES: usize = 8 << 20;

/// How workers are asked. Tests hurry.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// Port of the workers.
    pub port: u16,
    /// Port of those that speak TLS.
    pub tls_port: u16,
    /// Longest that an answer may take.
    pub patience: Duration,
    /// How often they are asked just after their list changed.
    pub at_first: Duration,
    /// For how long that is.
    pub first: Duration,
    /// How often while anything is unsettled.
    pub unsettled: Duration,
    /// How often otherwise, give or take a fifth.
    pub settled: Duration,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            port: worker::PORT,
            tls_port: worker::TLS_PORT,
            patience: Duration::from_secs(2),
            at_first: Duration::from_millis(100),
            first: Duration::from_secs(2),
            unsettled: Duration::from_secs(1),
            settled: Duration::from_secs(30),
        }
    }
}

/// Asks workers.
pub struct Asker {
    http: reqwest::Client,
    slots: Semaphore,
    policy: Arc<Policy>,
    /// How.
    pub asking: Asking,
}

/// A worker does not say which adapters it has.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The kubelet has not said where it is.
    #[error("it has no address yet")]
    NoAddress,
    /// It does not answer, or not in time.
    #[error("it does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// It knows of no adapters.
    #[error("it is of a release without adapters")]
    TooOld,
    /// It refuses our key, or fails.
    #[error("it answers with status {0}")]
    Status(u16),
    /// It answers with something else.
    #[error("its answer cannot be read")]
    Unreadable,
}

impl Asker {
    /// Asks in that manner. Workers that speak TLS must show a certificate of somebody whom `trust`
    /// has, before they are shown the key.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(asking: Asking, policy: Arc<Policy>, trust: &Trust) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(trust.client_config())
            .dns_resolver(PodNames)
            .connect_timeout(asking.patience)
            .timeout(asking.patience)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .build()?;
        Ok(Self {
            http,
            slots: Semaphore::new(AT_ONCE),
            policy,
            asking,
        })
    }

    /// Which adapters a worker of that Model has.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask(
        &self,
        model: &ModelName,
        pod: &WorkerPod,
    ) -> Result<WorkerAdapters, AskError> {
        let address: IpAddr = pod
            .address
            .as_deref()
            .and_then(|a| a.parse().ok())
            .ok_or(AskError::NoAddress)?;
        // Never closed.
        let _slot = self.slots.acquire().await.ok();
        let place = if pod.tls {
            let name = worker_tls::pod_name(model.namespace(), model.model(), address);
            format!("https://{name}:{}", self.asking.tls_port)
        } else {
            format!("http://{}", SocketAddr::new(address, self.asking.port))
        };
        let key = self.policy.keys.shown(model.namespace(), model.model());
        let mut answer = self
            .http
            .get(format!("{place}{WORKER_ADAPTERS_PATH}"))
            .bearer_auth(key)
            .send()
            .await
            .map_err(AskError::Unreachable)?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Err(AskError::TooOld),
            status => return Err(AskError::Status(status)),
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(AskError::Unreachable)? {
            if body.len() + part.len() > MAX_BYTES {
                return Err(AskError::Unreadable);
            }
            body.extend_from_slice(&part);
        }
        serde_json::from_slice(&body).map_err(|_| AskError::Unreadable)
    }
}

/// Knows the names of workers, which nobody else has to: the address is in them.
struct PodNames;

impl Resolve for PodNames {
    fn resolve(&self, name: Name) -> Resolving {
        let found = match worker_tls::pod_address(name.as_str()) {
            // The port is that of the URL.
            Some(address) => {
                let one: Addrs = Box::new(std::iter::once(SocketAddr::new(address, 0)));
                Ok(one)
            }
            None => Err(format!("{} names no worker", name.as_str()).into()),
        };
        Box::pin(std::future::ready(found))
    }
}
