//! `status`, `add`, `commit` and `checkout`: the files of a worktree.

use std::path::PathBuf;

use hyprstream_git2db::{
    Worktree,
    commit::Metadata,
    handle::{Change, FileStatus, State, StatusOptions, Target, WorktreeError},
};
use serde_json::{Value, json};

use super::{
    context::Which,
    history::{by_reason, history, said},
};
use crate::{
    author,
    failure::{Failure, chain},
    home::Home,
    output::{Output, short},
};

/// Shows what is not as it was committed.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// With files that a .gitignore names.
    #[arg(long)]
    ignored: bool,
}

/// Takes changes into the next commit.
#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    which: Which,
    /// Files and folders.
    #[arg(value_name = "PATH", required_unless_present = "all")]
    paths: Vec<PathBuf>,
    /// All changes of the worktree.
    #[arg(long, short = 'A', conflicts_with = "paths")]
    all: bool,
}

/// Commits what was added.
#[derive(Debug, clap::Args)]
pub(crate) struct CommitArgs {
    #[command(flatten)]
    which: Which,
    /// What it says. Several become paragraphs.
    #[arg(long, short, required_unless_present = "amend")]
    message: Vec<String>,
    /// Adds all changes before, new files too.
    #[arg(long, short)]
    all: bool,
    /// In place of the last commit.
    #[arg(long)]
    amend: bool,
    /// A last line such as Reviewed-by=A <a@example.org>.
    #[arg(long, value_name = "KEY=VALUE")]
    trailer: Vec<String>,
    /// Signs with this private ssh key.
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
}

/// Switches the worktree to a branch or commit.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckoutArgs {
    #[command(flatten)]
    which: Which,
    /// A branch, or a commit or tag, at which there is no branch.
    #[arg(value_name = "REVISION", required_unless_present = "branch")]
    revision: Option<String>,
    /// Makes this branch, at the revision or where the worktree is.
    #[arg(long, short, value_name = "BRANCH")]
    branch: Option<String>,
    /// Also where changes are lost.
    #[arg(long, short)]
    force: bool,
}

pub(crate) fn status(home: &Home, args: &StatusArgs, output: Output) -> Result<(), Failure> {
    let worktree = args.which.worktree(home)?;
    let options = StatusOptions {
        untracked: true,
        ignored: args.ignored,
    };
    let found = worktree.status(options).map_err(failure)?;
    let branch = worktree.branch().map_err(failure)?;
    let head = worktree.head().map_err(failure)?;
    let told = json!({
        "branch": branch,
        "commit": head.as_ref().map(ToString::to_string),
        "files": found.iter().map(file_json).collect::<Vec<_>>(),
    });
    output.print(&told, |_| {
        let at = match (&branch, &head) {
            (Some(branch), Some(head)) => format!("{branch} at {}", short(&head.to_string())),
            (Some(branch), None) => format!("{branch}, before its first commit"),
            (None, Some(head)) => format!("no branch, at {}", short(&head.to_string())),
            (None, None) => "no branch".to_owned(),
        };
        let mut text = format!("On {at}\n");
        if found.is_empty() {
            text.push_str("nothing has changed\n");
        }
        for file in &found {
            text.extend([&letters(&file.state), " ", &shown_path(file), "\n"]);
        }
        text
    })
}

fn file_json(file: &FileStatus) -> Value {
    let change = |change: &Option<Change>| {
        change.as_ref().map(|change| match change {
            Change::Added => "added",
            Change::Modified => "modified",
            Change::Deleted => "deleted",
            Change::Renamed { .. } => "renamed",
            Change::TypeChanged => "typeChanged",
        })
    };
    match &file.state {
        State::Tracked { staged, unstaged } => json!({
            "path": file.path, "staged": change(staged), "unstaged": change(unstaged),
        }),
        State::Untracked => json!({"path": file.path, "untracked": true}),
        State::Ignored => json!({"path": file.path, "ignored": true}),
        State::Conflicted(_) => json!({"path": file.path, "conflicted": true}),
    }
}

/// As `git status --short`.
fn letters(state: &State) -> String {
    let letter = |change: &Option<Change>| match change {
        None => ' ',
        Some(Change::Added) => 'A',
        Some(Change::Modified) => 'M',
        Some(Change::Deleted) => 'D',
        Some(Change::Renamed { .. }) => 'R',
        Some(Change::TypeChanged) => 'T',
    };
    match state {
        State::Tracked { staged, unstaged } => format!("{}{}", letter(staged), letter(unstaged)),
        State::Untracked => "??".to_owned(),
        State::Ignored => "!!".to_owned(),
        State::Conflicted(_) => "UU".to_owned(),
    }
}

