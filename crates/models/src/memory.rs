//! How much memory this process may use.

use std::path::{Path, PathBuf};

/// Bytes that this process may still take: the smaller of what the machine has available and
/// what the limits of its cgroups (v2 or v1, and those above) leave. `None` if neither can be
/// read.
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|t| mem_available(&t));
    let group = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|t| {
            let dirs = cgroup_dirs(&t, Path::new("/sys/fs/cgroup"));
            dirs.iter().filter_map(|dir| headroom(dir)).min()
        });
    machine.into_iter().chain(group).min()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// The directories of this process's memory cgroup and of those above it. Inside a container the
/// path in `/proc/self/cgroup` may not exist below the mount; then the mount itself is the group.
fn cgroup_dirs(proc_self_cgroup: &str, mount: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next(), fields.next(), fields.next());
        let base = match controllers {
            Some("") => mount.to_owned(),
            Some(list) if list.split(',').any(|c| c == "memory") => mount.join("memory"),
            _ => continue,
        };
        let below = path.unwrap_or_default().trim_start_matches('/');
        dirs.extend(
            Path::new(below)
                .ancestors()
                .map(|p| base.join(p))
                .filter(|dir| dir.is_dir()),
        );
    }
    dirs
}

/// What the limit of one cgroup leaves. Page cache counts as free: it is given up when needed.
fn headroom(dir: &Path) -> Option<u64> {
    let number = |name: &str| {
        std::fs::read_to_string(dir.join(name))
            .ok()
            .and_then(|t| t.trim().parse::<u64>().ok())
    };
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current")
        .or_else(|| number("memory.usage_in_bytes"))
        .unwrap_or(0);
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cached = stat
        .lines()
        .find_map(|l| {
            l.strip_prefix("file ")
                .or_else(|| l.strip_prefix("total_cache "))
        })
        .and_then(|v| v.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_cgroup_above_counts_and_page_cache_does_not() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pod");
        let container = pod.join("container");
        std::fs::create_dir_all(&container).unwrap();
        std::fs::write(container.join("memory.max"), "max\n").unwrap();
        std::fs::write(pod.join("memory.max"), "1000\n").unwrap();
        std::fs::write(pod.join("memory.current"), "700\n").unwrap();
        std::fs::write(pod.join("memory.stat"), "anon 100\nfile 600\n").unwrap();
        let dirs = cgroup_dirs("0::/pod/container\n", root.path());
        let room: Vec<_> = dirs.iter().filter_map(|d| headroom(d)).collect();
        assert_eq!(room, [900]);
    }

    #[test]
    fn a_cgroup_v1_limit_is_found() {
        let root = tempfile::tempdir().unwrap();
        let memory = root.path().join("memory");
        std::fs::create_dir_all(&memory).unwrap();
        std::fs::write(memory.join("memory.limit_in_bytes"), "4096\n").unwrap();
        let dirs = cgroup_dirs("3:cpu:/x\n5:memory:/gone\n", root.path());
        assert_eq!(dirs.iter().filter_map(|d| headroom(d)).min(), Some(4096));
    }

    #[test]
    fn meminfo_is_in_kibibytes() {
        assert_eq!(
            mem_available("MemTotal: 9 kB\nMemAvailable:  2 kB\n"),
            Some(2048)
        );
    }
}
