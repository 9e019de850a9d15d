//! What is kept of a run.

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::table::Verdict;
use crate::{
    paths::{Checkout, write_atomically},
    versions::{LLAMA_CPP, VLLM},
};

/// Processes that may be about before a machine counts as busy.
const QUIET_LOAD: f64 = 0.5;

/// The machine, notes and all that our worker told.
pub(super) struct Record {
    started: u64,
    quick: bool,
    threads: usize,
    load_before: f64,
    notes: Vec<String>,
    reports: Vec<Value>,
}

impl Record {
    /// Notes how busy the machine is before anything is measured.
    pub(super) fn begin(threads: usize, quick: bool) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut record = Self {
            started: since.map_or(0, |since| since.as_secs()),
            quick,
            threads,
            load_before: load(),
            notes: Vec::new(),
            reports: Vec::new(),
        };
        if quick {
            record.note("The sizes were those of --quick: the figures mean nothing.".to_owned());
        }
        if record.load_before > QUIET_LOAD {
            record.note(format!(
                "The machine was busy before it began (load {:.1}): the figures mean little.",
                record.load_before
            ));
        }
        record
    }

    /// Keeps a remark.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// All remarks.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Keeps what our worker told of a row.
    pub(super) fn report(&mut self, row: &str, report: &Value) {
        self.reports.push(json!({"work": row, "report": report}));
    }

    /// Writes all of it and returns where.
    pub(super) fn finish(&self, checkout: &Checkout, verdicts: &[Verdict]) -> Result<PathBuf> {
        let folder = checkout.join(".local/bench");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.started));
        let all = json!({
            "started_unix_seconds": self.started,
            "quick": self.quick,
            "machine": {
                "processor": processor(),
                "processors": std::thread::available_parallelism().map_or(0, usize::from),
                "threads": self.threads,
                "load_before": self.load_before,
            },
            "versions": {"llama_cpp_python": LLAMA_CPP.version, "vllm": VLLM},
            "notes": self.notes,
            "rows": verdicts,
            "reports": self.reports,
        });
        write_atomically(&path, serde_json::to_string_pretty(&all)? + "\n")?;
        Ok(path)
    }
}

/// Processes that ran or wanted to, over the last minute.
fn load() -> f64 {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0.0)
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
