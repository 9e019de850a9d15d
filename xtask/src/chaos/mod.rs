//! Hurts a running cluster, for tests.

mod storm;

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    chart,
    cluster::{self, Cluster},
    paths::{Cache, Checkout},
    proc,
    target::Target,
    ui::say,
};

/// What a filled disk leaves free, in bytes.
const LEFT_FREE_BYTES: u64 = 8 << 20;
/// The file that fills a disk.
const BALLAST: &str = ".ballast";

/// Ways to hurt a cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Chaos {
    /// Kills every process of a program (SIGKILL) on all nodes.
    Kill {
        /// File name of the program, for example `kubelet` or `hyprstream-csi`.
        program: String,
        /// Only in the pod with this UID.
        #[arg(long)]
        pod_uid: Option<String>,
    },
    /// Cuts a node off the network, or connects it again.
    Link {
        /// Name of the node.
        node: String,
        /// `up` or `down`.
        state: LinkState,
    },
    /// Fills a disk, or frees it. Needs a cluster with small disks.
    Disk {
        /// Which disk.
        disk: Disk,
        /// `fill` or `free`.
        state: DiskState,
    },
    /// Kills processes of random parts under streams, and counts whose requests that cost. Fails
    /// when a request is lost that no killed gateway or worker held.
    Storm(storm::StormArgs),
    /// Changes the release of the chart.
    Helm {
        /// `upgrade`, `uninstall` or `test`.
        verb: HelmVerb,
        /// A value to change; may be repeated.
        #[arg(long)]
        set: Vec<String>,
    },
}

/// State of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LinkState {
    /// Connected.
    Up,
    /// Cut.
    Down,
}

/// A disk that can be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Disk {
    /// Where the node plugin keeps objects and checkouts, on every node.
    Node,
    /// The volumes, where the registry's is.
    Registry,
}

/// What to do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DiskState {
    /// Leave a few megabytes only.
    Fill,
    /// Give the space back.
    Free,
}

/// What to do with the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HelmVerb {
    /// Install or upgrade with the values of the last `up`.
    Upgrade,
    /// Remove.
    Uninstall,
    /// Run its tests.
    Test,
}

/// Does it.
pub(crate) fn run(
    checkout: &Checkout,
    cache: &Cache,
    cluster: &Cluster,
    chaos: &Chaos,
) -> Result<()> {
    match chaos {
        Chaos::Kill { program, pod_uid } => {
            let killed = cluster.kill_program(program, pod_uid.as_deref())?;
            if killed == 0 {
                bail!(
                    "no process of {program} runs in cluster {:?}",
                    cluster.name()
                );
            }
            say(format_args!("{killed} processes killed"));
            Ok(())
        }
        Chaos::Link { node, state } => {
            let nodes = cluster.spec().context("the cluster is not running")?.nodes;
            let number = (1..=nodes).find(|n| cluster::node_name(*n) == *node);
            let number = number.with_context(|| format!("there is no node {node}"))?;
            cluster.set_node_link(number, *state == LinkState::Up)
        }
        Chaos::Storm(args) => storm::run(cluster, args),
        Chaos::Disk { disk, state } => change_disk(cluster, *disk, *state),
        Chaos::Helm { verb, set } => {
            let target = Target::local(cache, cluster);
            match verb {
                HelmVerb::Upgrade => {
                    let extra: Vec<String> = set
                        .iter()
                        .flat_map(|s| ["--set".to_owned(), s.clone()])
                        .collect();
                    chart::install(checkout, cache, &target, None, &extra)
                }
                HelmVerb::Uninstall => chart::uninstall(cache, &target),
                HelmVerb::Test => {
                    say(chart::test(cache, &target)?);
                    Ok(())
                }
            }
        }
    }
}

fn change_disk(cluster: &Cluster, disk: Disk, state: DiskState) -> Result<()> {
    let spec = cluster.spec().context("the cluster is not running")?;
    if spec.disk_mb.is_none() {
        bail!(
            "cluster {:?} has the disks of this machine, which are not filled",
            cluster.name()
        );
    }
    let (nodes, dir) = match disk {
        Disk::Node => (1..=spec.nodes, "/var/lib/hyprstream"),
        // All nodes see the same one.
        Disk::Registry => (1..=1, "/tmp/hostpath_pv"),
    };
    for node in nodes {
        let file = Path::new(dir).join(BALLAST);
        let mut inside = cluster.enter(node)?;
        match state {
            DiskState::Free => {
                proc::output(inside.arg("rm").arg("-f").arg(&file))?;
            }
            DiskState::Fill => {
                let free = free_bytes(&mut cluster.enter(node)?, dir)?;
                let length = free.saturating_sub(LEFT_FREE_BYTES);
                if length > 0 {
                    proc::output(
                        inside
                            .args(["fallocate", "--length", &length.to_string()])
                            .arg(&file),
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn free_bytes(enter: &mut Command, dir: &str) -> Result<u64> {
    let text = proc::output(enter.args(["df", "--output=avail", "--block-size=1", dir]))?;
    text.lines()
        .nth(1)
        .and_then(|l| l.trim().parse().ok())
        .context("df told no number")
}

/// File name of the program that a process runs, if it can be told.
pub(crate) fn program_of(pid: i32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = exe.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}
