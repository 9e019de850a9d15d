//! A real Kubernetes on this machine, in namespaces of its own.
//!
//! One supervisor process holds a network namespace for the control plane and a network and a
//! mount namespace for every node, starts the upstream programs in them, restarts what ends, and
//! relays between them and the host. The host itself is not changed: there is no link, route,
//! firewall rule, mount or file of ours outside the namespaces, the cgroups of the cluster's
//! prefix and its folder below `.local`.

mod bootstrap;
mod certs;
mod cgroups;
mod config;
mod dns;
mod namespace;
mod relay;
mod runner;
mod state;
mod supervisor;
mod teardown;
mod volumes;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use self::{
    namespace::{HoldArgs, hold},
    state::State,
    supervisor::supervise,
    teardown::down,
};
use crate::{
    components,
    paths::{Cache, Checkout, remove_all, write_atomically},
    proc,
    ui::Step,
    versions,
};

/// Name of the cluster that `up` starts when none is given.
pub(crate) const DEFAULT_NAME: &str = "main";

/// Address of the control plane on the bridge.
const CONTROL_PLANE_IP: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// The bridge's network.
const BRIDGE_CIDR: &str = "10.89.0.0/16";
/// Addresses of pods; node N has 10.244.N.0/24.
const POD_CIDR: &str = "10.244.0.0/16";
/// Addresses of Services.
const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The Service of the API server.
const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The Service of the DNS server.
const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// A cluster by its name in one checkout, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    name: String,
    prefix: String,
    dir: PathBuf,
    checkout: Checkout,
    cache: Cache,
}

/// What a cluster is asked to be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Number of nodes.
    pub(crate) nodes: u8,
    /// Port of the ingress on 127.0.0.1.
    pub(crate) ingress_port: u16,
    /// See [`Spec::disk_mb`].
    pub(crate) disk_mb: Option<u32>,
}

/// What a cluster is made as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Number of nodes, 1 or more.
    pub(crate) nodes: u8,
    /// Port of the ingress on 127.0.0.1.
    pub(crate) ingress_port: u16,
    /// Port of the API server on 127.0.0.1.
    pub(crate) api_port: u16,
    /// Port of the in-cluster registry on 127.0.0.1.
    pub(crate) registry_port: u16,
    /// Size of the disks of the volumes and of each node plugin, which then lie in memory; without
    /// it they are folders on this machine's disk.
    #[serde(default)]
    pub(crate) disk_mb: Option<u32>,
}

impl Cluster {
    /// The cluster of that name; starts and changes nothing.
    pub(crate) fn open(checkout: &Checkout, cache: &Cache, name: &str) -> Result<Self> {
        if !is_name(name) {
            bail!("a cluster's name is 1 to 20 lower-case letters, digits and '-', not {name:?}");
        }
        let id = checkout_id(checkout);
        Ok(Self {
            name: name.to_owned(),
            prefix: format!("hs-{id}-{name}"),
            dir: checkout.join(".local").join(name),
            checkout: checkout.clone(),
            cache: cache.clone(),
        })
    }

    /// Names of all clusters of the checkout that have a folder.
    pub(crate) fn names(checkout: &Checkout) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(checkout.join(".local"))
            .into_iter()
            .flatten()
            .flatten()
            // Not the folder of a context, which has neither.
            .filter(|entry| {
                let dir = entry.path();
                dir.join("spec.json").exists() || dir.join("log").exists()
            })
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Names of all clusters of the checkout that have left any trace: a folder or processes.
    pub(crate) fn all(checkout: &Checkout) -> Result<Vec<String>> {
        let mut names = Self::names(checkout);
        let prefix = format!("hs-{}-", checkout_id(checkout));
        for group in cgroups::Hierarchies::find()?.tops(&prefix) {
            names.extend(group.strip_prefix(&prefix).map(str::to_owned));
        }
        names.sort();
        names.dedup();
        names.retain(|name| is_name(name));
        Ok(names)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Prefix of everything of it that has a name on the machine.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of its logs, one file per component.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its kubeconfig for the host, with the rights of an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        if self.name == DEFAULT_NAME {
            self.checkout.join(".local/kubeconfig")
        } else {
            self.dir.join("kubeconfig")
        }
    }

    /// `kubectl` on this cluster.
    pub(crate) fn kubectl(&self) -> Command {
        let mut command = Command::new(components::program(
            &self.cache,
            &versions::KUBERNETES,
            "kubectl",
        ));
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        proc::feed(
            self.kubectl()
                .args(["apply", "--server-side", "--force-conflicts", "-f", "-"]),
            manifests,
        )
        .map(drop)
    }