fn shown_path(file: &FileStatus) -> String {
    match &file.state {
        State::Tracked {
            staged: Some(Change::Renamed { from }),
            ..
        } => format!("{from} -> {}", file.path),
        _ => file.path.clone(),
    }
}

pub(crate) fn add(home: &Home, args: &AddArgs) -> Result<(), Failure> {
    let worktree = args.which.worktree(home)?;
    if args.all {
        return worktree.add_all().map_err(failure);
    }
    let paths = args
        .paths
        .iter()
        .map(|path| args.which.inside(&worktree, path))
        .collect::<Result<Vec<_>, _>>()?;
    // The root of the worktree itself.
    if paths.iter().any(String::is_empty) {
        return worktree.add_all().map_err(failure);
    }
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    worktree.add(&paths).map_err(failure)
}

pub(crate) fn commit(home: &Home, args: &CommitArgs, output: Output) -> Result<(), Failure> {
    let worktree = args.which.worktree(home)?;
    let metadata = metadata(args)?;
    if args.all {
        worktree.add_all().map_err(failure)?;
    }
    let commit = match (args.amend, metadata) {
        (true, metadata) => worktree.amend(metadata.as_ref()),
        (false, Some(metadata)) => worktree.commit(&metadata),
        (false, None) => return Err(Failure::usage("a commit needs a --message")),
    }
    .map_err(failure)?;
    let branch = worktree.branch().map_err(failure)?;
    let info = worktree
        .repository()
        .commit_info(&commit)
        .map_err(history)?;
    let told = json!({
        "branch": branch,
        "commit": commit.to_string(),
        "message": info.message,
    });
    output.print(&told, |_| {
        format!(
            "{} {} {}",
            branch.as_deref().unwrap_or("(no branch)"),
            short(&commit.to_string()),
            info.subject()
        )
    })
}

fn metadata(args: &CommitArgs) -> Result<Option<Metadata>, Failure> {
    if args.message.is_empty() {
        if !args.trailer.is_empty() || args.signing_key.is_some() {
            return Err(Failure::usage(
                "trailers and signatures need the --message again with --amend",
            ));
        }
        return Ok(None);
    }
    let mut metadata = Metadata::new(author::author()?, &args.message.join("\n\n"));
    for trailer in &args.trailer {
        let Some((key, value)) = trailer.split_once(['=', ':']) else {
            return Err(Failure::usage(format!(
                "{trailer:?} is no trailer: write KEY=VALUE"
            )));
        };
        metadata = metadata.with_trailer(key.trim(), value.trim());
    }
    if let Some(key) = &args.signing_key {
        metadata = metadata.signed_with(key);
    }
    Ok(Some(metadata))
}

pub(crate) fn checkout(home: &Home, args: &CheckoutArgs, output: Output) -> Result<(), Failure> {
    let worktree = args.which.worktree(home)?;
    let repository = worktree.repository();
    if let Some(branch) = &args.branch {
        let start = match &args.revision {
            Some(revision) => Some(repository.resolve(revision).map_err(history)?),
            None => None,
        };
        worktree
            .switch(Target::NewBranch(branch, start.as_ref()), args.force)
            .map_err(failure)?;
        fill(&worktree)?;
        return said(output, "checked out", branch, None);
    }
    let revision = args.revision.as_deref().unwrap_or_default();
    if repository.branch_tip(revision).is_ok() {
        worktree
            .switch(Target::Branch(revision), args.force)
            .map_err(failure)?;
    } else {
        let commit = repository.resolve(revision).map_err(history)?;
        worktree
            .switch(Target::Commit(&commit), args.force)
            .map_err(failure)?;
    }
    fill(&worktree)?;
    said(output, "checked out", revision, None)
}

/// Says which large files are not here, rather than leave pointers in silence.
fn fill(worktree: &Worktree) -> Result<(), Failure> {
    worktree.fill().map_err(failure)?;
    let missing = worktree.missing_objects().map_err(failure)?;
    if !missing.is_empty() {
        eprintln!(
            "note: {} large files are not on this machine; hyprstream pull brings them",
            missing.len()
        );
    }
    Ok(())
}

pub(crate) fn failure(error: WorktreeError) -> Failure {
    let failure = by_reason(error.reason(), chain(&error));
    match error.reason() {
        "LocalChanges" => failure.hint("commit them, or use --force to lose them"),
        "NothingToCommit" => failure.hint("hyprstream add PATH, or commit --all"),
        _ => failure,
    }
}
