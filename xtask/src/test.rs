//! Runs every test of the project.

use anyhow::Result;

use crate::{
    codegen,
    paths::{Cache, Checkout},
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Leaves out what needs a cluster.
    #[arg(long)]
    pub(crate) fast: bool,
}

/// Runs the suites in order and stops at the first that fails.
pub(crate) fn run(checkout: &Checkout, _cache: &Cache, _args: &TestArgs) -> Result<()> {
    codegen::run(checkout, true)
}
