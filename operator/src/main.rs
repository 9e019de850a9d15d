//! hyprstream-operator: makes the commits that Models name answer requests.

use std::process::ExitCode;

use clap::Parser;
use hyprstream_operator::args::{Args, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = hyprstream_telemetry::init_logs(&args.log, args.log_format) {
        eprintln!("hyprstream-operator: {error}");
        return ExitCode::from(2);
    }
    let result = match args.command {
        Command::Run(args) => hyprstream_operator::run::run(*args).await,
        Command::Crds => hyprstream_operator::crds::print(),
        Command::Cleanup(args) => hyprstream_operator::cleanup::run(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "hyprstream-operator ends");
            ExitCode::FAILURE
        }
    }
}
