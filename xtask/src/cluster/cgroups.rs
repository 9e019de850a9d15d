//! The cluster's cgroups: limits for its pods, and the way to find each of its processes.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// All mounted hierarchies, of version 1 and 2.
pub(crate) struct Hierarchies(Vec<Hierarchy>);

struct Hierarchy {
    root: PathBuf,
    version_2: bool,
    cpuset: bool,
}

impl Hierarchies {
    /// Finds them in `/proc/self/mountinfo`.
    pub(crate) fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self(parse(&mounts)))
    }

    /// Makes the group `path` in every hierarchy, ready to take processes and children.
    pub(crate) fn make(&self, path: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let mut at = hierarchy.root.clone();
            for part in path.split('/') {
                let parent = at.clone();
                at.push(part);
                if hierarchy.version_2 {
                    enable_all(&parent);
                }
                fs::create_dir_all(&at)
                    .with_context(|| format!("cannot make the cgroup {}", at.display()))?;
                if hierarchy.cpuset {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        if fs::read_to_string(at.join(file))?.trim().is_empty() {
                            fs::write(at.join(file), fs::read_to_string(parent.join(file))?)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets the children of `path` have every controller (version 2).
    pub(crate) fn delegate(&self, path: &str) {
        for hierarchy in self.0.iter().filter(|h| h.version_2) {
            enable_all(&hierarchy.root.join(path));
        }
    }

    /// Gives `path` the weight of so many busy processes beside it. A group has that of one
    /// otherwise, and a whole cluster that of a single compiler process.
    pub(crate) fn weigh(&self, path: &str, processes: u32) {
        for hierarchy in &self.0 {
            let dir = hierarchy.root.join(path);
            let (file, one, most) = if hierarchy.version_2 {
                ("cpu.weight", 100, 10_000)
            } else {
                ("cpu.shares", 1024, 262_144)
            };
            // Only the hierarchy with the controller has the file.
            if dir.join(file).exists() {
                let weight = (one * processes.max(1)).min(most);
                if let Err(error) = fs::write(dir.join(file), weight.to_string()) {
                    eprintln!("cannot weigh {}: {error}", dir.display());
                }
            }
        }
    }

    /// Moves this process, and so its future children, into `path`.
    pub(crate) fn join(&self, path: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let file = hierarchy.root.join(path).join("cgroup.procs");
            fs::write(&file, std::process::id().to_string())
                .with_context(|| format!("cannot join the cgroup {}", file.display()))?;
        }
        Ok(())
    }

    /// Processes in `path` and below, in any hierarchy.
    pub(crate) fn processes(&self, path: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for hierarchy in &self.0 {
            walk(&hierarchy.root.join(path), &mut |dir| {
                if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
                    found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
                }
            });
        }
        found.remove(&0);
        found
    }

    /// Kills everything in `path` and below until nothing is left, and returns how many processes
    /// that were and which outlived the limit.
    pub(crate) fn kill(&self, path: &str, limit: Duration) -> (usize, BTreeSet<i32>) {
        let started = Instant::now();
        let mut killed = BTreeSet::new();
        let myself = std::process::id() as i32;
        loop {
            let mut left = self.processes(path);
            left.remove(&myself);
            // A zombie whose parent does not reap it cannot be killed and holds nothing.
            left.retain(|pid| !is_zombie(*pid));
            if left.is_empty() || started.elapsed() > limit {
                return (killed.len(), left);
            }
            for pid in left {
                killed.insert(pid);
                kill(pid);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes `path` with all below it and returns what could not be removed.
    pub(crate) fn remove(&self, path: &str) -> Vec<PathBuf> {
        let started = Instant::now();
        loop {
            let mut left = Vec::new();
            for hierarchy in &self.0 {
                walk(&hierarchy.root.join(path), &mut |dir| {
                    if let Err(error) = fs::remove_dir(dir)
                        && error.kind() != io::ErrorKind::NotFound
                    {
                        left.push(dir.to_owned());
                    }
                });
            }
            // The kernel lets go of a group some time after its last process ended.
            if left.is_empty() || started.elapsed() > Duration::from_secs(20) {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Top-level groups whose name begins with `prefix`.
    pub(crate) fn tops(&self, prefix: &str) -> BTreeSet<String> {
        self.0
            .iter()
            .filter_map(|h| fs::read_dir(&h.root).ok())
            .flatten()
            .flatten()
            .filter(|e| e.path().is_dir())
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }
}

/// Kills a process; whether it was there.
pub(crate) fn kill(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

fn parse(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let kind = right.split(' ').next().unwrap_or_default();
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let Some(root) = left.split(' ').nth(4) else {
            continue;
        };
        let options = right.rsplit(' ').next().unwrap_or_default();
        found.push(Hierarchy {
            root: PathBuf::from(root),
            version_2: kind == "cgroup2",
            cpuset: kind == "cgroup" && options.split(',').any(|o| o == "cpuset"),
        });
    }
    found
}

/// Visits the folders from the leaves to the root.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}

fn enable_all(dir: &Path) {
    let Ok(controllers) = fs::read_to_string(dir.join("cgroup.controllers")) else {
        return;
    };
    for controller in controllers.split_whitespace() {
        // One by one: a controller that cannot be had must not keep the others away.
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|s| {
            s.rsplit_once(')')
                .map(|(_, rest)| rest.trim_start().starts_with('Z'))
        })
        .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_in_the_mounts() {
        let found = parse(
            "30 25 0:26 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset\n\
             31 25 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
             33 25 0:29 / /tmp rw - tmpfs tmpfs rw\n",
        );
        assert_eq!(found.len(), 3);
        assert!(found[0].cpuset && !found[0].version_2);
        assert!(!found[1].cpuset && found[2].version_2);
    }
}
