//! Builds our own programs for the images.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    libtorch,
    paths::{Cache, Checkout, remove_all},
    proc,
    ui::Step,
};

/// Programs of the image `control-plane`.
pub(crate) const CONTROL_PLANE: &[&str] = &[
    "hyprstream-operator",
    "hyprstream-gateway",
    "hyprstream-csi",
];
/// Programs of the image `registry`.
pub(crate) const REGISTRY: &[&str] = &["hyprstream-registry"];
/// Programs of the image `worker`.
pub(crate) const WORKER: &[&str] = &["hyprstream-worker"];
/// The command for people, which is in no image.
const COMMAND: &str = "hyprstream";
/// What every build without libtorch selects. What is built of it is named by `--bin` and the like:
/// cargo settles features for what is selected, and other features compile everything again.
pub(crate) const SELECTED: [&str; 3] = [
    "--workspace",
    "--exclude=hyprstream-torch",
    "--exclude=hyprstream-e2e",
];

/// Where the programs were built.
pub(crate) struct Programs {
    folder: PathBuf,
}

/// Builds all programs in release mode; cargo decides what has to be done. With `step` absent
/// those that were built last are taken as they are. The worker is the one for CPUs, which needs
/// no libtorch.
pub(crate) fn build(checkout: &Checkout, log: &Path, step: Option<&Step>) -> Result<Programs> {
    let programs = Programs {
        folder: target(checkout).join("release"),
    };
    let Some(step) = step else {
        return Ok(programs);
    };
    let mut cargo = compile(checkout);
    let all = CONTROL_PLANE.iter().chain(REGISTRY).chain(WORKER);
    for program in all.chain(&[COMMAND]) {
        cargo.args(["--bin", program]);
    }
    watched(&mut cargo, log, step)?;
    Ok(programs)
}

/// A build in release mode of what is added to it.
pub(crate) fn compile(checkout: &Checkout) -> Command {
    let mut cargo = proc::cargo(checkout.root());
    cargo
        .args(["build", "--release", "--locked", "--color", "never"])
        .args(SELECTED);
    cargo
}

/// Builds the operator alone, in release mode, and returns its path.
pub(crate) fn operator(checkout: &Checkout) -> Result<PathBuf> {
    let program = CONTROL_PLANE[0];
    proc::output(compile(checkout).args(["--bin", program]))?;
    Ok(target(checkout).join("release").join(program))
}

/// The command for people, as [`build`] left it.
pub(crate) fn command(checkout: &Checkout) -> PathBuf {
    target(checkout).join("release").join(COMMAND)
}

/// Builds the worker alone, in release mode, and returns its path.
pub(crate) fn worker(checkout: &Checkout, log: &Path, step: &Step) -> Result<PathBuf> {
    let mut cargo = compile(checkout);
    watched(cargo.args(["--bin", WORKER[0]]), log, step)?;
    Ok(target(checkout).join("release").join(WORKER[0]))
}

/// Builds the worker with libtorch, for GPUs, where [`build`] puts the one for CPUs.
pub(crate) fn gpu_worker(
    checkout: &Checkout,
    cache: &Cache,
    log: &Path,
    step: &Step,
) -> Result<Programs> {
    let mut cargo = proc::cargo(checkout.root());
    cargo
        .args(["build", "--release", "--locked", "--color", "never"])
        .args(["--workspace", "--bin", WORKER[0]])
        .args(["--features", "hyprstream-worker/torch"])
        .env("LIBTORCH", libtorch::ensure(cache.root())?);
    watched(&mut cargo, log, step)?;
    Ok(Programs {
        folder: target(checkout).join("release"),
    })
}

/// Where cargo puts what it builds.
pub(crate) fn target(checkout: &Checkout) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| checkout.join("target"), |dir| checkout.join(dir))
}

impl Programs {
    /// A folder with just these programs, for a build context.
    pub(crate) fn staged(&self, cache: &Cache, name: &str, programs: &[&str]) -> Result<PathBuf> {
        cache.replace(&format!("staged/{name}"), |dir| {
            for program in programs {
                let from = self.folder.join(program);
                fs::copy(&from, dir.join(program))
                    .with_context(|| format!("cannot copy {}", from.display()))?;
            }
            Ok(())
        })
    }
}

/// The folder with `torch` and `nvidia`, as a copy at `to` that shares its files where it can.
pub(crate) fn place_libtorch(cache: &Cache, to: &Path) -> Result<()> {
    let torch = libtorch::ensure(cache.root())?;
    let root = torch.parent().context("libtorch lies nowhere")?;
    remove_all(to)?;
    fs::create_dir_all(to)?;
    link_copy(&torch, to)?;
    link_copy(&root.join("nvidia"), to)
}

fn link_copy(from: &Path, into: &Path) -> Result<()> {
    let copy = |how: &str| {
        proc::output(Command::new("cp").args(["-a", how]).arg(from).arg(into)).map(drop)
    };
    copy("--link").or_else(|_| copy("--reflink=auto"))
}

/// Runs cargo, shows what it compiles, and keeps its output.
fn watched(cargo: &mut Command, log: &Path, step: &Step) -> Result<()> {
    let mut file = proc::open_log(log)?;
    writeln!(file, "$ cargo build --release")?;
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut compiled = 0;
    for line in BufReader::new(child.stderr.take().context("cargo has no output")?).lines() {
        let line = line?;
        writeln!(file, "{line}")?;
        if let Some(name) = line.trim_start().strip_prefix("Compiling ") {
            compiled += 1;
            let name = name.split(" (").next().unwrap_or(name);
            step.amount(&format!("{compiled} crates, {name}"));
        } else if line.contains("waiting for file lock") {
            step.amount("waits for another cargo");
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo build ended with {status}\n{}", proc::tail_of(log));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every dependency with its features, as cargo settles them for what is selected.
    fn settled(selected: &[&str]) -> BTreeSet<String> {
        let checkout = Checkout::find().expect("the tests run in a checkout");
        let tree = proc::output(
            proc::cargo(checkout.root())
                .args(["tree", "--locked", "--prefix=none", "--format={p} [{f}]"])
                .args(selected),
        );
        tree.expect("cargo knows the workspace")
            .lines()
            .map(|line| line.trim_end_matches(" (*)").to_owned())
            .collect()
    }

    #[test]
    fn programs_have_the_features_that_the_tests_compiled() {
        let tests = settled(&["--workspace"]);
        let programs = settled(&[&SELECTED[..], &["--edges=no-dev"]].concat());
        let other: Vec<_> = programs.difference(&tests).collect();
        assert!(
            other.is_empty(),
            "these are compiled twice; name their features in crates/features: {other:?}"
        );
    }
}
