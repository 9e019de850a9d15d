//! A bare cluster of a test's own.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hyprstream_e2e::{Output, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::traces::{self, Namespaces};

const PAUSE: Duration = Duration::from_millis(10);
/// The base image, which `up --bare` puts on the nodes.
const IMAGE: &str = "docker.io/library/debian:bookworm-slim";

/// What a supervisor does, in its words and in this order, until it waits for the nodes.
const PHASES: [&str; 5] = [
    "makes cgroups and namespaces",
    "starts etcd and the API server",
    "starts controllers and DNS",
    "starts node-1",
    "starts the ingress",
];

/// A moment in the start of a cluster.
#[derive(Debug)]
pub(crate) enum Moment {
    /// The program of the supervisor lies there and is started next.
    SupervisorStarts,
    /// The supervisor says in its state that it does this, one of [`PHASES`].
    Phase(&'static str),
    /// `up` has said this.
    Says(&'static str),
}

/// A cluster that `cargo xtask up --bare` is starting or has started. What a failing test leaves
/// of it is ended when this is dropped.
pub(crate) struct Local {
    /// Of no other cluster on the machine: whatever names it is of this one.
    name: String,
    xtask: PathBuf,
    kubectl: PathBuf,
    root: PathBuf,
    log: PathBuf,
    up: Child,
    host_before: String,
    ports: Vec<u16>,
    namespaces: Namespaces,
}

impl Local {
    /// Begins to start one.
    pub(crate) fn up() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kill-{}-{count}", std::process::id());
        let var = |name: &str| {
            env::var_os(name).map(PathBuf::from).with_context(|| {
                format!("{name} is not set; the end-to-end tests are run by `cargo xtask test`")
            })
        };
        let xtask = var("HYPRSTREAM_E2E_XTASK")?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .canonicalize()?;
        let host_before = traces::host_network()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let log = env::temp_dir().join(format!("hyprstream-{name}.log"));
        let file = fs::File::create(&log)?;
        let up = Command::new(&xtask)
            .args(["up", "--bare", "--name", &name, "--port"])
            .arg(port.to_string())
            .env("CARGO_MANIFEST_DIR", root.join("xtask"))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", xtask.display()))?;
        Ok(Self {
            name,
            xtask,
            kubectl: var("HYPRSTREAM_E2E_KUBECTL")?,
            root,
            log,
            up,
            host_before,
            ports: vec![port],
            namespaces: Namespaces::default(),
        })
    }

    /// What `up` wrote.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a moment, or one after it, while `up` runs.
    pub(crate) fn wait_for(&mut self, moment: &Moment, patience: Duration) -> Result<()> {
        let started = Instant::now();
        while !self.has_come(moment) {
            if started.elapsed() > patience || self.up.try_wait()?.is_some() {
                bail!("{moment:?} did not come: {}", self.log());
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    fn has_come(&self, moment: &Moment) -> bool {
        match moment {
            Moment::SupervisorStarts => self.folder().join("xtask").exists(),
            Moment::Says(text) => self.log().contains(text),
            Moment::Phase(wanted) => {
                let state = self.json("state.json");
                let phase = state["phase"].as_str().unwrap_or_default();
                // Whatever else it says comes after these.
                let at = |phase| PHASES.iter().position(|p| *p == phase);
                !phase.is_empty() && at(phase).is_none_or(|now| Some(now) >= at(wanted))
            }
        }
    }

    /// Whether `up` ends well, which it must do soon.
    pub(crate) fn up_ends(&mut self, patience: Duration) -> Result<bool> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.up.try_wait()? {
                return Ok(status.success());
            }
            ensure!(started.elapsed() < patience, "`up` does not end");
            sleep(PAUSE);
        }
    }

    /// kill -9 of `up`.
    pub(crate) fn kill_up(&mut self) -> Result<()> {
        self.up.kill()?;
        self.up.wait().map(drop).context("wait for `up`")
    }

    /// kill -9 of the supervisor.
    pub(crate) fn kill_supervisor(&self) -> Result<()> {
        let pid = self.json("state.json")["supervisor"].as_i64();
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("there is no supervisor")?, Signal::KILL)
            .context("kill the supervisor")
    }

    /// Starts a pod and waits until it runs.
    pub(crate) fn run_pod(&self, patience: Duration) -> Result<()> {
        let kubectl = |args: &[&str]| {
            let mut command = Command::new(&self.kubectl);
            command.arg("--kubeconfig");
            command.arg(self.folder().join("kubeconfig")).args(args);
            command
        };
        let pod = [
            "run", "sleeper", "--image", IMAGE, "--", "sleep", "infinity",
        ];
        // The account of the namespace comes a moment after the namespace.
        let started = Instant::now();
        while let Err(error) = run(&mut kubectl(&pod)) {
            ensure!(started.elapsed() < patience, error);
            sleep(Duration::from_millis(200));
        }
        let limit = format!("--timeout={}s", patience.as_secs());
        run(&mut kubectl(&[
            "wait",
            "--for=condition=Ready",
            "pod/sleeper",
            &limit,
        ]))
        .map(drop)
    }

    /// Begins `down` and kills it after that time, unless it was faster.
    pub(crate) fn killed_down(&mut self, after: Duration) -> Result<()> {
        self.remember();
        let mut down = self
            .down()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(after);
        down.kill()?;
        down.wait().map(drop).context("wait for `down`")
    }

    /// Ends the cluster, looks for what is left, and fails if there is anything.
    pub(crate) fn down_leaves_nothing(mut self) -> Result<()> {
        self.remember();
        let output = Output::of(&mut self.down())?;
        let log = self.log();
        ensure!(
            output.success,
            "{}\n{}\n{log}",
            output.stdout,
            output.stderr
        );
        let left = self.traces();
        ensure!(left.is_empty(), "left:\n  {}\n{log}", left.join("\n  "));
        let host_after = traces::host_network()?;
        ensure!(
            host_after == self.host_before,
            "the network of the host was:\n{}\nand is:\n{host_after}",
            self.host_before
        );
        Ok(())
    }

    /// What of the cluster is on the machine, one line each.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut found = traces::named(&self.name);
        found.extend(self.namespaces.held());
        for path in [
            self.folder(),
            self.root.join(format!(".local/{}.lock", self.name)),
        ] {
            if path.exists() {
                found.push(path.display().to_string());
            }
        }
        for port in &self.ports {
            if TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_err() {
                found.push(format!("listener on port {port}"));
            }
        }
        found
    }

    /// Notes what has no name: namespaces and ports.
    fn remember(&mut self) {
        self.namespaces.collect(&self.name);
        let spec = self.json("spec.json");
        let ports = ["api_port", "registry_port"].map(|name| spec[name].as_u64());
        let ports = ports.into_iter().flatten();
        self.ports
            .extend(ports.filter_map(|port| u16::try_from(port).ok()));
    }

    fn folder(&self) -> PathBuf {
        self.root.join(".local").join(&self.name)
    }

    fn json(&self, name: &str) -> Value {
        let text = fs::read(self.folder().join(name)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn down(&self) -> Command {
        let mut command = Command::new(&self.xtask);
        command
            .args(["down", "--name", &self.name])
            .env("CARGO_MANIFEST_DIR", self.root.join("xtask"))
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.up.kill();
        let _ = self.up.wait();
        let _ = Output::of(&mut self.down());
        let _ = fs::remove_file(&self.log);
    }
}
