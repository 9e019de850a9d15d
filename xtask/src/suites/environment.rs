//! The clients' own environments: a virtual one of Python, and npm's packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    paths::{Cache, remove_all},
    proc,
};

/// Python with the packages of `requirements.txt`, made once per content of that file.
pub(super) fn python(cache: &Cache, requirements: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("suites/python-{}", digest(&[requirements])?));
    let python = folder.join("bin/python");
    marked(cache, &folder, |log| {
        // A virtual environment cannot be moved, so it is marked instead of renamed.
        proc::logged(
            Command::new("python3").args(["-m", "venv"]).arg(&folder),
            log,
        )
        .context("cannot make a Python environment; try: apt-get install -y python3-venv")?;
        proc::logged(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "-r"])
                .arg(requirements),
            log,
        )
    })?;
    Ok(python)
}

/// A folder whose `node_modules` holds the packages that `suites` locks.
pub(super) fn node(cache: &Cache, suites: &Path) -> Result<PathBuf> {
    let files = ["package.json", "package-lock.json", ".npmrc"];
    let paths = files.map(|name| suites.join(name));
    let inputs = [paths[0].as_path(), paths[1].as_path()];
    let folder = cache.join(format!("suites/node-{}", digest(&inputs)?));
    marked(cache, &folder, |log| {
        fs::create_dir_all(&folder)?;
        for (name, path) in files.iter().zip(&paths) {
            fs::copy(path, folder.join(name))
                .with_context(|| format!("cannot copy {}", path.display()))?;
        }
        proc::logged(
            Command::new("npm")
                .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
                .current_dir(&folder),
            log,
        )
        .context("cannot install the JavaScript client; try: apt-get install -y nodejs npm")
    })?;
    Ok(folder)
}

/// Makes `folder` with `make`, unless it is there and marked as complete.
fn marked(cache: &Cache, folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mark = folder.join("complete");
    if mark.is_file() {
        return Ok(());
    }
    let _lock = cache.lock("suites")?;
    if mark.is_file() {
        return Ok(());
    }
    remove_all(folder)?;
    make(&cache.join("log/suites.log"))?;
    Ok(fs::write(mark, "")?)
}

/// A short name for what the files hold.
fn digest(files: &[&Path]) -> Result<String> {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hex::encode(&digest.finalize()[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_named_after_its_requirements() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("requirements.txt");
        fs::write(&file, "a==1\n").unwrap();
        let before = digest(&[&file]).unwrap();
        fs::write(&file, "a==2\n").unwrap();
        assert_ne!(digest(&[&file]).unwrap(), before);
        assert_eq!(before.len(), 16);
    }
}
