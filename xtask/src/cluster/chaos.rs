//! What the end-to-end tests do to a cluster to see it recover.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, cgroups::Hierarchies};
use crate::proc;

/// A way to hurt a cluster, or to mend it.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Chaos {
    /// kill -9 of every process of a program, or of the one in a pod.
    Kill {
        /// Name of the program, such as `kubelet` or `hyprstream-csi`.
        program: String,
        /// Only in the pod with this UID.
        #[arg(long)]
        pod_uid: Option<String>,
    },
    /// Takes a node's link down or up.
    Link {
        /// Name of the node.
        node: String,
        /// `up` or `down`.
        #[arg(value_parser = ["up", "down"])]
        state: String,
    },
    /// Fills a disk or frees it; `up --small-disks` gives the cluster disks that can be filled.
    Disk {
        /// `registry`, or `node` for the state folder of every node plugin.
        #[arg(value_parser = ["registry", "node"])]
        disk: String,
        /// `fill` or `free`.
        #[arg(value_parser = ["fill", "free"])]
        act: String,
    },
}

/// Size of each of the small disks.
const DISK_MIB: u64 = 1536;
/// What a filled disk has left.
const LEFT_MIB: u64 = 8;
/// Where volumes of the cluster's default class lie on every node.
const VOLUMES: &str = "/tmp/hostpath_pv";
/// Where the node plugin keeps its state.
const NODE_STATE: &str = "/var/lib/hyprstream";

impl Cluster {
    /// Does it.
    pub(crate) fn chaos(&self, chaos: &Chaos) -> Result<()> {
        match chaos {
            Chaos::Kill { program, pod_uid } => self.kill(program, pod_uid.as_deref()),
            Chaos::Link { node, state } => {
                let number = node.strip_prefix("node-").and_then(|n| n.parse().ok());
                let number = number.with_context(|| format!("{node:?} is no node's name"))?;
                self.set_node_link(number, state == "up")
            }
            Chaos::Disk { disk, act } => self.disk(disk, act == "fill"),
        }
    }

    fn kill(&self, program: &str, pod_uid: Option<&str>) -> Result<()> {
        let mut killed = 0;
        for pid in Hierarchies::find()?.processes(self.prefix()) {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            if is_program(&proc, program)
                && pod_uid.is_none_or(|uid| in_pod(&proc, uid))
                && let Some(pid) = Pid::from_raw(pid)
            {
                kill_process(pid, Signal::KILL)
                    .with_context(|| format!("cannot kill {program}"))?;
                killed += 1;
            }
        }
        if killed == 0 {
            bail!("no process of {program} runs in cluster {:?}", self.name());
        }
        println!("{killed} killed");
        Ok(())
    }

    /// Puts the volumes and the state of every node on disks of their own that are small enough
    /// to be filled. To be called before anything uses them.
    pub(crate) fn use_small_disks(&self, nodes: u8) -> Result<()> {
        let folder = self.dir().join("disks");
        fs::create_dir_all(&folder)?;
        let everywhere: Vec<u8> = (0..=nodes).collect();
        self.mount_disk(&folder.join("volumes.img"), VOLUMES, &everywhere)?;
        for node in 1..=nodes {
            self.mount_disk(&folder.join(format!("node-{node}.img")), NODE_STATE, &[node])?;
        }
        Ok(())
    }

    fn mount_disk(&self, image: &Path, at: &str, places: &[u8]) -> Result<()> {
        if self.is_mounted(places[0], at)? {
            return Ok(());
        }
        if !image.exists() {
            fs::File::create(image)?.set_len(DISK_MIB << 20)?;
            proc::output(Command::new("mkfs.ext4").arg("-q").args(["-m", "0"]).arg(image))?;
        }
        // One device for all places: two devices on one image would destroy the file system.
        let device = proc::output(Command::new("losetup").args(["--find", "--show"]).arg(image))?;
        let device = device.trim();
        for place in places {
            proc::output(self.enter(*place)?.args(["mount", device, at]))?;
            proc::output(self.enter(*place)?.args(["chmod", "0777", at]))?;
        }
        // The kernel frees the device when the last mount has gone.
        proc::output(Command::new("losetup").args(["--detach", device])).map(drop)
    }

    fn is_mounted(&self, place: u8, at: &str) -> Result<bool> {
        let mounts = proc::output(self.enter(place)?.args(["cat", "/proc/self/mounts"]))?;
        Ok(mounts.lines().any(|l| l.starts_with("/dev/loop") && l.split(' ').nth(1) == Some(at)))
    }

    fn disk(&self, disk: &str, fill: bool) -> Result<()> {
        let nodes = self.spec().context("the cluster is not running")?.nodes;
        let (at, places) = match disk {
            "registry" => (VOLUMES, vec![1]),
            _ => (NODE_STATE, (1..=nodes).collect()),
        };
        for place in places {
            if !self.is_mounted(place, at)? {
                bail!("{at} is no small disk; start the cluster with `up --small-disks`");
            }
            let script = if fill {
                format!(
                    "free=$(df --output=avail --block-size=1M {at} | tail -1) && \
                     fallocate -l $((free - {LEFT_MIB}))M {at}/ballast-of-chaos"
                )
            } else {
                format!("rm -f {at}/ballast-of-chaos")
            };
            proc::output(self.enter(place)?.args(["sh", "-c", &script]))?;
        }
        Ok(())
    }
}

fn is_program(proc: &Path, program: &str) -> bool {
    fs::read(proc.join("cmdline")).is_ok_and(|line| {
        let first = line.split(|b| *b == 0).next().unwrap_or_default();
        Path::new(String::from_utf8_lossy(first).as_ref()).file_name()
            == Some(std::ffi::OsStr::new(program))
    })
}

fn in_pod(proc: &Path, uid: &str) -> bool {
    fs::read_to_string(proc.join("cgroup"))
        .is_ok_and(|text| text.contains(uid) || text.contains(&uid.replace('-', "_")))
}
