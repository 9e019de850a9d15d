//! Runs every test of the project.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::{self, Cluster},
    codegen, components, deps, libtorch,
    paths::{Cache, Checkout},
    proc,
    suites::{self, SuitesArgs},
    ui::Step,
    up::{Up, UpArgs},
    versions::{CSI_SANITY, HELM, KUBERNETES},
    weights,
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Leaves out what needs a cluster.
    #[arg(long)]
    pub(crate) fast: bool,
    /// Only the end-to-end tests.
    #[arg(long, conflicts_with = "fast")]
    pub(crate) e2e: bool,
    /// Leaves the cluster of the end-to-end tests running, to look at.
    #[arg(long, conflicts_with = "fast")]
    pub(crate) keep: bool,
    /// Only the end-to-end tests whose name holds this.
    #[arg(requires = "e2e")]
    pub(crate) filter: Option<String>,
}

/// Name of the cluster of the end-to-end tests, and of the one that `measure` makes.
const CLUSTER_NAME: &str = "e2e";
/// Its nodes: losing one needs another.
const NODES: u8 = 2;
/// Size of its disks in megabytes.
const DISK_MB: u32 = 1536;

/// Runs the suites in order and stops at the first that fails.
pub(crate) fn run(checkout: &Checkout, cache: &Cache, args: &TestArgs) -> Result<()> {
    let suites = Suites {
        checkout,
        cache,
        started: Instant::now(),
    };
    if !args.e2e {
        suites.fast()?;
    }
    if !args.fast && !args.e2e {
        suites.say("clients against a running worker");
        suites::run(checkout, cache, &SuitesArgs::default())?;
    }
    if !args.fast {
        suites.end_to_end(args)?;
    }
    println!(
        "\nAll passed after {:.0} s.",
        suites.started.elapsed().as_secs_f64()
    );
    Ok(())
}

struct Suites<'a> {
    checkout: &'a Checkout,
    cache: &'a Cache,
    started: Instant,
}

