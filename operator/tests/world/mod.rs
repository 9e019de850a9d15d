//! A cluster, a registry and an operator in one process.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]
#![allow(missing_docs, reason = "names say it")]

pub mod cluster;
pub mod kubelet;
pub mod registry;
pub mod workers;

use std::{
    fmt::Write,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use hyprstream_api::{AdapterStatus, ModelStatus, TrainingJobStatus};
use hyprstream_operator::{
    adapter::workers::Asking,
    args::{Images, PullPolicy},
    metrics::Metrics,
    policy::{MasterKey, Policy, WorkerTls},
    ready::Readiness,
    registry::Registry,
    run::Operator,
    source::Pace,
};
use hyprstream_tls::{Authority, Trust};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{
    cluster::Cluster,
    kubelet::{Fate, Fates},
    registry::FakeRegistry,
    workers::Workers,
};

pub const MODELS: &str = "hyprstream.io/v1alpha1/models";
pub const ADAPTERS: &str = "hyprstream.io/v1alpha1/adapters";
pub const TRAININGS: &str = "hyprstream.io/v1alpha1/trainingjobs";
pub const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
pub const C: &str = "cccccccccccccccccccccccccccccccccccccccc";
/// What workers' keys are made from.
pub const MASTER_KEY: &str = "0123456789abcdef0123456789abcdef";
/// The repository that tests push to.
pub const URL: &str = "hyprstream://ns/m";

/// How long a test waits for what must come. Machines that build are slow.
const PATIENCE: Duration = Duration::from_mins(1);

pub struct World {
    pub cluster: Cluster,
    pub registry: FakeRegistry,
    pub workers: Workers,
    pub fates: Fates,
    /// Image of the workers, from the operator's next start on.
    pub image: String,
    /// How many Models a release changes at a time, from the operator's next start on.
    pub rollouts_at_once: usize,
    /// Whether workers speak TLS, from the operator's next start on.
    pub worker_tls: WorkerTls,
    /// Who signs certificates of workers.
    pub signer: watch::Sender<Option<Authority>>,
    /// Whom the operator believes.
    pub trust: Trust,
    client: Client,
    remote: Registry,
    operator: Option<(JoinHandle<()>, CancellationToken)>,
    kubelet: JoinHandle<()>,
    _token: tempfile::NamedTempFile,
    master_key: tempfile::NamedTempFile,
    pub readiness: Readiness,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kubelet.abort();
        if let Some((task, _)) = &self.operator {
            task.abort();
        }
    }
}

impl World {
    /// Everything runs, and there is no Model.
    pub async fn new() -> Self {
        Self::speaking(WorkerTls::Off).await
    }

    /// The same where workers speak that.
    pub async fn speaking(worker_tls: WorkerTls) -> Self {
        let cluster = Cluster::new();
        let registry = FakeRegistry::default();
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "t\n").unwrap();
        let master_key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(master_key.path(), MASTER_KEY).unwrap();
        let url: http::Uri = cluster.serve().await.parse().unwrap();
        let client = Client::try_from(Config::new(url)).unwrap();
        let remote = Registry::new(
            registry.serve().await,
            token.path().to_owned(),
            &Trust::nobody(),
        )
        .unwrap();
        let fates = Fates::default();
        let workers = Workers::new(registry.clone());
        let kubelet = kubelet::run(cluster.clone(), fates.clone(), workers.clone());
        let kubelet = tokio::spawn(kubelet);
        let mut world = Self {
            cluster,
            registry,
            workers,
            fates,
            image: "worker:1".into(),
            rollouts_at_once: 4,
            worker_tls,
            signer: watch::Sender::new(None),
            trust: Trust::shared(),
            client,
            remote,
            operator: None,
            kubelet,
            _token: token,
            master_key,
            readiness: Readiness::default(),
        };
        world.sign_anew();
        world.start();
        world
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn start(&mut self) {
        let operator = Operator {
            client: self.client.clone(),
            registry: self.remote.clone(),
            registry_url: "http://registry".to_owned(),
            images: Images {
                cpu: self.image.clone(),
                cuda: None,
                rocm: None,
                pull_policy: PullPolicy::IfNotPresent,
            },
            rollouts_at_once: self.rollouts_at_once,
            policy: Policy {
                insecure_hosts: vec!["plain.example.org".into()],
                keys: MasterKey::open(self.master_key.path().to_owned()).unwrap(),
                worker_tls: self.worker_tls,
            },
            namespaces: vec![],
            signer: Some((self.signer.subscribe(), self.trust.clone())),
            certificates: None,
            instance: "test".into(),
            metrics: Metrics::new().unwrap(),
            pace: Pace {
                first_pause: Duration::from_millis(100),
                last_pause: Duration::from_millis(300),
                secret: Duration::from_millis(50),
                poll: Duration::from_millis(30),
                report: Duration::from_millis(30),
                key: Duration::from_millis(50),
                silence: Duration::from_millis(100),
            },
            asking: Asking {
                port: self.workers.port,
                tls_port: self.workers.tls_port,
                patience: Duration::from_millis(500),
                at_first: Duration::from_millis(20),
                first: Duration::from_millis(500),
                unsettled: Duration::from_millis(50),
                settled: Duration::from_millis(500),
            },
            readiness: self.readiness.clone(),
        };
        let token = CancellationToken::new();
        self.operator = Some((tokio::spawn(operator.run(token.clone())), token));
    }

