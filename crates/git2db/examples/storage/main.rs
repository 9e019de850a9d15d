//! Measures clones, checkouts and worktrees beside git and git-lfs: `cargo xtask bench --storage`.
//!
//! Both sides run on this machine, in turn, against one server on the loopback interface. What git
//! keeps in memory of the disk is warm for both.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod clone;
mod process;
mod push;
mod small;
mod worktrees;

#[allow(clippy::wildcard_imports)]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

/// One figure of ours and git's.
pub(crate) struct Row {
    pub what: String,
    pub ours: String,
    pub git: String,
    pub ratio: Option<f64>,
    /// Ours, in seconds or bytes.
    pub value: f64,
    /// Where there is one.
    pub goal: Option<Goal>,
}

/// What a figure must not be above.
pub(crate) struct Goal {
    /// As it is printed.
    text: String,
    is_met: bool,
}

impl Row {
    /// The same with a goal for ours / theirs.
    pub(crate) fn at_most_of_git(mut self, ratio: f64) -> Self {
        self.goal = Some(Goal {
            text: format!("{ratio} of git's"),
            is_met: self.ratio.is_some_and(|found| found <= ratio),
        });
        self
    }

    /// The same with a goal for ours, in seconds or bytes; `text` says it.
    pub(crate) fn at_most(mut self, limit: f64, text: &str) -> Self {
        self.goal = Some(Goal {
            text: text.to_owned(),
            is_met: self.value <= limit,
        });
        self
    }
}

/// What is measured how often, and where.
pub(crate) struct Plan {
    pub folder: PathBuf,
    pub rounds: usize,
    pub files: usize,
    pub weight_bytes: usize,
    /// Our registry's program, to which adapters are pushed.
    pub registry: Option<PathBuf>,
}

/// One part of the table.
type Measure = fn(&Plan) -> Vec<Row>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "side") {
        if words.get(1).is_some_and(|word| word.starts_with("push")) {
            return push::side(&words[1..]);
        }
        return clone::side(&words[1..]);
    }
    let quick = words.iter().any(|word| word == "--quick");
    let only = words.iter().find_map(|word| word.strip_prefix("--only="));
    let registry = words
        .iter()
        .find_map(|word| word.strip_prefix("--registry="));
    let folder = words.iter().find(|word| !word.starts_with('-'));
    let above = folder.map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(above).unwrap();
    let plan = Plan {
        folder: dir.path().canonicalize().unwrap(),
        rounds: if quick || only.is_some() { 1 } else { 3 },
        files: if quick { 2_000 } else { 100_000 },
        weight_bytes: if quick { 1 << 20 } else { 100 << 20 },
        registry: registry.map(|path| Path::new(path).canonicalize().unwrap()),
    };
    println!("| What | Ours | git and git-lfs | Ours / theirs | Goal |\n|---|---|---|---|---|");
    let (mut goals, mut met) = (0, 0);
    let parts: [(&str, Measure); 4] = [
        ("small", small::measure),
        ("worktrees", worktrees::measure),
        ("clone", clone::measure),
        ("push", push::measure),
    ];
    for (name, measure) in parts {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        for row in measure(&plan) {
            let ratio = row
                .ratio
                .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let verdict = row.goal.map_or_else(String::new, |goal| {
                goals += 1;
                met += usize::from(goal.is_met);
                let verdict = if goal.is_met { "met" } else { "**missed**" };
                format!("{}: {verdict}", goal.text)
            });
            println!(
                "| {} | {} | {} | {ratio} | {verdict} |",
                row.what, row.ours, row.git
            );
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    if quick {
        println!("\nThe goals are for the sizes of a run without --quick.");
    }
    println!(
        "\n{met} of {goals} goals met. Load at the end: {}",
        load.trim()
    );
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A row of seconds.
pub(crate) fn seconds(what: &str, ours: Vec<f64>, git: Vec<f64>) -> Row {
    let (ours, git) = (median(ours), median(git));
    Row {
        what: what.to_owned(),
        ours: format!("{ours:.2} s"),
        git: format!("{git:.2} s"),
        ratio: Some(ours / git),
        value: ours,
        goal: None,
    }
}

/// A row of bytes.
pub(crate) fn mebibytes(what: &str, ours: u64, git: u64) -> Row {
    let text = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    Row {
        what: what.to_owned(),
        ours: text(ours),
        git: text(git),
        ratio: Some(ours as f64 / git as f64),
        value: ours as f64,
        goal: None,
    }
}

/// Blocks that files and folders take, each inode once and none of other file systems, in bytes.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    let output = std::process::Command::new("du")
        .args(["-x", "-s", "-B1"])
        .arg(folder)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
