//! A long time of mixed load on one worker, and what it leaves behind.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::{MODEL_NAME, Stage, Target};
use crate::paths::{Cache, Checkout};

/// How long, and where the summary goes.
#[derive(Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// Minutes of load.
    #[arg(long, default_value = "60")]
    minutes: f64,
    /// Requests in flight at once.
    #[arg(long, default_value = "8")]
    clients: u32,
    /// Takes the programs as they were built last.
    #[arg(long)]
    no_build: bool,
    /// Runs against the model that computes nothing.
    #[arg(long)]
    fake: bool,
    /// Also writes the summary, a table in Markdown, to this file.
    #[arg(long)]
    summary: Option<PathBuf>,
}

/// Runs `worker/suites/soak.py` on a worker of its own.
///
/// # Errors
/// Memory or cache blocks grew, a request was stuck or answered with an error of the server.
pub(crate) fn run(checkout: &Checkout, cache: &Cache, args: &SoakArgs) -> Result<()> {
    let stage = Stage::prepare(checkout, cache, !args.no_build, None)?;
    // Memory of the cache is taken as it is first written: a small one is whole after minutes, so
    // that what grows later is something else. It is also full most of the time.
    let (target, name, more) = if args.fake {
        (Target::Fake, super::FAKE_NAME, &[][..])
    } else {
        let cache = &["--kv-cache-bytes", "536870912"];
        (Target::Model, MODEL_NAME, &cache[..])
    };
    let worker = stage.start(target, more)?;
    let mut python = Command::new(&stage.python);
    python
        .current_dir(&stage.folder)
        .arg("soak.py")
        .args(["--minutes", &args.minutes.to_string()])
        .args(["--clients", &args.clients.to_string()])
        .args(["--pid", &worker.pid().to_string()])
        .env("SUITE_URL", worker.url())
        .env("SUITE_MODEL", name)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONUNBUFFERED", "1")
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1");
    if let Some(summary) = &args.summary {
        python.arg("--summary").arg(std::path::absolute(summary)?);
    }
    let status = python.status().context("cannot start the load")?;
    worker.check()?;
    worker.stop()?;
    if !status.success() {
        bail!("the soak test failed: {status}");
    }
    Ok(())
}
