//! `hyprstream-worker`: runs a model and answers the OpenAI API, or trains an adapter for it.

use std::process::ExitCode;

use clap::Parser;
use hyprstream_worker::{Args, Command, bench, environment, serve, train};

fn main() -> ExitCode {
    let args = Args::parse();
    let logs = match &args.command {
        Command::Serve(args) => &args.logs,
        Command::Train(args) => &args.logs,
        Command::Bench(args) => &args.logs,
    };
    if let Err(why) = hyprstream_telemetry::init_logs(&logs.log, logs.log_format) {
        eprintln!("error: {why}");
        return ExitCode::from(2);
    }
    if let Err(error) = environment::settle() {
        tracing::warn!(%error, "libtorch runs with its own settings: threads spin while they wait");
    }
    match args.command {
        Command::Serve(args) => serve::run(*args),
        Command::Train(args) => train::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}
