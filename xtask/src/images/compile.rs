//! The Dockerfiles from their first line on, stages that compile included.
//!
//! The images of a cluster are made of programs that are built already. This is the other way, the
//! one of someone who has nothing but Docker and the checkout.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{authorities, base, buildah, in_container};
use crate::{
    paths::{Cache, Checkout},
    proc,
    programs::{self, CONTROL_PLANE, REGISTRY, WORKER},
};

/// A stage of a Dockerfile, and the programs of which the image must hold a working one.
struct Stage {
    dockerfile: &'static str,
    target: Option<&'static str>,
    programs: &'static [&'static str],
    /// Whether libtorch for CPUs takes the place of the libraries, which are not to be had here.
    cpu_libraries: bool,
}

const STAGES: [Stage; 5] = [
    Stage {
        dockerfile: "Dockerfile",
        target: Some("worker"),
        programs: WORKER,
        cpu_libraries: false,
    },
    Stage {
        dockerfile: "Dockerfile",
        target: Some("control-plane"),
        programs: CONTROL_PLANE,
        cpu_libraries: false,
    },
    Stage {
        dockerfile: "Dockerfile",
        target: Some("registry"),
        programs: REGISTRY,
        cpu_libraries: false,
    },
    // Its libraries, some gigabytes, are what `images --cuda` builds.
    Stage {
        dockerfile: "Dockerfile.cuda",
        target: Some("bin"),
        programs: &[],
        cpu_libraries: false,
    },
    Stage {
        dockerfile: "Dockerfile.rocm",
        target: None,
        programs: WORKER,
        cpu_libraries: true,
    },
];

/// Packages that the image of Rust has beyond Debian's.
const RUST_PACKAGES: &str = "ca-certificates gcc git libc6-dev make";

/// Builds every stage that compiles and those that follow, and starts what came out of them. Of
/// what it built nothing stays. Takes a release build or two, and 10 GB of disk meanwhile.
pub(crate) fn compile(
    checkout: &Checkout,
    cache: &Cache,
    log: &Path,
    progress: &dyn Fn(&str),
) -> Result<()> {
    let _lock = cache.lock("compile-stages")?;
    base::ensure_debian(cache, log)?;
    progress("an image of Rust");
    let rust = rust(checkout, cache, log)?;
    let mut built = vec![rust.clone()];
    let result = STAGES.iter().try_for_each(|stage| {
        let target = stage.target.unwrap_or("all");
        progress(&format!("{} {target}", stage.dockerfile));
        let tag = format!(
            "docker.io/hyprstream/compiled:{}-{target}",
            stage.dockerfile.to_lowercase()
        );
        built.push(tag.clone());
        build(checkout, cache, stage, &rust, &tag, log)
            .with_context(|| format!("stage {target} of {}", stage.dockerfile))?;
        start(cache, stage, &tag, log)
            .with_context(|| format!("the image of {target} of {}", stage.dockerfile))
    });
    built.reverse();
    for image in built {
        let _ = proc::output(buildah(cache).args(["rmi", "--force", &image]));
    }
    result
}

fn build(
    checkout: &Checkout,
    cache: &Cache,
    stage: &Stage,
    rust: &str,
    tag: &str,
    log: &Path,
) -> Result<()> {
    let mut command = buildah(cache);
    // With layers, so that stages that begin alike are run once.
    command
        .args(["build", "--pull-never", "--force-rm", "--layers=true"])
        .args(["--network=host", "--tag", tag])
        .args(["--build-arg", &format!("RUST_IMAGE={rust}")])
        .args(authorities())
        .arg("--file")
        .arg(checkout.join(stage.dockerfile));
    if let Some(target) = stage.target {
        command.args(["--target", target]);
    }
    if stage.cpu_libraries {
        let libraries = cpu_libraries(cache)?;
        command
            .arg("--build-context")
            .arg(format!("libraries={}", libraries.display()));
    }
    proc::logged(command.arg(checkout.root()), log)
}

/// Asks each program of an image for its version: it and the libraries that it needs are there.
fn start(cache: &Cache, stage: &Stage, tag: &str, log: &Path) -> Result<()> {
    if stage.programs.is_empty() {
        return Ok(());
    }
    in_container(cache, tag, |container| {
        stage.programs.iter().try_for_each(|program| {
            let program = format!("/usr/local/bin/{program}");
            proc::logged(
                buildah(cache).args(["run", container, "--", &program, "--version"]),
                log,
            )
        })
    })
}

/// A folder as the stage `libraries` leaves it.
fn cpu_libraries(cache: &Cache) -> Result<PathBuf> {
    cache.replace("staged/cpu-libraries", |dir| {
        programs::place_libtorch(cache, &dir.join("libtorch"))
    })
}

/// The image of Rust: Debian with the toolchain of this machine.
fn rust(checkout: &Checkout, cache: &Cache, log: &Path) -> Result<String> {
    let rustc = |argument: &[&str]| {
        let mut rustc = Command::new("rustc");
        proc::output(rustc.current_dir(checkout.root()).args(argument))
    };
    let toolchain = rustc(&["--print", "sysroot"])?;
    let toolchain = Path::new(toolchain.trim());
    let version = rustc(&["--version"])?;
    let version = version.split(' ').nth(1).context("rustc has no version")?;
    let tag = format!("docker.io/hyprstream/rust:{version}");
    in_container(cache, base::BASE, |container| {
        let step = |arguments: &[&str]| proc::logged(buildah(cache).args(arguments), log);
        // The documentation, most of a toolchain, stays out.
        for part in ["bin", "lib"] {
            let from = toolchain.join(part);
            let to = format!("/usr/local/rust/{part}");
            step(&["copy", container, &from.display().to_string(), &to])?;
        }
        let install = format!(
            "apt-get update && apt-get install -y --no-install-recommends {RUST_PACKAGES} && \
             rm -rf /var/lib/apt/lists/*"
        );
        step(&[
            "run",
            "--network",
            "host",
            container,
            "--",
            "sh",
            "-c",
            &install,
        ])?;
        let path =
            "PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        step(&["config", "--env", path, container])?;
        step(&["commit", container, &tag])
    })?;
    Ok(tag)
}
