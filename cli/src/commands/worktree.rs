//! `worktree`: folders in which the files of a repository can be changed.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use hyprstream_git2db::{
    Include,
    handle::worktrees::{Add, Head, Start, State, WorktreesError},
    storage::Kind,
};
use serde_json::{Value, json};

use super::{
    context::Which,
    history::{by_reason, history, said},
};
use crate::{
    failure::{Failure, chain},
    home::Home,
    output::{Output, short, table},
};

/// Makes, lists and removes folders in which a repository's files can be changed.
#[derive(Debug, clap::Args)]
pub(crate) struct WorktreeArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes one. Large files are shared with the repository where the disk can.
    Add(AddArgs),
    /// Lists them, those of git too.
    List,
    /// Removes one.
    Remove {
        /// Its folder's name, as the list shows it.
        name: String,
        /// Also with changes that nobody committed.
        #[arg(long, short)]
        force: bool,
    },
    /// Brings the files back that a reboot took away.
    Mount {
        /// Its folder's name.
        name: String,
    },
    /// Forgets those whose folders are gone, and frees what they used.
    Prune,
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// A folder that does not exist or is empty.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// A branch that no other worktree has, a tag or a commit; by default the default branch.
    #[arg(value_name = "REVISION")]
    revision: Option<String>,
    /// Makes this branch there.
    #[arg(long, short, value_name = "BRANCH")]
    branch: Option<String>,
    /// Only these files; may be given several times.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// How files come there; by default the best that works.
    #[arg(long, value_enum)]
    driver: Option<Driver>,
}

/// A storage driver.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Driver {
    /// The kernel's overlay: nothing is copied, for root.
    Overlay2,
    /// An overlay by fuse-overlayfs, for everybody.
    FuseOverlay,
    /// Reflinks, or copies where the file system has none.
    Vfs,
}

impl From<Driver> for Kind {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Overlay2 => Self::Overlay2,
            Driver::FuseOverlay => Self::FuseOverlay,
            Driver::Vfs => Self::Vfs,
        }
    }
}

pub(crate) fn run(home: &Home, args: &WorktreeArgs, output: Output) -> Result<(), Failure> {
    let repository = args.which.repository(home)?;
    let worktrees = repository.worktrees();
    match &args.command {
        Command::List => {
            let found = worktrees.list().map_err(failure)?;
            let told: Vec<Value> = found
                .iter()
                .map(|found| {
                    let (branch, commit) = head(found.head.as_ref());
                    json!({
                        "name": found.name,
                        "path": found.path,
                        "branch": branch,
                        "commit": commit,
                        "state": state(found.state),
                        "driver": found.driver.map(Kind::as_str),
                        "locked": found.locked,
                    })
                })
                .collect();
            output.print(&told, |_| {
                let rows: Vec<_> = found
                    .iter()
                    .map(|found| {
                        let (branch, commit) = head(found.head.as_ref());
                        [
                            found.name.clone(),
                            branch
                                .or_else(|| commit.map(|commit| short(&commit).to_owned()))
                                .unwrap_or_else(|| "-".to_owned()),
                            state(found.state).to_owned(),
                            found.driver.map_or("git", Kind::as_str).to_owned(),
                            found.path.display().to_string(),
                        ]
                    })
                    .collect();
                table(["NAME", "AT", "STATE", "DRIVER", "PATH"], &rows)
            })
        }
        Command::Add(add) => self::add(&repository, args, add, output),
        Command::Remove { name, force } => {
            worktrees.remove(name, *force).map_err(failure)?;
            said(output, "removed", name, None)
        }
        Command::Mount { name } => {
            worktrees.mount(name).map_err(failure)?;
            said(output, "mounted", name, None)
        }
        Command::Prune => {
            let pruned = worktrees.prune().map_err(failure)?;
            let told = json!({"worktrees": pruned.worktrees, "checkouts": pruned.checkouts});
            output.print(&told, |_| {
                if pruned.worktrees.is_empty() {
                    "nothing to forget".to_owned()
                } else {
                    format!("forgot {}", pruned.worktrees.join(", "))
                }
            })
        }
    }
}

fn add(
    repository: &hyprstream_git2db::RepositoryHandle,
    args: &WorktreeArgs,
    add: &AddArgs,
    output: Output,
) -> Result<(), Failure> {
    let path = args.which.folder()?.join(&add.folder);
    let commit = |revision: &str| repository.resolve(revision).map_err(history);
    let start = match (&add.branch, &add.revision) {
        (Some(name), revision) => Start::NewBranch {
            name: name.clone(),
            commit: commit(revision.as_deref().unwrap_or("HEAD"))?,
        },
        (None, Some(revision)) if repository.branch_tip(revision).is_ok() => {
            Start::Branch(revision.clone())
        }
        (None, Some(revision)) => Start::Detached(commit(revision)?),
        (None, None) => {
            let all = repository.branches().map_err(super::history::refs)?;
            match all.into_iter().find(|branch| branch.is_default) {
                Some(default) => Start::Branch(default.name),
                None => Start::Detached(commit("HEAD")?),
            }
        }
    };
    let mut wanted = Add::new(&path, start);
    wanted.driver = add.driver.map(Kind::from);
    if !add.include.is_empty() {
        wanted.include =
            Include::new(&add.include).map_err(|error| Failure::usage(chain(&error)))?;
    }
    let made = repository.worktrees().add(&wanted).map_err(failure)?;
    said(output, "made", &made.path().display().to_string(), None)
}

fn head(head: Option<&Head>) -> (Option<String>, Option<String>) {
    match head {
        Some(Head::Branch(branch)) => (Some(branch.clone()), None),
        Some(Head::Detached(commit)) => (None, Some(commit.to_string())),
        None => (None, None),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Present => "present",
        State::Hidden => "hidden",
        State::Missing => "missing",
    }
}

fn failure(error: WorktreesError) -> Failure {
    by_reason(error.reason(), chain(&error))
}