impl Suites<'_> {
    fn say(&self, what: &str) {
        println!(
            "\n== {what} ({:.0} s)",
            self.started.elapsed().as_secs_f64()
        );
    }

    fn fast(&self) -> Result<()> {
        let step = Step::new("what the machine must have".to_owned());
        let needed = [&CSI_SANITY, &HELM];
        let needs_go = !components::missing(self.cache, &needed).is_empty();
        deps::ensure(self.cache, needs_go, &step)?;
        let log = self.cache.join("log/components.log");
        components::ensure(self.checkout, self.cache, &needed, &log, &step)?;
        let libtorch = libtorch::ensure(self.cache.root())?;
        let log = self.cache.join("log/sample.log");
        let smollm2 = weights::ensure_smollm2(self.cache, &log, &step)?;
        let gemma3 = weights::ensure_gemma3(self.cache, &log, &step)?;
        step.done("");

        self.say("format and generated files");
        shown(self.cargo().args(["fmt", "--all", "--check"]))
            .context("run `cargo fmt --all` (rustup component add rustfmt)")?;
        codegen::run(self.checkout, true)?;
        self.say("the chart renders with every set of values");
        self.chart()?;
        self.say("unit, property and integration tests");
        // The sizes of test threads: the integration tests start servers and programs of their own.
        shown(
            self.cargo()
                .args(["test", "--release", "--locked", "--workspace"])
                .args([
                    "--exclude",
                    "hyprstream-torch",
                    "--exclude",
                    "hyprstream-e2e",
                ])
                .env(
                    "HYPRSTREAM_CSI_SANITY",
                    components::program(self.cache, &CSI_SANITY, "csi-sanity"),
                ),
        )?;
        self.say("golden tests against transformers");
        shown(
            self.cargo()
                .args(["test", "--release", "--locked"])
                .args([
                    "--package",
                    "hyprstream-torch",
                    "--package",
                    "hyprstream-worker",
                ])
                .args(["--features", "hyprstream-worker/torch"])
                .env("LIBTORCH", &libtorch)
                .env("LD_LIBRARY_PATH", libtorch.join("lib"))
                .env("HYPRSTREAM_SMOLLM2", &smollm2)
                .env("HYPRSTREAM_GEMMA3", &gemma3),
        )?;
        Ok(())
    }

    fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(self.checkout.root())
            .env_remove("CARGO_MANIFEST_DIR");
        cargo
    }

    fn chart(&self) -> Result<()> {
        let chart = self.checkout.join("charts/hyprstream");
        let mut values: Vec<PathBuf> = std::fs::read_dir(chart.join("ci"))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
            .collect();
        values.sort();
        if values.is_empty() {
            bail!("there are no values in {}", chart.join("ci").display());
        }
        for file in values {
            let helm = || Command::new(components::program(self.cache, &HELM, "helm"));
            proc::output(
                helm()
                    .args(["lint", "--strict"])
                    .arg(&chart)
                    .arg("-f")
                    .arg(&file),
            )
            .with_context(|| format!("the chart with {}", file.display()))?;
            let text = proc::output(
                helm()
                    .args(["template", "x"])
                    .arg(&chart)
                    .arg("-f")
                    .arg(&file),
            )?;
            println!(
                "{}: {} objects",
                file.display(),
                text.matches("\nkind: ").count()
            );
        }
        Ok(())
    }

    fn end_to_end(&self, args: &TestArgs) -> Result<()> {
        self.say("a cluster for the end-to-end tests");
        let python = self.python()?;
        let cluster = Cluster::open(self.checkout, self.cache, CLUSTER_NAME)?;
        let running = cluster.is_supervised();
        if !running {
            // What an earlier run left is worth nothing: its disks were in memory.
            let lock = cluster.lock()?;
            cluster::down(&cluster)?;
            cluster.unlock(lock)?;
        }
        let result = self.on_cluster(&cluster, &python, args);
        if args.keep {
            println!(
                "\nThe cluster stays: export KUBECONFIG={}",
                cluster.kubeconfig().display()
            );
            println!("cargo xtask down --name {CLUSTER_NAME}");
            return result;
        }
        if let Err(error) = &result {
            eprintln!("\nfailed: {error:#}");
            self.keep_logs(&cluster);
        }
        if running {
            println!("\nThe cluster ran before and stays.");
            return result;
        }
        self.say("the cluster ends");
        let lock = cluster.lock()?;
        let (ended, left) = cluster::down(&cluster)?;
        println!("{ended} processes ended");
        cluster.unlock(lock)?;
        if !left.is_empty() {
            bail!("`down` left these:\n  {}", left.join("\n  "));
        }
        result
    }

    fn on_cluster(&self, cluster: &Cluster, python: &Path, args: &TestArgs) -> Result<()> {
        let port = match cluster.spec() {
            Some(spec) => spec.ingress_port,
            None => std::net::TcpListener::bind(("127.0.0.1", 0))?
                .local_addr()?
                .port(),
        };
        let up = UpArgs {
            nodes: NODES,
            port,
            name: CLUSTER_NAME.to_owned(),
            context: None,
            image_registry: None,
            set: Vec::new(),
            bare: false,
            no_build: false,
            no_sample: false,
            small_disks: Some(DISK_MB),
        };
        Up {
            checkout: self.checkout,
            cache: self.cache,
            args: &up,
        }
        .run()?;
        let spec = cluster.spec().context("the cluster is not running")?;
        self.say("end-to-end tests");
        let mut cargo = self.cargo();
        cargo.args([
            "test",
            "--release",
            "--locked",
            "--package",
            "hyprstream-e2e",
            "--test",
            "e2e",
            "--",
        ]);
        cargo.args(["--test-threads=1"]).args(&args.filter);
        shown(
            cargo
                .env("KUBECONFIG", cluster.kubeconfig())
                .env("HYPRSTREAM_E2E_NAME", CLUSTER_NAME)
                .env(
                    "HYPRSTREAM_E2E_KUBECTL",
                    components::program(self.cache, &KUBERNETES, "kubectl"),
                )
                .env(
                    "HYPRSTREAM_E2E_HELM",
                    components::program(self.cache, &HELM, "helm"),
                )
                // The supervisor's copy: a build meanwhile replaces the program itself.
                .env("HYPRSTREAM_E2E_XTASK", cluster.dir().join("xtask"))
                .env("HYPRSTREAM_E2E_PYTHON", python)
                .env(
                    "HYPRSTREAM_E2E_INGRESS",
                    format!("http://127.0.0.1:{}", spec.ingress_port),
                )
                .env(
                    "HYPRSTREAM_E2E_REGISTRY",
                    format!("http://127.0.0.1:{}", spec.registry_port),
                ),
        )
    }

    /// Python with the OpenAI client, in an environment of its own.
    fn python(&self) -> Result<PathBuf> {
        let folder = self.cache.join("python-openai-3");
        let python = folder.join("bin/python");
        if folder.join("complete").is_file() {
            return Ok(python);
        }
        let log = self.cache.join("log/python.log");
        crate::paths::remove_all(&folder)?;
        // A virtual environment cannot be moved, so it is marked instead of renamed.
        proc::logged(
            Command::new("python3").args(["-m", "venv"]).arg(&folder),
            &log,
        )
        .context("cannot make a Python environment; try: apt-get install -y python3-venv")?;
        proc::logged(
            Command::new(&python).args(["-m", "pip", "install", "--quiet", "openai>=3,<4"]),
            &log,
        )?;
        std::fs::write(folder.join("complete"), "")?;
        Ok(python)
    }

    /// Logs of the programs of a cluster that is about to end.
    fn keep_logs(&self, cluster: &Cluster) {
        let kept = self.checkout.join(".local/failed-e2e");
        let _ = crate::paths::remove_all(&kept);
        let _ = std::fs::create_dir_all(&kept);
        let _ = proc::output(Command::new("cp").arg("-r").arg(cluster.logs()).arg(&kept));
        for component in ["operator", "gateway", "registry", "csi"] {
            let selector = format!("app.kubernetes.io/component={component}");
            let logs = proc::output(cluster.kubectl().args([
                "-n",
                crate::chart::NAMESPACE,
                "logs",
                "--prefix",
                "--tail=2000",
                "-l",
                &selector,
            ]));
            if let Ok(logs) = logs {
                let _ = std::fs::write(kept.join(format!("{component}.log")), logs);
            }
        }
        eprintln!("logs: {}", kept.display());
    }
}

/// Runs a program whose output the user sees.
fn shown(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!("cargo {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}
