//! Runs every test of the project.

mod end_to_end;
mod fast;
mod python;

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{
    paths::{Cache, Checkout},
    proc,
    suites::SuitesArgs,
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Leaves out what needs a cluster.
    #[arg(long)]
    pub(crate) fast: bool,
    /// Only the end-to-end tests.
    #[arg(long, conflicts_with = "fast")]
    pub(crate) e2e: bool,
    /// Leaves the cluster of the end-to-end tests running, to look at.
    #[arg(long, conflicts_with = "fast")]
    pub(crate) keep: bool,
    /// Only the end-to-end tests that take long.
    #[arg(long, requires = "e2e")]
    pub(crate) soak: bool,
    /// Only the end-to-end tests whose name holds this.
    #[arg(requires = "e2e")]
    pub(crate) filter: Option<String>,
}

/// Runs the suites in order and stops at the first that fails.
pub(crate) fn run(checkout: &Checkout, cache: &Cache, args: &TestArgs) -> Result<()> {
    let suites = Suites {
        checkout,
        cache,
        started: Instant::now(),
    };
    if !args.e2e {
        suites.fast()?;
    }
    if !args.fast && !args.e2e {
        suites.say("the clients that people use");
        let libraries = crate::libtorch::ensure(cache.root())?.join("lib");
        let args = SuitesArgs::after_tests(libraries);
        crate::suites::run(checkout, cache, &args)?;
    }
    if !args.fast {
        suites.end_to_end(args)?;
    }
    println!(
        "\nAll passed after {:.0} s.",
        suites.started.elapsed().as_secs_f64()
    );
    Ok(())
}

struct Suites<'a> {
    checkout: &'a Checkout,
    cache: &'a Cache,
    started: Instant,
}

impl Suites<'_> {
    fn say(&self, what: &str) {
        println!(
            "\n== {what} ({:.0} s)",
            self.started.elapsed().as_secs_f64()
        );
    }

    fn cargo(&self) -> Command {
        proc::cargo(self.checkout.root())
    }
}

/// Runs a program whose output the user sees.
fn shown(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        let program = Path::new(command.get_program());
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}