    /// The state that the supervisor wrote last.
    pub(crate) fn state(&self) -> Option<State> {
        State::read(&self.dir)
    }

    /// What it was started as.
    pub(crate) fn spec(&self) -> Option<Spec> {
        serde_json::from_slice(&fs::read(self.dir.join("spec.json")).ok()?).ok()
    }

    /// Whether a supervisor lives.
    pub(crate) fn is_supervised(&self) -> bool {
        let Ok(lock) = fs::File::open(self.dir.join("supervisor.lock")) else {
            return false;
        };
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// Takes the lock that keeps two `up` or `down` of this cluster from running at once.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        fs::create_dir_all(self.checkout.join(".local"))?;
        let path = self
            .checkout
            .join(".local")
            .join(format!("{}.lock", self.name));
        let file = fs::File::create(&path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another `cargo xtask up` or `down` of cluster {:?} is running (lock {}); \
                 wait for it or end it",
                self.name,
                path.display()
            );
        }
        Ok(file)
    }

    /// Gives the lock back and removes its file.
    pub(crate) fn unlock(&self, lock: fs::File) -> Result<()> {
        remove_all(
            &self
                .checkout
                .join(".local")
                .join(format!("{}.lock", self.name)),
        )?;
        drop(lock);
        // Only when nothing else is in it.
        let _ = fs::remove_dir(self.checkout.join(".local"));
        Ok(())
    }

    /// Kills every process of a program, on all nodes and in all pods or in one pod; returns how
    /// many.
    pub(crate) fn kill_program(&self, program: &str, pod_uid: Option<&str>) -> Result<usize> {
        let cgroups = cgroups::Hierarchies::find()?;
        let mut killed = 0;
        for pid in cgroups.processes(&self.prefix) {
            let in_pod = pod_uid.is_none_or(|uid| {
                fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|t| t.contains(uid))
            });
            if in_pod && crate::chaos::program_of(pid).as_deref() == Some(program) {
                killed += usize::from(cgroups::kill(pid));
            }
        }
        Ok(killed)
    }

    /// Kills one process of a program, which `choose` names among so many. `false` if none runs.
    pub(crate) fn kill_one(
        &self,
        program: &str,
        mut choose: impl FnMut(usize) -> usize,
    ) -> Result<bool> {
        let all = cgroups::Hierarchies::find()?.processes(&self.prefix);
        let all: Vec<_> = all
            .into_iter()
            .filter(|pid| crate::chaos::program_of(*pid).as_deref() == Some(program))
            .collect();
        Ok(!all.is_empty() && cgroups::kill(all[choose(all.len())]))
    }

    /// A program in the network and mount namespaces of a node, or with `node` 0 of the control
    /// plane.
    pub(crate) fn enter(&self, node: u8) -> Result<Command> {
        let state = self.state().context("the cluster is not running")?;
        let place = state
            .namespaces
            .get(&place_name(node))
            .with_context(|| format!("the cluster has no {}", place_name(node)))?;
        Ok(place.enter())
    }

    /// `ctr` on the images and containers of a node.
    pub(crate) fn ctr(&self, node: u8) -> Result<Command> {
        let mut command = self.enter(node)?;
        command
            .arg(components::program(
                &self.cache,
                &versions::CONTAINERD,
                "ctr",
            ))
            .args(["--namespace", "k8s.io"]);
        Ok(command)
    }

    /// Cuts a node off the network, or connects it again.
    pub(crate) fn set_node_link(&self, node: u8, up: bool) -> Result<()> {
        proc::output(self.enter(0)?.args([
            "ip",
            "link",
            "set",
            &node_name(node),
            if up { "up" } else { "down" },
        ]))
        .map(drop)
    }

    /// Starts the cluster, or adds nodes to a running one, and waits until its nodes are ready.
    /// The lock of [`Cluster::lock`] must be held.
    pub(crate) fn start(&self, wanted: &Wanted, step: &Step) -> Result<Spec> {
        fs::create_dir_all(self.logs())?;
        let running = self.is_supervised();
        if !running {
            teardown::end_processes(self)?;
            State::forget(&self.dir)?;
        }
        let spec = self.decide(wanted, running)?;
        write_atomically(
            &self.dir.join("spec.json"),
            serde_json::to_vec_pretty(&spec)?,
        )?;
        if !running {
            self.spawn_supervisor()?;
        }
        self.wait(&spec, step)?;
        Ok(spec)
    }

    fn decide(&self, wanted: &Wanted, running: bool) -> Result<Spec> {
        let (nodes, port, disk_mb) = (wanted.nodes, wanted.ingress_port, wanted.disk_mb);
        if !(1..=9).contains(&nodes) {
            bail!("a cluster has 1 to 9 nodes, not {nodes}");
        }
        let old = self.spec();
        if let Some(old) = &old
            && running
        {
            if old.nodes > nodes {
                bail!(
                    "cluster {:?} runs with {} nodes; `cargo xtask down` first to have {nodes}",
                    self.name,
                    old.nodes
                );
            }
            if old.ingress_port != port {
                bail!(
                    "cluster {:?} runs with its ingress on port {}; `cargo xtask down` first",
                    self.name,
                    old.ingress_port
                );
            }
            return Ok(Spec {
                nodes,
                ..old.clone()
            });
        }
        if let Some(old) = &old
            && old.nodes > nodes
        {
            bail!(
                "cluster {:?} was made with {} nodes; `cargo xtask down` first to have {nodes}",
                self.name,
                old.nodes
            );
        }
        if !is_free(port) {
            bail!(
                "port {port} of 127.0.0.1, where the ingress shall answer, is taken; \
                 end what listens there (`ss -ltnp 'sport = :{port}'`) or choose another with --port"
            );
        }
        let keep = |port: Option<u16>, not: &[u16]| {
            port.filter(|p| is_free(*p) && !not.contains(p))
                .map_or_else(free_port, Ok)
        };
        let api_port = keep(old.as_ref().map(|o| o.api_port), &[port])?;
        let beside = old
            .as_ref()
            .map_or(port.checked_add(1), |o| Some(o.registry_port));
        let registry_port = keep(beside, &[port, api_port])?;
        Ok(Spec {
            nodes,
            ingress_port: port,
            api_port,
            registry_port,
            disk_mb,
        })
    }

    fn spawn_supervisor(&self) -> Result<()> {
        // A copy, because a later build replaces the file while the supervisor still starts it.
        let copy = self.dir.join("xtask");
        let aside = self.dir.join("xtask.new");
        fs::copy(std::env::current_exe()?, &aside)?;
        fs::rename(&aside, &copy)?;
        let log = self.logs().join("supervisor.log");
        remove_all(&log)?;
        let log = proc::open_log(&log)?;
        // In mounts of its own, so that what it mounts for the nodes is not seen by the host.
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(&copy)
            .args(["supervise", "--name", &self.name])
            .env("CARGO_MANIFEST_DIR", self.checkout.join("xtask"))
            .env("HYPRSTREAM_CACHE", self.cache.root())
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the supervisor")?;
        Ok(())
    }

    fn wait(&self, spec: &Spec, step: &Step) -> Result<()> {
        let started = Instant::now();
        let limit = Duration::from_mins(3);
        let log = self.logs().join("supervisor.log");
        loop {
            let state = self.state();
            if let Some(state) = &state {
                if let Some(error) = &state.error {
                    bail!(
                        "the cluster did not start: {error}\n{}",
                        proc::tail_of(&log)
                    );
                }
                if state.ready_nodes >= spec.nodes && state.ready {
                    return Ok(());
                }
            }
            let phase = state
                .as_ref()
                .map_or("supervisor starts", |s| s.phase.as_str());
            step.amount(phase);
            if started.elapsed() > Duration::from_secs(5) && !self.is_supervised() {
                bail!("the supervisor ended\n{}", proc::tail_of(&log));
            }
            if started.elapsed() > limit {
                let failing = state.as_ref().map(State::failing).unwrap_or_default();
                bail!(
                    "the cluster is not ready after {} s ({phase}){failing}\n    logs: {}\n    \
                     `cargo xtask up` tries again, `cargo xtask down` begins anew",
                    limit.as_secs(),
                    self.logs().display()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=20).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Six digits that tell this checkout from others on the machine.
fn checkout_id(checkout: &Checkout) -> String {
    let mut hash = Sha256::new();
    hash.update(checkout.root().as_os_str().as_encoded_bytes());
    hex::encode(&hash.finalize()[..3])
}

/// Name of a node.
pub(crate) fn node_name(node: u8) -> String {
    format!("node-{node}")
}

/// Name of a place: a node, or with 0 the control plane.
fn place_name(node: u8) -> String {
    if node == 0 {
        "control-plane".to_owned()
    } else {
        node_name(node)
    }
}

fn node_ip(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, 10 + node)
}

fn pod_cidr(node: u8) -> String {
    format!("10.244.{node}.0/24")
}

fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).is_ok()
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
