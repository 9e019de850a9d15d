//! Commands with their output.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// What a command printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its standard output, without the last line break.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end, whatever its exit status.
    pub fn of(command: &mut Command) -> Result<Self> {
        let done = command
            .output()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self {
            success: done.status.success(),
            stdout: String::from_utf8_lossy(&done.stdout).trim_end().to_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).trim_end().to_owned(),
        })
    }
}

/// Standard output of a command that must succeed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = Output::of(command)?;
    if !output.success {
        bail!("{command:?} failed:\n{}\n{}", output.stdout, output.stderr);
    }
    Ok(output.stdout)
}
