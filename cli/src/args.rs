//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::{
    clone::{AddArgs as TrackArgs, CloneArgs, InfoArgs, RemoveArgs, RenameArgs},
    history::{BranchArgs, DiffArgs, LogArgs, MergeArgs, TagArgs},
    serve::{ChatArgs, ServeArgs},
    sync::{PullArgs, PushArgs},
    work::{AddArgs, CheckoutArgs, CommitArgs, StatusArgs},
    worktree::WorktreeArgs,
};

/// Models that live in git repositories: clone, change, serve and talk with them.
#[derive(Debug, Parser)]
#[command(name = "hyprstream", version, propagate_version = true)]
pub(crate) struct Args {
    /// Folder for repositories and large files; by default ~/.local/share/hyprstream.
    #[arg(long, global = true, env = "HYPRSTREAM_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Chat(Box<ChatArgs>),
    Serve(Box<ServeArgs>),
    Clone(CloneArgs),
    Track(TrackArgs),
    /// Lists what is tracked.
    List,
    Info(InfoArgs),
    Rename(RenameArgs),
    Remove(RemoveArgs),
    Branch(BranchArgs),
    Tag(TagArgs),
    Log(LogArgs),
    Diff(DiffArgs),
    Merge(MergeArgs),
    Worktree(WorktreeArgs),
    Status(StatusArgs),
    Add(AddArgs),
    Commit(CommitArgs),
    Checkout(CheckoutArgs),
    Pull(PullArgs),
    Push(PushArgs),
    /// Prints what a shell needs to complete commands.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_server_of_a_person_listens_on_loopback_only() {
        let args = Args::try_parse_from(["hyprstream", "serve", "./m"]).unwrap();
        let Command::Serve(args) = args.command else {
            unreachable!("it is serve");
        };
        assert!(args.worker.is_on_loopback());
    }
}