    /// Another authority signs from now on, and is believed alone.
    pub fn sign_anew(&self) {
        let life = Duration::from_hours(400 * 24);
        let new = Authority::generate("test", SystemTime::now(), life).unwrap();
        self.trust.set(&new.issued().certificate).unwrap();
        self.signer.send_replace(Some(new));
    }

    /// As kill -9 does.
    pub fn kill_operator(&mut self) {
        if let Some((task, _)) = self.operator.take() {
            task.abort();
        }
    }

    pub fn change_master_key(&self, master: &str) {
        std::fs::write(self.master_key.path(), master).unwrap();
    }

    pub fn fate(&self, commit: &str, fate: Fate) {
        self.fates.lock().unwrap().insert(commit.to_owned(), fate);
    }

    /// Another release of the operator takes over, with another image of the workers.
    pub fn upgrade(&mut self, image: &str) {
        self.kill_operator();
        image.clone_into(&mut self.image);
        self.start();
    }

    /// As `kubectl delete pvc` does: the claim is there for as long as a pod mounts it.
    pub fn delete_claim(&self, name: &str) {
        self.cluster.change(kubelet::CLAIMS, "ns", name, |claim| {
            claim["metadata"]["deletionTimestamp"] =
                json!(k8s_openapi::jiff::Timestamp::now().to_string());
        });
    }

