//! `hyprstream-worker`: runs a model and answers the OpenAI API.

use std::process::ExitCode;

use clap::Parser;
use hyprstream_worker::{Args, Command, bench, openmp, serve};

fn main() -> ExitCode {
    let args = Args::parse();
    let logs = match &args.command {
        Command::Serve(args) => &args.logs,
        Command::Bench(args) => &args.logs,
    };
    if let Err(why) = hyprstream_telemetry::init_logs(&logs.log, logs.log_format) {
        eprintln!("error: {why}");
        return ExitCode::from(2);
    }
    if let Err(error) = openmp::settle() {
        tracing::warn!(%error, "OpenMP's threads will spin while they wait");
    }
    match args.command {
        Command::Serve(args) => serve::run(*args),
        Command::Bench(args) => bench::run(&args),
    }
}
