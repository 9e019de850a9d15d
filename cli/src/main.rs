//! `hyprstream`: models that live in git repositories, at a terminal.
//!
//! Called `kubectl-hyprstream`, under which name kubectl finds it, it is a plugin of kubectl.

#![expect(
    clippy::needless_pass_by_value,
    reason = "what is given to map_err takes its error"
)]

mod args;
mod author;
mod chat;
mod commands;
mod credentials;
mod failure;
mod files;
mod home;
mod kubectl;
mod output;
mod progress;
mod reference;
mod runtime;
mod server;

use std::{ffi::OsString, path::Path, process::ExitCode};

use args::{Args, Command};
use clap::{CommandFactory as _, Parser as _};
use commands::{clone, history, sync, work, worktree};
use failure::Failure;
use home::Home;
use output::Output;

fn main() -> ExitCode {
    // libtorch reads its environment before anything else does.
    if let Err(error) = hyprstream_worker::environment::settle() {
        eprintln!("warning: libtorch runs with its own settings: {error}");
    }
    let ended = if is_plugin(std::env::args_os().next()) {
        kubectl::run(kubectl::Args::parse())
    } else {
        run(Args::parse())
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let output = Output { json: args.json };
    let home = Home::new(args.home)?;
    match args.command {
        Command::Chat(args) => commands::serve::chat(&home, *args, output),
        Command::Serve(args) => commands::serve::serve(&home, *args, output),
        Command::Clone(args) => clone::run(&home, &args, output),
        Command::Track(args) => clone::add(&home, &args, output),
        Command::List => clone::list(&home, output),
        Command::Info(args) => clone::info(&home, &args, output),
        Command::Rename(args) => clone::rename(&home, &args, output),
        Command::Remove(args) => clone::remove(&home, &args, output),
        Command::Branch(args) => history::branch(&home, &args, output),
        Command::Tag(args) => history::tag(&home, &args, output),
        Command::Log(args) => history::log(&home, &args, output),
        Command::Diff(args) => history::diff(&home, &args, output),
        Command::Merge(args) => history::merge(&home, &args, output),
        Command::Worktree(args) => worktree::run(&home, &args, output),
        Command::Status(args) => work::status(&home, &args, output),
        Command::Add(args) => work::add(&home, &args),
        Command::Commit(args) => work::commit(&home, &args, output),
        Command::Checkout(args) => work::checkout(&home, &args, output),
        Command::Pull(args) => sync::pull(&home, &args, output),
        Command::Push(args) => sync::push(&home, &args, output),
        Command::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(shell, &mut command, "hyprstream", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// kubectl runs `kubectl-hyprstream` for `kubectl hyprstream`.
fn is_plugin(program: Option<OsString>) -> bool {
    program.is_some_and(|program| {
        Path::new(&program)
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_by_which_it_is_called_decides() {
        assert!(is_plugin(Some("/usr/bin/kubectl-hyprstream".into())));
        assert!(!is_plugin(Some("target/release/hyprstream".into())));
        assert!(!is_plugin(None));
    }
}
