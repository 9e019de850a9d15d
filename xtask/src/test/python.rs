//! Python with packages, in environments of their own.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    paths::{Cache, remove_all},
    proc,
};

/// OpenAI's client.
const OPENAI: &str = "openai>=3,<4";

/// Python with OpenAI's client.
pub(super) fn openai(cache: &Cache) -> Result<PathBuf> {
    environment(cache, "python-openai-3", &[OPENAI])
}

/// Python with packages, made once for each name.
fn environment(cache: &Cache, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = cache.join(name);
    let python = folder.join("bin/python");
    if folder.join("complete").is_file() {
        return Ok(python);
    }
    let _lock = cache.lock(name)?;
    let log = cache.join("log/python.log");
    remove_all(&folder)?;
    // A virtual environment cannot be moved, so it is marked instead of renamed.
    proc::logged(
        Command::new("python3").args(["-m", "venv"]).arg(&folder),
        &log,
    )
    .context("cannot make a Python environment; try: apt-get install -y python3-venv")?;
    proc::logged(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(packages),
        &log,
    )?;
    std::fs::write(folder.join("complete"), "")?;
    Ok(python)
}
