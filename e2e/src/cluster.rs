//! The cluster.

use std::{
    env,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::{Namespace, Output, run};

/// Seconds for which a container has run whose readiness a new kubelet takes over: ten, and some.
const SETTLED: i64 = 15;
/// Starts of a container after its first that another kill may follow without a long wait.
const WORN: u64 = 1;

/// A running cluster with the chart installed.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// URL of the ingress, without a slash at its end.
    pub ingress: String,
    /// URL of the registry as the host reaches it.
    pub registry: String,
    /// Password for pushes to the registry.
    pub registry_token: String,
    /// File with the authorities by which the registry is trusted, as git finds it in
    /// `GIT_SSL_CAINFO`.
    pub registry_ca: PathBuf,
    /// Namespace of the release.
    pub system: String,
    /// Name of the cluster, for `xtask`.
    pub name: String,
    kubectl: String,
    xtask: String,
}

impl Cluster {
    /// The cluster that the environment names: `KUBECONFIG`, `HYPRSTREAM_E2E_KUBECTL`,
    /// `HYPRSTREAM_E2E_XTASK`, `HYPRSTREAM_E2E_NAME`, `HYPRSTREAM_E2E_INGRESS`,
    /// `HYPRSTREAM_E2E_REGISTRY`.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| {
            env::var(name).with_context(|| {
                format!("{name} is not set; the end-to-end tests are run by `cargo xtask test`")
            })
        };
        var("KUBECONFIG")?;
        let mut cluster = Self {
            ingress: var("HYPRSTREAM_E2E_INGRESS")?,
            registry: var("HYPRSTREAM_E2E_REGISTRY")?,
            registry_token: String::new(),
            registry_ca: var("GIT_SSL_CAINFO")?.into(),
            system: "hyprstream-system".to_owned(),
            name: var("HYPRSTREAM_E2E_NAME")?,
            kubectl: var("HYPRSTREAM_E2E_KUBECTL")?,
            xtask: var("HYPRSTREAM_E2E_XTASK")?,
        };
        cluster.registry_token = cluster.secret("hyprstream-registry-keys", "admin-token")?;
        cluster.write_ca()?;
        Ok(cluster)
    }

    /// Writes the file of [`registry_ca`](Self::registry_ca) as the cluster has it now.
    pub fn write_ca(&self) -> Result<()> {
        if !self.registry.starts_with("https://") {
            return Ok(());
        }
        let path = "jsonpath={.data.ca\\.crt}";
        let get = [
            "-n",
            &self.system,
            "get",
            "configmap",
            "hyprstream-trust",
            "-o",
            path,
        ];
        let bundle = self.kubectl(&get)?;
        // Whoever reads it meanwhile finds the one or the other.
        let aside = self.registry_ca.with_extension("tmp");
        std::fs::write(&aside, bundle)?;
        std::fs::rename(&aside, &self.registry_ca).context("write the registry's authorities")
    }

    /// An HTTP client that trusts the registry, and nobody else, with answers of every status.
    pub fn registry_agent(&self) -> Result<ureq::Agent> {
        let bundle = if self.registry.starts_with("https://") {
            std::fs::read(&self.registry_ca).context("read the registry's authorities")?
        } else {
            Vec::new()
        };
        Ok(Self::agent_that_trusts(&bundle))
    }

    /// The same by a bundle of authorities (PEM).
    pub fn agent_that_trusts(bundle: &[u8]) -> ureq::Agent {
        let roots = parse_pem(bundle).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let roots = RootCerts::Specific(Arc::new(roots.collect()));
        ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(5)))
            .proxy(None)
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into()
    }

    fn secret(&self, name: &str, key: &str) -> Result<String> {
        let template = format!("go-template={{{{index .data {key:?} | base64decode}}}}");
        self.kubectl(&["-n", &self.system, "get", "secret", name, "-o", &template])
    }

    /// A kubectl command, not yet run.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Standard output of kubectl, which must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(arguments))
    }

    /// Whatever kubectl printed.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        Output::of(&mut self.kubectl_command(arguments))
    }

    /// One object or list as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("read kubectl's JSON")
    }

    /// `kubectl apply -f -`, whatever came of it.
    pub fn try_apply(&self, manifest: &str) -> Result<Output> {
        let mut child = Command::new(&self.kubectl)
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        child
            .stdin
            .take()
            .context("stdin")?
            .write_all(manifest.as_bytes())?;
        let done = child.wait_with_output()?;
        Ok(Output {
            success: done.status.success(),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// `kubectl apply -f -`, which must succeed.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let output = self.try_apply(manifest)?;
        if output.success {
            Ok(())
        } else {
            bail!("kubectl apply: {}", output.stderr)
        }
    }

    /// Standard output of one of xtask's commands on this cluster.
    pub fn xtask(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(&self.xtask)
            .args(arguments)
            .args(["--name", &self.name]))
    }

    /// A namespace that no other test has; deleted when dropped.
    pub fn namespace(&self, hint: &str) -> Result<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{hint}-{}-{number}", std::process::id());
        self.kubectl(&["create", "namespace", &name])?;
        self.kubectl(&[
            "label",
            "namespace",
            &name,
            "pod-security.kubernetes.io/enforce=restricted",
        ])?;
        Ok(Namespace::new(self.clone(), name))
    }

    /// Value of a metric of a program of the release: the sum over the samples whose line starts
    /// with `metric` and holds every one of `labels`.
    pub fn metric(&self, pod: &str, port: u16, metric: &str, labels: &[&str]) -> Result<f64> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{pod}:{port}/proxy/metrics",
            self.system
        );
        let text = self.kubectl(&["get", "--raw", &path])?;
        Ok(text
            .lines()
            .filter(|line| line.starts_with(metric) && labels.iter().all(|l| line.contains(l)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Waits until every pod of the release is ready and its containers have run for a while: a
    /// kubelet that starts anew takes those of the last ten seconds for not ready until it has asked
    /// them, and the ingress has nobody left meanwhile. Pods in which something was killed time and
    /// again are replaced before, since the kubelet lets it wait twice as long each time, for minutes
    /// in the end.
    pub fn wait_settled(&self, limit: Duration) -> Result<()> {
        self.replace_worn(limit)?;
        self.wait_whole(limit)?;
        wait_until(limit, || {
            let list = self.get(&["-n", &self.system, "pods"])?;
            let pods = list["items"].as_array().into_iter().flatten();
            let containers = pods.flat_map(|pod| {
                let statuses = pod["status"]["containerStatuses"].as_array();
                statuses.into_iter().flatten()
            });
            let now = jiff::Timestamp::now();
            let settled = |status: &Value| {
                let started = &status["state"]["running"]["startedAt"];
                // What does not run any more has ended well, or it would not count as whole.
                started.as_str().is_none_or(|started| {
                    let started = started.parse::<jiff::Timestamp>();
                    started.is_ok_and(|started| now.duration_since(started).as_secs() >= SETTLED)
                })
            };
            Ok(containers.into_iter().all(settled).then_some(()))
        })
    }

    fn replace_worn(&self, limit: Duration) -> Result<()> {
        let list = self.get(&["-n", &self.system, "pods"])?;
        let pods = list["items"].as_array().into_iter().flatten();
        let worn = pods.filter(|pod| {
            let statuses = pod["status"]["containerStatuses"].as_array();
            let mut statuses = statuses.into_iter().flatten();
            statuses.any(|status| status["restartCount"].as_u64() > Some(WORN))
        });
        let worn: Vec<_> = worn
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        if worn.is_empty() {
            return Ok(());
        }
        let timeout = format!("--timeout={}s", limit.as_secs());
        let delete = ["-n", &self.system, "delete", "pod", &timeout];
        self.kubectl(&[&delete[..], &worn].concat()).map(drop)
    }

    /// Kills every process of a program, as soon as there is one: the kubelet may be about to start
    /// it again.
    pub fn kill(&self, program: &str, limit: Duration) -> Result<()> {
        wait_until(limit, || self.xtask(&["chaos", "kill", program]).map(Some)).map(drop)
    }

    /// Replaces every pod of the release, and waits until all are ready.
    pub fn renew(&self, limit: Duration) -> Result<()> {
        let system = ["--namespace", self.system.as_str()];
        self.kubectl(&[&["rollout", "restart", "deployment,daemonset"], &system[..]].concat())?;
        for kind in ["deployment", "daemonset"] {
            let seconds = format!("--timeout={}s", limit.as_secs());
            self.kubectl(&[&["rollout", "status", kind, &seconds], &system[..]].concat())?;
        }
        self.wait_whole(limit)
    }

    /// Waits until every pod of the release is ready: the kubelet waits longer and longer before it
    /// starts again what was killed.
    pub fn wait_whole(&self, limit: Duration) -> Result<()> {
        wait_until(limit, || {
            let list = self.get(&["-n", &self.system, "pods"])?;
            let whole = list["items"].as_array().into_iter().flatten().all(|pod| {
                pod["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|condition| {
                        condition["type"] == "Ready"
                            && (condition["status"] == "True"
                                || condition["reason"] == "PodCompleted")
                    })
            });
            Ok(whole.then_some(()))
        })
        .context("a pod of the release is not ready")
    }

    /// Waits until the registry answers on the host's port. It is on its way from one pod to the
    /// next after whatever restarts it, and what a test pushes then fails.
    pub fn wait_registry(&self, limit: Duration) -> Result<()> {
        let agent = self.registry_agent()?;
        let url = format!("{}/healthz", self.registry);
        wait_until(limit, || {
            let answer = agent.get(&url).call().context("ask the registry")?;
            Ok(answer.status().is_success().then_some(()))
        })
    }

    /// Names of the running pods of a component of the release.
    pub fn pods(&self, component: &str) -> Result<Vec<String>> {
        let selector = format!("app.kubernetes.io/component={component}");
        let list = self.get(&["-n", &self.system, "pods", "-l", &selector])?;
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }
}

/// Asks until there is an answer. Errors of single attempts are kept for the message: a cluster
/// that is being hurt may fail to answer.
pub fn wait_until<T>(limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            return match last {
                Some(error) => Err(error.context(format!("gave up after {limit:?}"))),
                None => bail!("gave up after {limit:?}"),
            };
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
