//! The project's own images.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::{Image, Recipe, build};
use crate::{
    paths::{Cache, Checkout},
    programs::{CONTROL_PLANE, Programs, REGISTRY, WORKER},
};

/// The images that the chart names.
pub(crate) struct ProjectImages {
    /// Operator, gateway and node plugin.
    pub(crate) control_plane: Image,
    /// Registry.
    pub(crate) registry: Image,
    /// CPU worker.
    pub(crate) worker: Image,
}

impl ProjectImages {
    /// All of them.
    pub(crate) fn all(&self) -> [Image; 3] {
        [
            self.control_plane.clone(),
            self.registry.clone(),
            self.worker.clone(),
        ]
    }
}

/// Builds the images of `Dockerfile` out of built programs.
pub(crate) fn project(
    checkout: &Checkout,
    cache: &Cache,
    programs: &Programs,
    log: &Path,
    progress: &dyn Fn(&str),
) -> Result<ProjectImages> {
    // The staged programs must stay as they are while an image is built from them.
    let _lock = cache.lock("project-images")?;
    let one = |name: &str, binaries: &[&str]| {
        progress(name);
        let bin = programs.staged(cache, name, binaries)?;
        build(
            checkout,
            cache,
            &Recipe {
                name,
                dockerfile: "Dockerfile",
                target: Some(name),
                keep_layers: true,
                contexts: &[("bin", bin)],
                fixed_contexts: &[],
            },
            log,
        )
    };
    Ok(ProjectImages {
        control_plane: one("control-plane", CONTROL_PLANE)?,
        registry: one("registry", REGISTRY)?,
        worker: one("worker", WORKER)?,
    })
}

/// Builds the image of `Dockerfile.cuda`, some gigabytes.
pub(crate) fn cuda(
    checkout: &Checkout,
    cache: &Cache,
    programs: &Programs,
    log: &Path,
) -> Result<Image> {
    let _lock = cache.lock("project-images")?;
    let bin = programs.staged(cache, "worker-cuda", WORKER)?;
    let program = fs::read(bin.join(WORKER[0])).context("cannot read the worker")?;
    // Every build of this checkout puts its worker in the same place.
    let library = b"libtorch_cpu.so\0";
    if !program.windows(library.len()).any(|part| part == library) {
        bail!("another build took the place of the worker with libtorch: run this again alone");
    }
    build(
        checkout,
        cache,
        &Recipe {
            name: "worker-cuda",
            dockerfile: "Dockerfile.cuda",
            target: None,
            // They would be three times as large as the image.
            keep_layers: false,
            contexts: &[("bin", bin)],
            fixed_contexts: &[],
        },
        log,
    )
}
