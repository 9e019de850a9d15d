//! What a cluster leaves on a machine, looked for without the help of `down`.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use hyprstream_e2e::run;

/// Processes, cgroups and mounts that bear the name, one line each.
pub(crate) fn named(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in processes() {
        if bears(&process, name) {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(format!("process {}: {command}", process.display()));
        }
        // A mount is seen by those in its namespace; the host's are those of this process.
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        if let Some(mount) = mounts.lines().find(|line| line.contains(name)) {
            found.push(format!("mount seen by {}: {mount}", process.display()));
        }
    }
    // One folder for each controller (version 1), or none (version 2), above the cluster's own.
    let root = PathBuf::from("/sys/fs/cgroup");
    for folder in [vec![root.clone()], folders(&root)].concat() {
        let groups = folders(&folder).into_iter();
        let ours = groups.filter(|group| group.to_string_lossy().contains(name));
        found.extend(ours.map(|group| format!("cgroup {}", group.display())));
    }
    found
}

/// Links, routes and packet filter rules of the host.
pub(crate) fn host_network() -> Result<String> {
    let mut text = String::new();
    for command in [
        ["ip", "-br", "link"].as_slice(),
        &["ip", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["nft", "--stateless", "list", "ruleset"],
    ] {
        let (program, arguments) = (command[0], &command[1..]);
        text.push_str(&run(Command::new(program).args(arguments))?);
        text.push('\n');
    }
    // Rules of the older kind, where there is the program for them.
    match Command::new("iptables-legacy-save").output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
        Ok(output) => {
            let rules = String::from_utf8_lossy(&output.stdout);
            let rules = rules.lines().filter(|line| line.starts_with("-A"));
            text.extend(rules.flat_map(|line| [line, "\n"]));
        }
    }
    Ok(text)
}

/// Network and mount namespaces of a cluster, which have no name but a number.
#[derive(Default)]
pub(crate) struct Namespaces(BTreeSet<PathBuf>);

impl Namespaces {
    /// Notes those in which processes of the cluster are.
    pub(crate) fn collect(&mut self, name: &str) {
        let host = of(Path::new("/proc/self"));
        let ours = processes()
            .filter(|process| bears(process, name))
            .flat_map(|process| of(&process));
        self.0.extend(ours.filter(|ours| !host.contains(ours)));
    }

    /// What still holds one of them, one line each: a process in it, an open file, a mount.
    pub(crate) fn held(&self) -> Vec<String> {
        let mut found = Vec::new();
        for process in processes() {
            for namespace in of(&process) {
                if self.0.contains(&namespace) {
                    found.push(format!("{} in {}", process.display(), namespace.display()));
                }
            }
            let files = fs::read_dir(process.join("fd")).into_iter().flatten();
            for file in files.flatten() {
                if let Ok(target) = fs::read_link(file.path())
                    && self.0.contains(&target)
                {
                    let file = file.path();
                    found.push(format!("{} holds {}", file.display(), target.display()));
                }
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for namespace in &self.0 {
            let shown = namespace.display().to_string();
            if mounts.contains(&shown) {
                found.push(format!("mount of {shown}"));
            }
        }
        found
    }
}

/// Whether a process is in a cgroup of the cluster or was started from its folder.
fn bears(process: &Path, name: &str) -> bool {
    let group = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    let exe = fs::read_link(process.join("exe")).unwrap_or_default();
    let command = fs::read(process.join("cmdline")).unwrap_or_default();
    group.contains(name)
        || exe.to_string_lossy().contains(name)
        || String::from_utf8_lossy(&command).contains(name)
}

/// The namespaces that a process is in, such as `net:[4026531840]`.
fn of(process: &Path) -> Vec<PathBuf> {
    ["net", "mnt"]
        .iter()
        .filter_map(|kind| fs::read_link(process.join("ns").join(kind)).ok())
        .collect()
}

/// Folders of all processes but this one, zombies left out: those hold nothing.
fn processes() -> impl Iterator<Item = PathBuf> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(move |entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.bytes().all(|b| b.is_ascii_digit()) && name != own.as_str()
        })
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path.join("exe")).is_ok())
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
