//! What a process and its children took.

use std::{
    collections::HashMap,
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What one side took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub seconds: f64,
    /// The most that it and its children had in memory together, looked at every 20 ms.
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
    let mut resident = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(text) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        parents.insert(id, field("PPid:").unwrap_or(0) as u32);
        resident.insert(id, field("VmRSS:").unwrap_or(0) * 1024);
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
    let below = resident.iter().filter(|(id, _)| is_below(**id));
    below.map(|(_, bytes)| bytes).sum()
}
