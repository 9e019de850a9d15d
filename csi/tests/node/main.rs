//! The program with real mounts, a real git server and a kubelet's calls.

#![allow(clippy::float_cmp, clippy::panic, clippy::unwrap_used)]

mod life;
mod sharing;
#[path = "../support/mod.rs"]
mod support;
mod trouble;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hyprstream_contract::volume::VolumeMode;
use support::{
    kubelet::Kubelet,
    program::{Node, Program},
    registry::Registry,
};

const RO: VolumeMode = VolumeMode::ReadOnly;
const RW: VolumeMode = VolumeMode::ReadWrite;

fn weights(seed: u8, size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

/// Whether a model's `one.safetensors` in `folder` are the weights of this seed.
#[track_caller]
fn has_one(folder: &Path, seed: u8) {
    let found = std::fs::read(folder.join("one.safetensors")).unwrap();
    assert!(found == weights(seed, 3 << 20), "{}", folder.display());
}

/// A node with the program, beside a registry with one commit of a model.
struct Bench {
    // Dropped in this order: the program before its disk.
    program: Program,
    kubelet: Kubelet,
    node: Node,
    registry: Registry,
    commit: String,
}

impl Bench {
    async fn start() -> Self {
        let registry = Registry::start();
        let commit = model(&registry);
        let node = Node::new(registry.url());
        let program = node.start().await;
        let kubelet = Kubelet::connect(&node).await;
        Self {
            program,
            kubelet,
            node,
            registry,
            commit,
        }
    }

    /// The model's volume.
    fn volume(&self, mode: VolumeMode) -> BTreeMap<String, String> {
        self.registry.volume(&self.commit, mode)
    }
}

fn model(registry: &Registry) -> String {
    registry
        .write("config.json", "{\"a\": 1}")
        .write_lfs("one.safetensors", &weights(1, 3 << 20))
        .write_lfs("two.safetensors", &weights(2, 1 << 20))
        .symlink("link.json", "config.json");
    registry.commit()
}

/// A disk of its own for `folder`, or another size for the one that it has.
fn mount_tmpfs(folder: &Path, size: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(folder)
        .status();
    assert!(status.unwrap().success());
}

/// Stages as the kubelet does, which tries again after every failure.
async fn until_staged(
    kubelet: &Kubelet,
    handle: &str,
    volume: &BTreeMap<String, String>,
) -> PathBuf {
    for _ in 0..200 {
        match kubelet.stage(handle, volume).await {
            Ok(staging) => return staging,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{:?}", kubelet.stage(handle, volume).await);
}

async fn wait(done: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come to be");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() && !path.is_symlink() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// Bytes below `folder`, each inode once.
fn disk_use(folder: &Path) -> u64 {
    let output = std::process::Command::new("du")
        .args(["-s", "-B1", "-x"])
        .arg(folder)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
