//! A registry in this process, on a port of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hyprstream_registry::{
    AllowedUpstream, KubernetesTokens, Limits, OpenError, Registry, Settings, SigningKey,
    TokenFiles,
};
use tempfile::TempDir;

use crate::{
    cluster::Cluster,
    listen::{ANY, Listening},
};

pub(crate) const ADMIN: &str = "admin-token-of-the-tests";
pub(crate) const NODE: &str = "node-token-of-the-tests";
const KEY: &str = "a signing key of the tests, long enough";

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) dir: Arc<TempDir>,
    limits: Limits,
    allowed: Vec<AllowedUpstream>,
    kubernetes: Option<KubernetesTokens>,
    listening: Listening,
    metrics: prometheus::Registry,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits {
            min_free_bytes: 0,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_millis(100),
            ..Limits::default()
        };
        change(&mut limits);
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::open(
            dir,
            &limits,
            vec!["127.0.0.0/8".parse().unwrap()],
            None,
            ANY,
        )
    }

    /// One that takes tokens of the cluster.
    pub(crate) fn in_cluster(cluster: &Cluster) -> Self {
        let limits = Limits {
            min_free_bytes: 0,
            ..Limits::default()
        };
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let kubernetes = Some(cluster.settings(dir.path()));
        Self::open(dir, &limits, Vec::new(), kubernetes, ANY)
    }

    /// The same, which fetches from what is allowed as well.
    pub(crate) fn in_cluster_with_upstreams(cluster: &Cluster, allowed: &[&str]) -> Self {
        let limits = Limits {
            min_free_bytes: 0,
            ..Limits::default()
        };
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
        let kubernetes = Some(cluster.settings(dir.path()));
        Self::open(dir, &limits, allowed, kubernetes, ANY)
    }

    /// One that fetches only from what is allowed, which is not this machine.
    pub(crate) fn fenced(allowed: &[&str]) -> Self {
        let limits = Limits {
            min_free_bytes: 0,
            ..Limits::default()
        };
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
        Self::open(dir, &limits, allowed, None, ANY)
    }

    /// The same root and port in a new life.
    pub(crate) fn restart(mut self) -> Self {
        self.listening.end();
        let allowed = std::mem::take(&mut self.allowed);
        let kubernetes = self.kubernetes.take();
        Self::open(
            Arc::clone(&self.dir),
            &self.limits,
            allowed,
            kubernetes,
            self.address,
        )
    }

    fn open(
        dir: Arc<TempDir>,
        limits: &Limits,
        allowed: Vec<AllowedUpstream>,
        kubernetes: Option<KubernetesTokens>,
        address: SocketAddr,
    ) -> Self {
        let (kept, cluster) = (allowed.clone(), kubernetes.clone());
        let tokens = token_files(dir.path());
        let root = dir.path().join("root");
        let settings = Settings {
            root,
            tokens,
            kubernetes,
            tls: None,
            limits: *limits,
            allowed_upstreams: allowed,
            keep: None,
        };
        let start = Instant::now();
        // A process that another test is just starting may hold the lock until it runs its program.
        let registry = loop {
            match Registry::open(settings.clone()) {
                Err(OpenError::InUse { .. }) if start.elapsed().as_secs() < 10 => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                opened => break opened.unwrap(),
            }
        };
        let metrics = registry.metrics();
        let listening = Listening::start(address, move |listener, stop| async move {
            registry.run(listener, stop.cancelled()).await.unwrap();
        });
        Self {
            address: listening.address,
            dir,
            limits: *limits,
            allowed: kept,
            kubernetes: cluster,
            listening,
            metrics,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A URL that carries a token, as git takes it.
    pub(crate) fn git_url(&self, token: &str, path: &str) -> String {
        format!("http://any:{token}@{}/{path}", self.address)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The value of a counter or gauge, all its labels together.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        let value =
            |m: &prometheus::proto::Metric| m.get_counter().get_value() + m.get_gauge().get_value();
        family.map_or(0, |family| {
            family.get_metric().iter().map(value).sum::<f64>() as u64
        })
    }
}

pub(crate) fn token_files(dir: &Path) -> TokenFiles {
    let file = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    TokenFiles {
        admin: file("admin", ADMIN),
        node: file("node", NODE),
        signing_key: file("key", KEY),
    }
}

pub(crate) fn token(namespace: &str, write: bool) -> String {
    let key = SigningKey::new(KEY.as_bytes()).unwrap();
    key.sign(&namespace.parse().unwrap(), write, Duration::from_mins(10))
}
