//! The program with real mounts, a real git server and a kubelet's calls.

#![allow(clippy::float_cmp, clippy::panic, clippy::unwrap_used)]

mod adapters;
mod full;
mod life;
mod rot;
mod secrets;
mod sharing;
#[path = "../support/mod.rs"]
mod support;
mod trouble;
mod words;
mod written;

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
const RW: VolumeMode = VolumeMode::ReadWrite {
    capacity_bytes: 16 << 20,
};

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

/// A small ext4 of its own for `folder`, on which every block counts. `false` where this machine
/// cannot mount one. It goes with the mounts of the test.
fn mount_ext4(node: &Node, folder: &Path, mib: u64) -> bool {
    std::fs::create_dir_all(folder).unwrap();
    let image = node.path("disk.img");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(mib << 20)
        .unwrap();
    let done = |command: &mut std::process::Command| command.status().is_ok_and(|s| s.success());
    let made = done(
        std::process::Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-b", "4096", "-O", "^has_journal"])
            .arg(&image),
    ) && done(
        std::process::Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(folder),
    );
    if !made {
        eprintln!("SKIPPED: no ext4 can be mounted here");
    }
    made
}

/// Whether disks in files can be mounted here, as read-write volumes need them.
fn has_disks() -> bool {
    use hyprstream_csi::mount::{Kernel, Mounts};
    let folder = tempfile::tempdir().unwrap();
    let (image, target) = (folder.path().join("image"), folder.path().join("disk"));
    std::fs::create_dir(&target).unwrap();
    let kernel = Kernel::default();
    let tried = kernel
        .make_disk(&image, 16 << 20)
        .and_then(|()| kernel.disk(&image, &target));
    match tried {
        Ok(()) => kernel.unmount(&target, false).unwrap(),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            return false;
        }
    }
    true
}

/// Fills the disk of `folder` but for so many blocks of 4 KiB; undone by removing the file.
fn fill(folder: &Path, free_blocks: u64) -> PathBuf {
    use std::io::Write;
    let path = folder.join("fill");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096] {
        let piece = vec![1; size];
        while file.write_all(&piece).is_ok() {}
    }
    let blocks = file.metadata().unwrap().len() / 4096;
    file.set_len(blocks.saturating_sub(free_blocks) * 4096)
        .unwrap();
    file.sync_all().unwrap();
    path
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
