//! What needs no cluster.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Suites, shown};
use crate::{codegen, components, deps, libtorch, ui::Step, versions, weights, wheels};

/// What the tests need of other people's.
struct Tools {
    libtorch: PathBuf,
    smollm2: PathBuf,
    gemma3: PathBuf,
}

/// What else there is of our own code.
const FEATURES: &str = "--features=hyprstream-worker/torch,hyprstream-e2e/cluster";

impl Suites<'_> {
    pub(super) fn fast(&self) -> Result<()> {
        let tools = self.tools()?;
        self.say("format and generated files");
        shown(self.cargo().args(["fmt", "--all", "--check"]))
            .context("run `cargo fmt --all` (rustup component add rustfmt)")?;
        codegen::run(self.checkout, true)?;
        // A workspace of its own, which nothing else here builds.
        shown(
            self.cargo()
                .args(["tree", "--quiet", "--locked", "--depth=0"])
                .args(["--manifest-path", "fuzz/Cargo.toml"]),
        )
        .context("run `cargo update --workspace --manifest-path fuzz/Cargo.toml`")?;
        self.say("fences between crates, licenses, sources of dependencies");
        self.dependencies()?;
        self.say("the chart renders with every set of values");
        self.chart(None)?;
        self.say("clippy");
        // In release mode, so that what it shares with the tests is built once.
        shown(
            self.cargo_with(&tools)
                .args(["clippy", "--release", "--locked", "--workspace", FEATURES])
                .args(["--all-targets", "--", "-D", "warnings"]),
        )
        .context("see the lines above (rustup component add clippy)")?;
        self.tests(&tools)
    }

    fn tools(&self) -> Result<Tools> {
        let step = Step::new("what the machine must have".to_owned());
        let needed = [&versions::CSI_SANITY, &versions::HELM];
        let needs_go = !components::missing(self.cache, &needed).is_empty();
        deps::ensure(self.cache, needs_go, &step)?;
        let log = self.cache.join("log/components.log");
        components::ensure(self.checkout, self.cache, &needed, &log, &step)?;
        wheels::ensure_deny(self.cache, &log)?;
        let libtorch = libtorch::ensure(self.cache.root())?;
        let log = self.cache.join("log/sample.log");
        let smollm2 = weights::ensure_smollm2(self.cache, &log, &step)?;
        let gemma3 = weights::ensure_gemma3(self.cache, &log, &step)?;
        step.done("");
        Ok(Tools {
            libtorch,
            smollm2,
            gemma3,
        })
    }

    fn tests(&self, tools: &Tools) -> Result<()> {
        self.say("unit, property, integration and golden tests");
        shown(self.cargo_test(tools).env(
            "HYPRSTREAM_CSI_SANITY",
            components::program(self.cache, &versions::CSI_SANITY, "csi-sanity"),
        ))?;
        self.say("tokenizers and templates of real models");
        shown(
            self.cargo_test(tools)
                .args(["--test", "text", "--", "--ignored"]),
        )
    }

    /// Tests of the whole workspace, whichever of them: see `programs::SELECTED`.
    fn cargo_test(&self, tools: &Tools) -> Command {
        let mut cargo = self.cargo_with(tools);
        cargo.args(["test", "--release", "--locked", "--workspace"]);
        cargo
    }

    fn cargo_with(&self, tools: &Tools) -> Command {
        let mut cargo = self.cargo();
        cargo
            .env("LIBTORCH", &tools.libtorch)
            .env("LD_LIBRARY_PATH", tools.libtorch.join("lib"))
            .env("HYPRSTREAM_SMOLLM2", &tools.smollm2)
            .env("HYPRSTREAM_GEMMA3", &tools.gemma3);
        cargo
    }

    /// What `deny.toml` says of the dependencies. Known vulnerabilities are left out: their list
    /// is fetched from GitHub, and a test must not turn red when nobody changed anything.
    fn dependencies(&self) -> Result<()> {
        shown(
            Command::new(wheels::deny(self.cache))
                .current_dir(self.checkout.root())
                .args(["--log-level", "error", "--locked"])
                .args(["check", "bans", "licenses", "sources"]),
        )
    }

    /// Lints and renders the chart; with a kubeconfig its API server looks at what came out.
    pub(super) fn chart(&self, kubeconfig: Option<&Path>) -> Result<()> {
        let programs = [&versions::HELM, &versions::KUBERNETES]
            .map(|component| components::folder(self.cache, component));
        let mut test = Command::new("sh");
        test.arg(self.checkout.join("charts/test.sh"))
            .env("PATH", before_path(&programs)?)
            .env_remove("KUBECONFIG");
        if let Some(kubeconfig) = kubeconfig {
            test.env("KUBECONFIG", kubeconfig);
        }
        shown(&mut test)
    }
}

/// The PATH with these folders before all others.
fn before_path(folders: &[PathBuf]) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = folders.iter().cloned().chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("a folder of the cache has a colon in its name")
}