    /// Names of the claims of a commit.
    pub fn claims_of(&self, commit: &str) -> Vec<String> {
        let claims = self.cluster.list(kubelet::CLAIMS);
        claims
            .iter()
            .filter(|c| c["metadata"]["labels"]["hyprstream.io/commit"] == commit)
            .filter_map(|c| c["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    }

    /// The claims or volumes that show commits.
    pub fn of_commits(&self, resource: &str) -> Vec<Value> {
        let mut objects = self.cluster.list(resource);
        objects.retain(|o| o["metadata"]["labels"]["hyprstream.io/commit"].is_string());
        objects
    }

    pub fn apply_model(&self, name: &str, spec: &Value) {
        let model = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": name, "namespace": "ns"}, "spec": spec,
        });
        self.cluster.put(MODELS, model);
    }

    /// An Adapter of the Model `m`, at `path` of its repository.
    pub fn apply_adapter(&self, name: &str, path: &str) {
        self.apply_adapter_of(
            name,
            &json!({"modelRef": {"name": "m"}, "source": {"path": path}}),
        );
    }

    pub fn apply_adapter_of(&self, name: &str, spec: &Value) {
        let adapter = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
            "metadata": {"name": name, "namespace": "ns"}, "spec": spec,
        });
        self.cluster.put(ADAPTERS, adapter);
    }

    pub fn apply_training(&self, name: &str, labels: &Value, spec: &Value) {
        let job = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": "ns", "labels": labels}, "spec": spec,
        });
        self.cluster.put(TRAININGS, job);
    }

    pub fn training(&self, name: &str) -> TrainingJobStatus {
        let job = self.cluster.get(TRAININGS, "ns", name).unwrap_or_default();
        serde_json::from_value(job["status"].clone()).unwrap_or_default()
    }

    pub fn adapter(&self, name: &str) -> AdapterStatus {
        let adapter = self.cluster.get(ADAPTERS, "ns", name).unwrap_or_default();
        serde_json::from_value(adapter["status"].clone()).unwrap_or_default()
    }

    /// Waits until a condition of an Adapter has a reason.
    #[track_caller]
    pub fn because<'a>(
        &'a self,
        name: &'a str,
        kind: &'a str,
        reason: &'a str,
    ) -> impl Future<Output = ()> + 'a {
        self.until(name, kind, reason, |name| self.adapter(name).conditions)
    }

    /// Waits until all workers answer with a commit of an Adapter.
    pub async fn loaded(&self, name: &str, commit: &str) {
        let is = || {
            let status = self.adapter(name);
            status.commit.as_deref() == Some(commit)
                && status.is_true("Loaded")
                && status.is_true("Ready")
        };
        self.wait(&format!("{name} is loaded at {commit}"), is)
            .await;
    }

    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.cluster.change(MODELS, "ns", name, change);
    }

    pub fn status(&self, name: &str) -> ModelStatus {
        let model = self.cluster.get(MODELS, "ns", name).unwrap_or_default();
        serde_json::from_value(model["status"].clone()).unwrap_or_default()
    }

    /// Waits until a condition has a reason.
    #[track_caller]
    pub fn reason<'a>(
        &'a self,
        name: &'a str,
        kind: &'a str,
        reason: &'a str,
    ) -> impl Future<Output = ()> + 'a {
        self.until(name, kind, reason, |name| self.status(name).conditions)
    }

    /// Waits until one of an object's conditions has a reason.
    #[track_caller]
    fn until<'a>(
        &'a self,
        name: &'a str,
        kind: &'a str,
        reason: &'a str,
        conditions: impl Fn(&str) -> Vec<Condition> + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let is = || {
                let all = conditions(name);
                all.iter().any(|c| c.type_ == kind && c.reason == reason)
            };
            let what = format!("{kind} of {name} has reason {reason} ({caller})");
            self.wait(&what, is).await;
        }
    }

    /// Waits until a Model serves a commit with all workers, and nothing is left to do, neither for
    /// the operator nor for Kubernetes: a worker of before that is still there would be at once
    /// what a test waits for later.
    pub async fn settled(&self, name: &str, commit: &str) {
        let is = || {
            let status = self.status(name);
            status.commit.as_deref() == Some(commit)
                && status.is_true("Ready")
                && status
                    .condition("Progressing")
                    .is_some_and(|c| c.reason == "UpToDate")
                && !self.cluster.list(kubelet::PODS).iter().any(|pod| {
                    let labels = &pod["metadata"]["labels"];
                    labels["hyprstream.io/model"] == name
                        && labels["hyprstream.io/commit"] != commit
                })
        };
        self.wait(&format!("{name} serves {commit}"), is).await;
    }

    pub async fn wait(&self, what: &str, is: impl Fn() -> bool) {
        let begun = tokio::time::Instant::now();
        while !is() {
            assert!(
                begun.elapsed() <= PATIENCE,
                "never: {what}\n{}",
                self.summary()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What went on, for a test that failed.
    fn summary(&self) -> String {
        let mut text = String::new();
        let adapters = self.cluster.list(ADAPTERS);
        for model in self.cluster.list(MODELS).iter().chain(&adapters) {
            let status = &model["status"];
            let _ = writeln!(
                text,
                "{} commit {}",
                model["metadata"]["name"], status["commit"]
            );
            for condition in status["conditions"].as_array().into_iter().flatten() {
                let Value::Object(c) = condition else {
                    continue;
                };
                let _ = writeln!(
                    text,
                    "  {} {} {} {}",
                    c["type"], c["status"], c["reason"], c["message"]
                );
            }
        }
        for claim in self.cluster.list(kubelet::CLAIMS) {
            let (meta, status) = (&claim["metadata"], &claim["status"]);
            let _ = writeln!(text, "claim {} {} {status}", meta["name"], meta["labels"]);
        }
        for pod in self.cluster.list(kubelet::PODS) {
            let meta = &pod["metadata"];
            let _ = writeln!(text, "pod {} {}", meta["name"], pod["spec"]["volumes"]);
        }
        let writes = self.cluster.writes();
        let last = writes.len().saturating_sub(30);
        let _ = writeln!(text, "{}", writes[last..].join("\n"));
        text.chars().take(12_000).collect()
    }

    /// Waits until nothing is written any more, and returns how many writes there were in all.
    pub async fn quiet(&self) -> usize {
        let last = AtomicUsize::new(usize::MAX);
        loop {
            let now = self.cluster.writes().len();
            if last.swap(now, Ordering::Relaxed) == now {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
}

/// A spec that names [`URL`].
pub fn spec() -> Value {
    json!({
        "source": {"url": URL, "ref": {"branch": "main"}, "interval": "1h"},
        "rollout": {"maxSurge": 1, "maxUnavailable": 0, "progressDeadlineSeconds": 600},
        "replicas": 1,
    })
}
