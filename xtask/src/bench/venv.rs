//! Python environments of the peers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    paths::{Cache, remove_all},
    proc,
};

/// The Python of an environment in the cache, filled by `fill` on first use. `fill` is given a
/// function that runs pip in it.
///
/// An environment cannot be moved, so it is marked when it is complete instead of renamed.
pub(super) fn ensure(
    cache: &Cache,
    name: &str,
    log: &Path,
    fill: impl FnOnce(&dyn Fn(&[&str]) -> Result<()>) -> Result<()>,
) -> Result<PathBuf> {
    let folder = cache.join(name);
    let python = folder.join("bin/python");
    let _lock = cache.lock(name)?;
    if folder.join("complete").is_file() {
        return Ok(python);
    }
    remove_all(&folder)?;
    proc::logged(
        Command::new("python3").args(["-m", "venv"]).arg(&folder),
        log,
    )
    .context("cannot make a Python environment; try: apt-get install -y python3-venv")?;
    fill(&|arguments| {
        proc::logged(
            Command::new(&python)
                .args(["-m", "pip", "--disable-pip-version-check"])
                .args(arguments),
            log,
        )
    })?;
    fs::write(folder.join("complete"), "")?;
    Ok(python)
}
