//! What the supervisor tells others, in `state.json`.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, process::Command};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::paths::{remove_all, write_atomically};

/// The state of a cluster as its supervisor wrote it last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// Process of the supervisor.
    pub(crate) supervisor: u32,
    /// When it started, in clock ticks since boot, so that a reused number is not taken for it.
    pub(crate) started: u64,
    /// What is being done, in words.
    pub(crate) phase: String,
    /// Whether everything was started and the nodes were ready.
    pub(crate) ready: bool,
    /// Number of nodes that were ready.
    pub(crate) ready_nodes: u8,
    /// Why it gave up.
    pub(crate) error: Option<String>,
    /// Namespaces by place: `control-plane`, `node-1` and so on.
    pub(crate) namespaces: BTreeMap<String, Place>,
    /// Programs by name.
    pub(crate) components: BTreeMap<String, ComponentState>,
}

/// Paths of a place's namespaces, which live as long as the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Network namespace.
    pub(crate) net: String,
    /// Mount namespace.
    pub(crate) mount: String,
}

/// One program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ComponentState {
    /// Its process, if it runs.
    pub(crate) pid: Option<u32>,
    /// Start of the process in clock ticks since boot.
    pub(crate) started: u64,
    /// How often it ended and was started again.
    pub(crate) restarts: u32,
    /// How it ended last.
    pub(crate) last_exit: Option<String>,
}

impl Place {
    /// Begins a program in these namespaces; append the program and its arguments.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.net))
            .arg(format!("--mount={}", self.mount))
            .arg("--");
        command
    }
}

impl State {
    /// Reads the state in a cluster's folder, if there is one.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join("state.json")).ok()?).ok()
    }

    /// Writes it.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        write_atomically(&dir.join("state.json"), serde_json::to_vec_pretty(self)?)
    }

    /// Removes it.
    pub(crate) fn forget(dir: &Path) -> Result<()> {
        remove_all(&dir.join("state.json"))
    }

    /// The programs that do not run, in words; empty if all do.
    pub(crate) fn failing(&self) -> String {
        let mut text = String::new();
        for (name, component) in &self.components {
            if component.pid.is_none() {
                let exit = component.last_exit.as_deref().unwrap_or("was not started");
                let _ = write!(text, "\n    {name}: {exit}");
            }
        }
        text
    }
}

/// When a process started, in clock ticks since boot.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields count from behind it.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}
