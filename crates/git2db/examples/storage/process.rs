//! What a process and its children took.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What one side took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub seconds: f64,
    /// The most that it and its children had in memory together, looked at every 20 ms. Of a page
    /// that several have, as a child has all of its parent's until it becomes another program, each
    /// counts its share.
    pub memory_bytes: u64,
    /// What it and its children gave the kernel to be written to disks.
    pub written_bytes: u64,
}

/// Runs this program again, as one side. It tells on its standard output what it wrote.
pub(crate) fn run(side: &[&str]) -> Taken {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("side")
        .args(side)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut memory_bytes = 0;
    while child.try_wait().unwrap().is_none() {
        memory_bytes = memory_bytes.max(tree_bytes(child.id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let seconds = began.elapsed().as_secs_f64();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{side:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let written_bytes = text.trim().parse().unwrap();
    Taken {
        seconds,
        memory_bytes,
        written_bytes,
    }
}

/// Bytes that this process and its ended children gave the kernel to be written.
pub(crate) fn written_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap().parse().unwrap()
}

fn tree_bytes(root: u32) -> u64 {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Some(parent) = field(entry.path().join("status"), "PPid:") else {
            continue;
        };
        parents.insert(id, parent as u32);
    }
    let is_below = |mut id: u32| {
        while id != root {
            match parents.get(&id) {
                Some(parent) if *parent != 0 => id = *parent,
                _ => return false,
            }
        }
        true
    };
    let below = parents.keys().filter(|id| is_below(**id));
    let kib = below.filter_map(|id| field(format!("/proc/{id}/smaps_rollup"), "Pss:"));
    kib.sum::<u64>() * 1024
}

/// A number out of what the kernel tells of a process; `None` if that has ended.
fn field(path: impl AsRef<Path>, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
