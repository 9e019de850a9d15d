//! The end-to-end tests, on clusters of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{Suites, TestArgs, python, shown};
use crate::{
    cluster::{self, Cluster},
    components, images, proc, programs, suites,
    ui::Step,
    up::{Up, UpArgs},
    versions::{HELM, KUBERNETES, KUEUE},
};

/// Name of the cluster of the end-to-end tests, and of the one that `measure` makes.
const CLUSTER_NAME: &str = "e2e";
/// Its nodes: losing one needs another.
const NODES: u8 = 2;
/// Size of its disks in megabytes.
const DISK_MB: u32 = 1536;

impl Suites<'_> {
    /// The tests on one cluster that has all of it, then those that kill what holds a cluster.
    pub(super) fn end_to_end(&self, args: &TestArgs) -> Result<()> {
        self.on_one_cluster(args)?;
        if args.soak {
            return Ok(());
        }
        self.say("what is left after kills");
        // A copy: a build meanwhile replaces the program itself.
        let copy = self.cache.replace("staged/xtask", |dir| {
            std::fs::copy(std::env::current_exe()?, dir.join("xtask"))
                .map(drop)
                .context("cannot copy this program")
        })?;
        shown(
            self.e2e_tests("down", args)
                .env("HYPRSTREAM_E2E_XTASK", copy.join("xtask")),
        )
    }

    fn on_one_cluster(&self, args: &TestArgs) -> Result<()> {
        self.say("a cluster for the end-to-end tests");
        let python = python::openai(self.cache)?;
        let packages = suites::node_packages(self.checkout, self.cache)?;
        let cluster = Cluster::open(self.checkout, self.cache, CLUSTER_NAME)?;
        let running = cluster.is_supervised();
        if !running {
            // What an earlier run left is worth nothing: its disks were in memory.
            let lock = cluster.lock()?;
            cluster::down(&cluster)?;
            cluster.unlock(lock)?;
        }
        let result = self.on_cluster(&cluster, [&python, &packages], args);
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

    /// `clients`: Python with OpenAI's client, and the folder of packages that has that of node.
    fn on_cluster(&self, cluster: &Cluster, clients: [&Path; 2], args: &TestArgs) -> Result<()> {
        let [python, packages] = clients;
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
        self.say("the API server takes what the chart renders");
        self.chart(Some(&cluster.kubeconfig()))?;
        let mut tests = self.e2e_tests("e2e", args);
        if args.soak {
            self.say("Kueue");
            let (chart, image) = self.kueue(cluster)?;
            tests
                .env("HYPRSTREAM_E2E_KUEUE_CHART", chart)
                .env("HYPRSTREAM_E2E_KUEUE_IMAGE", image);
        }
        self.say("end-to-end tests");
        shown(
            tests
                .env("KUBECONFIG", cluster.kubeconfig())
                .env("HYPRSTREAM_E2E_NAME", CLUSTER_NAME)
                .env(
                    "HYPRSTREAM_E2E_HELM",
                    components::program(self.cache, &HELM, "helm"),
                )
                // The supervisor's copy: a build meanwhile replaces the program itself.
                .env("HYPRSTREAM_E2E_XTASK", cluster.dir().join("xtask"))
                .env("HYPRSTREAM_E2E_COMMAND", programs::command(self.checkout))
                .env("HYPRSTREAM_E2E_PYTHON", python)
                .env("HYPRSTREAM_E2E_NODE_PACKAGES", packages)
                .env(
                    "HYPRSTREAM_E2E_INGRESS",
                    format!("http://127.0.0.1:{}", spec.ingress_port),
                )
                .env(
                    "HYPRSTREAM_E2E_REGISTRY",
                    format!(
                        "{}://127.0.0.1:{}",
                        crate::chart::registry().0,
                        spec.registry_port
                    ),
                )
                // The tests write it, and write it anew when it changes. git and git-lfs read it.
                .env("GIT_SSL_CAINFO", cluster.dir().join("e2e-ca.crt")),
        )
    }

    /// Puts Kueue's image on the nodes; its chart, and the image's name.
    fn kueue(&self, cluster: &Cluster) -> Result<(PathBuf, String)> {
        let step = Step::new(format!("Kueue {}", KUEUE.version));
        let log = self.cache.join("log/components.log");
        components::ensure(self.checkout, self.cache, &[&KUEUE], &log, &step)?;
        let image = images::ensure_kueue(self.cache, &self.cache.join("log/images.log"))?;
        let reference = image.reference.clone();
        images::load(cluster, &[image])?;
        step.done("");
        let chart = components::folder(self.cache, &KUEUE).join("chart");
        Ok((chart, reference))
    }

    /// The end-to-end tests of one file, one after the other.
    fn e2e_tests(&self, file: &str, args: &TestArgs) -> Command {
        let mut cargo = self.cargo();
        cargo
            .args(["test", "--release", "--locked", "--workspace"])
            .arg("--exclude=hyprstream-torch")
            .args(["--features=hyprstream-e2e/cluster", "--test", file])
            .args(["--", "--test-threads=1"])
            .args(args.soak.then_some("--ignored"))
            .args(&args.filter)
            .env(
                "HYPRSTREAM_E2E_KUBECTL",
                components::program(self.cache, &KUBERNETES, "kubectl"),
            );
        cargo
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
