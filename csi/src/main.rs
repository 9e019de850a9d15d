//! The CSI node plugin.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use hyprstream_csi::args::Args;
use tokio::signal::unix::{SignalKind, signal};

/// Fetches, mounts and file walks block; each has a thread of its own while it does.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyprstream-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let args = Args::parse();
    hyprstream_telemetry::init_logs(&args.log, args.log_format).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .context("could not start threads")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("could not watch signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not watch signals")?;
        hyprstream_csi::run(args, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to end; mounts stay");
        })
        .await
        .map_err(anyhow::Error::from)
    });
    // A fetch under way is not waited for: it is continued by the next process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
