//! Ends a cluster, whatever state it is in.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Cluster, cgroups::Hierarchies};
use crate::paths::remove_all;

/// What `down` could not remove, one line each.
pub(crate) type Leftovers = Vec<String>;

/// Ends every process of the cluster, with it its namespaces, links, rules and mounts, and removes
/// its cgroups and its folder. Needs no record of what was started: each of its processes is in a
/// cgroup with the cluster's prefix. Doing it again does nothing.
pub(crate) fn down(cluster: &Cluster) -> Result<(usize, Leftovers)> {
    let ended = end_processes(cluster)?;
    if cluster.name() == super::DEFAULT_NAME {
        remove_all(&cluster.kubeconfig())?;
    }
    // The folder can only be removed when nothing is mounted below it any more.
    let mut left = leftovers(cluster)?;
    if left.is_empty() {
        remove_all(cluster.dir())?;
        left = leftovers(cluster)?;
    }
    Ok((ended, left))
}

/// Ends every process of the cluster and removes its cgroups; its folder stays.
pub(crate) fn end_processes(cluster: &Cluster) -> Result<usize> {
    let cgroups = Hierarchies::find()?;
    // The supervisor first, or it would start again what ends.
    let supervisor = cluster.state().map(|s| (s.supervisor, s.started));
    if let Some((pid, started)) = supervisor
        && super::state::start_time(pid) == Some(started)
        && let Some(pid) = rustix::process::Pid::from_raw(pid as i32)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    // One that was started a moment ago may not have told of itself yet. What was killed is waited
    // for: until it is gone it may finish making the cgroup that is removed next.
    let started = Instant::now();
    loop {
        let left = running(&cluster.dir().join("xtask"));
        if left.is_empty() || started.elapsed() > Duration::from_secs(10) {
            break;
        }
        for pid in left {
            super::cgroups::kill(pid);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let system = format!("{}/system", cluster.prefix());
    let (first, _) = cgroups.kill(&system, Duration::from_secs(10));
    let (rest, _) = cgroups.kill(cluster.prefix(), Duration::from_secs(20));
    cgroups.remove(cluster.prefix());
    Ok(first + rest)
}

/// Processes of a program, and those that are about to become it: `unshare` starts it.
fn running(program: &Path) -> Vec<i32> {
    let deleted = format!("{} (deleted)", program.display());
    let is_it = |pid: &i32| {
        // A zombie has none, and holds nothing.
        let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
            return false;
        };
        let starts_it = exe.file_name().is_some_and(|name| name == "unshare")
            && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|argument| argument == program.as_os_str().as_encoded_bytes())
            });
        starts_it || exe == program || exe.as_os_str() == deleted.as_str()
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_it)
        .collect()
}

/// What of the cluster is still on the machine, apart from files.
pub(crate) fn leftovers(cluster: &Cluster) -> Result<Leftovers> {
    let cgroups = Hierarchies::find()?;
    let mut left = Vec::new();
    for pid in cgroups.processes(cluster.prefix()) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        left.push(format!("process {pid} {}", name.trim()));
    }
    for name in cgroups.tops(cluster.prefix()) {
        if name == cluster.prefix() {
            left.push(format!("cgroup {name}"));
        }
    }
    let dir = format!("{}/", cluster.dir().display());
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if let Some(at) = line.split(' ').nth(4)
            && at.starts_with(&dir)
        {
            left.push(format!("mount {at}"));
        }
    }
    // A process elsewhere that still sees our folder in its mounts holds a node's namespace.
    for entry in fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let is_process = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        if !is_process {
            continue;
        }
        let Ok(mounts) = fs::read_to_string(path.join("mountinfo")) else {
            continue;
        };
        let name = cluster.dir().display().to_string();
        // Field 4 is the folder within its file system, seen only inside of a node.
        let inside = mounts.lines().any(|l| {
            l.split(' ').nth(3).is_some_and(|root| {
                root.strip_prefix('/')
                    .is_some_and(|_| root.contains(&format!("{name}/node-")))
            })
        });
        if inside {
            left.push(format!(
                "namespace of process {}",
                entry.file_name().to_string_lossy()
            ));
        }
    }
    Ok(left)
}
