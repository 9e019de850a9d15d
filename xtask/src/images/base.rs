//! The images that others stand on: Debian, and the pause program of pods; and that of Kueue, which is
//! one program too.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use super::{Image, buildah, in_container, push};
use crate::{
    components,
    paths::{Cache, Checkout},
    proc,
    versions::{BASE_PACKAGES, DEBIAN, KUEUE},
};

/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "docker.io/hyprstream/pause:1";
/// Part of the identity of what is built on the base image.
pub(super) const IDENTITY: &str = concat!("debian:bookworm-slim", " of mmdebstrap, 1");
/// The name under which the Dockerfiles know it.
pub(super) const BASE: &str = "docker.io/library/debian:bookworm-slim";

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
        of_program(cache, PAUSE, (&program, "/pause"), dir, log)?;
        Ok(std::fs::remove_file(program)?)
    })?;
    Ok(Image {
        reference: PAUSE.to_owned(),
        archive: entry.join("image.tar"),
        fresh: false,
    })
}

/// Builds the image of Kueue, which must have been built, unless it lies in the cache.
pub(crate) fn ensure_kueue(cache: &Cache, log: &Path) -> Result<Image> {
    let reference = format!("docker.io/hyprstream/kueue:{}", KUEUE.version);
    let entry = format!("images/kueue-{}", KUEUE.version);
    let entry = cache.ensure(&entry, |dir| {
        let program = components::program(cache, &KUEUE, "kueue");
        // As its chart calls it.
        of_program(cache, &reference, (&program, "/manager"), dir, log)
    })?;
    Ok(Image {
        reference,
        archive: entry.join("image.tar"),
        fresh: false,
    })
}

/// Makes `image.tar` in `dir`, an image of nothing but a program that needs no library, which stands
/// in it under the path beside it.
fn of_program(
    cache: &Cache,
    reference: &str,
    (program, place): (&Path, &str),
    dir: &Path,
    log: &Path,
) -> Result<()> {
    in_container(cache, "scratch", |container| {
        let step = |arguments: &[&str]| proc::logged(buildah(cache).args(arguments), log);
        step(&["copy", container, &program.display().to_string(), place])?;
        let entrypoint = format!("[{place:?}]");
        step(&[
            "config",
            "--entrypoint",
            &entrypoint,
            "--user",
            "65535:65535",
            container,
        ])?;
        step(&["commit", container, reference])
    })?;
    push(cache, reference, &dir.join("image.tar"), log)
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
    in_container(cache, "scratch", |container| {
        let step = |arguments: &[&str]| proc::logged(buildah(cache).args(arguments), log);
        let tar = base.join("base.tar").display().to_string();
        step(&["add", container, &tar, "/"])?;
        step(&["config", "--cmd", "[\"/bin/sh\"]", container])?;
        step(&["commit", container, BASE])
    })
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
