//! The images that others stand on: Debian, and the pause program of pods.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use super::{Image, buildah, push};
use crate::{
    paths::{Cache, Checkout},
    proc,
    versions::{BASE_PACKAGES, DEBIAN},
};

/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "docker.io/hyprstream/pause:1";
/// Part of the identity of what is built on the base image.
pub(super) const IDENTITY: &str = concat!("debian:bookworm-slim", " of mmdebstrap, 1");
const BASE: &str = "docker.io/library/debian:bookworm-slim";

/// Whether the pause image lies in the cache.
pub(crate) fn has_pause(cache: &Cache) -> bool {
    cache.join("images/pause-1/image.tar").is_file()
}

/// Builds the pause image, unless it lies in the cache.
pub(crate) fn ensure_pause(checkout: &Checkout, cache: &Cache, log: &Path) -> Result<Image> {
    let entry = cache.ensure("images/pause-1", |dir| {
        let program = dir.join("pause");
        proc::logged(
            Command::new("go")
                .current_dir(checkout.join("deploy/local/pause"))
                .env("GOCACHE", cache.join("tmp/go-build"))
                .env("GOTOOLCHAIN", "auto")
                .env("CGO_ENABLED", "0")
                .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
                .arg(&program)
                .arg("."),
            log,
        )?;
        crate::paths::remove_all(&cache.join("tmp/go-build"))?;
        let container = proc::output(buildah(cache).args(["from", "scratch"]))?;
        let container = container.trim();
        let steps = (|| {
            proc::logged(
                buildah(cache)
                    .args(["copy", container])
                    .arg(&program)
                    .arg("/pause"),
                log,
            )?;
            proc::logged(
                buildah(cache).args([
                    "config",
                    "--entrypoint",
                    "[\"/pause\"]",
                    "--user",
                    "65535:65535",
                    container,
                ]),
                log,
            )?;
            proc::logged(buildah(cache).args(["commit", container, PAUSE]), log)
        })();
        proc::logged(buildah(cache).args(["rm", container]), log)?;
        steps?;
        push(cache, PAUSE, &dir.join("image.tar"), log)?;
        Ok(std::fs::remove_file(program)?)
    })?;
    Ok(Image {
        reference: PAUSE.to_owned(),
        archive: entry.join("image.tar"),
        fresh: false,
    })
}

/// Makes Debian's base image out of its packages, so that `FROM debian:bookworm-slim` finds it
/// without an image registry.
pub(super) fn ensure_debian(cache: &Cache, log: &Path) -> Result<()> {
    let base = cache.ensure(&format!("images/debian-{DEBIAN}"), |dir| {
        proc::logged(
            Command::new("mmdebstrap")
                .args(["--variant=minbase", &format!("--include={BASE_PACKAGES}")])
                .args(["--dpkgopt=path-exclude=/usr/share/man/*"])
                .args(["--dpkgopt=path-exclude=/usr/share/locale/*"])
                .args(["--dpkgopt=path-exclude=/usr/share/doc/*"])
                .args(["--dpkgopt=path-include=/usr/share/doc/*/copyright"])
                .arg(DEBIAN)
                .arg(dir.join("base.tar")),
            log,
        )
        .context("cannot make the Debian base image")
    })?;
    if proc::succeeds(buildah(cache).args(["inspect", "--type", "image", BASE])) {
        return Ok(());
    }
    let container = proc::output(buildah(cache).args(["from", "scratch"]))?;
    let container = container.trim();
    let steps = (|| {
        proc::logged(
            buildah(cache)
                .args(["add", container])
                .arg(base.join("base.tar"))
                .arg("/"),
            log,
        )?;
        proc::logged(
            buildah(cache).args(["config", "--cmd", "[\"/bin/sh\"]", container]),
            log,
        )?;
        proc::logged(buildah(cache).args(["commit", container, BASE]), log)
    })();
    proc::logged(buildah(cache).args(["rm", container]), log)?;
    steps
}

/// The base image itself as an archive, for pods of tests.
pub(crate) fn debian(cache: &Cache, log: &Path) -> Result<Image> {
    ensure_debian(cache, log)?;
    let entry = cache.ensure(&format!("images/debian-{DEBIAN}-image"), |dir| {
        push(cache, BASE, &dir.join("image.tar"), log)
    })?;
    Ok(Image {
        reference: BASE.to_owned(),
        archive: entry.join("image.tar"),
        fresh: false,
    })
}
