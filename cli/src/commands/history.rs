//! `log`, `diff`, `branch`, `tag` and `merge`: what is in a repository, without its files.

use hyprstream_git2db::{
    CommitId, RepositoryHandle,
    commit::{Metadata, Timestamp},
    handle::{
        CommitInfo, DifferenceKind, FastForward, HistoryError, LogRange, Merge, MergeError, Merged,
        RefError,
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use super::context::Which;
use crate::{
    author,
    failure::{Failure, Kind, chain},
    home::Home,
    output::{Output, bytes, short, table},
};

/// Shows commits, the latest first.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    #[command(flatten)]
    which: Which,
    /// A branch, tag, commit or A..B; by default what the worktree or the repository is at.
    #[arg(value_name = "REVISION")]
    revision: Option<String>,
    /// At most so many.
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    /// Only commits that changed this file or folder.
    #[arg(long)]
    path: Option<String>,
    /// Of merges, only the branch that was merged into.
    #[arg(long)]
    first_parent: bool,
}

/// Shows which files differ between two commits.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    which: Which,
    /// From this commit; by default the parent of the other.
    #[arg(value_name = "FROM")]
    from: Option<String>,
    /// To this one; by default what the worktree or the repository is at.
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// Only what lies there or below.
    #[arg(long)]
    path: Option<String>,
}

/// Lists, makes, renames and deletes branches.
#[derive(Debug, clap::Args)]
pub(crate) struct BranchArgs {
    #[command(flatten)]
    which: Which,
    /// The branch to make, or that is renamed, deleted or told what to follow.
    #[arg(value_name = "BRANCH")]
    name: Option<String>,
    /// Where it begins; by default what the worktree or the repository is at.
    #[arg(value_name = "START", requires = "name")]
    start: Option<String>,
    /// Deletes it, if nothing is lost.
    #[arg(long, short, requires = "name", conflicts_with_all = ["start", "rename", "upstream"])]
    delete: bool,
    /// Gives it this name.
    #[arg(long, short = 'm', value_name = "NEW", requires = "name", conflicts_with_all = ["start", "upstream"])]
    rename: Option<String>,
    /// Lets it follow this branch, such as origin/main.
    #[arg(
        long,
        short,
        value_name = "BRANCH",
        requires = "name",
        conflicts_with = "start"
    )]
    upstream: Option<String>,
    /// Moves, replaces or deletes also where something is lost.
    #[arg(long, short)]
    force: bool,
}

/// Lists, makes and deletes tags.
#[derive(Debug, clap::Args)]
pub(crate) struct TagArgs {
    #[command(flatten)]
    which: Which,
    /// The tag to make or delete.
    #[arg(value_name = "TAG")]
    name: Option<String>,
    /// What it names; by default what the worktree or the repository is at.
    #[arg(value_name = "COMMIT", requires = "name")]
    commit: Option<String>,
    /// Makes an annotated tag that says this.
    #[arg(long, short, requires = "name")]
    message: Option<String>,
    /// Deletes it.
    #[arg(long, short, requires = "name", conflicts_with_all = ["commit", "message"])]
    delete: bool,
}

/// Merges a branch or commit into the worktree's branch, or into another of the repository.
#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    which: Which,
    /// What is merged.
    #[arg(value_name = "REVISION")]
    from: String,
    /// Into this branch, without a worktree.
    #[arg(long, value_name = "BRANCH")]
    into: Option<String>,
    /// What the commit of the merge says.
    #[arg(long, short)]
    message: Option<String>,
    /// Only goes forward, or fails.
    #[arg(long, conflicts_with = "no_ff")]
    ff_only: bool,
    /// Makes a commit in any case.
    #[arg(long)]
    no_ff: bool,
}

/// What the worktree is at, or else the default branch.
fn here(home: &Home, which: &Which) -> Result<(RepositoryHandle, CommitId), Failure> {
    let repository = which.repository(home)?;
    if let Ok(worktree) = which.worktree(home)
        && let Ok(Some(head)) = worktree.head()
    {
        return Ok((repository, head));
    }
    let head = repository.resolve("HEAD").map_err(history)?;
    Ok((repository, head))
}

pub(crate) fn log(home: &Home, args: &LogArgs, output: Output) -> Result<(), Failure> {
    let (repository, head) = here(home, &args.which)?;
    let resolve = |revision: &str| match revision {
        "" | "HEAD" => Ok(head.clone()),
        other => repository.resolve(other).map_err(history),
    };
    let mut range = LogRange {
        path: args.path.clone(),
        first_parent: args.first_parent,
        limit: Some(args.limit),
        ..LogRange::default()
    };
    match args.revision.as_deref() {
        None => range.from.push(head.clone()),
        Some(revision) => match revision.split_once("..") {
            Some((without, from)) => {
                range.without.push(resolve(without)?);
                range.from.push(resolve(from)?);
            }
            None => range.from.push(resolve(revision)?),
        },
    }
    let commits = repository
        .log(&range)
        .map_err(history)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(history)?;
    let told: Vec<Value> = commits.iter().map(commit_json).collect();
    output.print(&told, |_| commits.iter().map(commit_text).collect())
}

pub(crate) fn commit_json(commit: &CommitInfo) -> Value {
    json!({
        "commit": commit.id.to_string(),
        "parents": commit.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "author": {"name": commit.author.name, "email": commit.author.email},
        "time": rfc3339(commit.author.time),
        "message": commit.message,
    })
}

fn commit_text(commit: &CommitInfo) -> String {
    let mut text = format!(
        "commit {}\nAuthor: {} <{}>\nDate:   {}\n\n",
        commit.id,
        commit.author.name,
        commit.author.email,
        rfc3339(commit.author.time)
    );
    for line in commit.message.trim_end().lines() {
        text.extend(["    ", line, "\n"]);
    }
    text.push('\n');
    text
}

/// With the time zone of whoever wrote it.
fn rfc3339(time: Timestamp) -> String {
    let offset = i32::checked_mul(time.offset_minutes, 60)
        .and_then(|seconds| jiff::tz::Offset::from_seconds(seconds).ok())
        .unwrap_or(jiff::tz::Offset::UTC);
    match jiff::Timestamp::from_second(time.seconds) {
        Ok(moment) => moment.display_with_offset(offset).to_string(),
        Err(_) => format!("{} s", time.seconds),
    }
}

pub(crate) fn diff(home: &Home, args: &DiffArgs, output: Output) -> Result<(), Failure> {
    let (repository, head) = here(home, &args.which)?;
    let to = match &args.to {
        Some(to) => repository.resolve(to).map_err(history)?,
        None => head,
    };
    let from = if let Some(from) = &args.from {
        Some(repository.resolve(from).map_err(history)?)
    } else {
        let info = repository.commit_info(&to).map_err(history)?;
        info.parents.first().cloned()
    };
    let differences = repository
        .diff(from.as_ref(), Some(&to), args.path.as_deref())
        .map_err(history)?;
    let size = |version: &Option<hyprstream_git2db::handle::FileVersion>| {
        version.as_ref().map(|version| version.bytes)
    };
    let told: Vec<Value> = differences
        .iter()
        .map(|found| {
            let (kind, renamed_from) = kind(&found.kind);
            json!({
                "path": found.path,
                "change": kind,
                "from": renamed_from,
                "bytesBefore": size(&found.before),
                "bytesAfter": size(&found.after),
            })
        })
        .collect();
    output.print(&told, |_| {
        let shown = |size: Option<u64>| size.map_or("-".to_owned(), bytes);
        let rows: Vec<_> = differences
            .iter()
            .map(|found| {
                let (kind, from) = kind(&found.kind);
                let path = match from {
                    Some(from) => format!("{from} -> {}", found.path),
                    None => found.path.clone(),
                };
                [
                    kind.to_owned(),
                    shown(size(&found.before)),
                    shown(size(&found.after)),
                    path,
                ]
            })
            .collect();
        table(["CHANGE", "BEFORE", "AFTER", "PATH"], &rows)
    })
}

fn kind(kind: &DifferenceKind) -> (&'static str, Option<&str>) {
    match kind {
        DifferenceKind::Added => ("added", None),
        DifferenceKind::Removed => ("removed", None),
        DifferenceKind::Modified => ("modified", None),
        DifferenceKind::TypeChanged => ("type changed", None),
        DifferenceKind::Renamed { from } => ("renamed", Some(from)),
    }
}

pub(crate) fn branch(home: &Home, args: &BranchArgs, output: Output) -> Result<(), Failure> {
    let Some(name) = &args.name else {
        return branches(&args.which.repository(home)?, output);
    };
    let repository = args.which.repository(home)?;
    if args.delete {
        repository.delete_branch(name, args.force).map_err(refs)?;
        return said(output, "deleted", name, None);
    }
    if let Some(new) = &args.rename {
        repository
            .rename_branch(name, new, args.force)
            .map_err(refs)?;
        return said(output, "renamed", new, None);
    }
    if let Some(upstream) = &args.upstream {
        repository
            .set_upstream(name, Some(upstream))
            .map_err(refs)?;
        return said(output, "follows", name, Some(upstream));
    }
    let start = match &args.start {
        Some(start) => repository.resolve(start).map_err(history)?,
        None => here(home, &args.which)?.1,
    };
    repository
        .create_branch(name, &start, args.force)
        .map_err(refs)?;
    said(output, "created", name, Some(start.to_string().as_str()))
}

fn branches(repository: &RepositoryHandle, output: Output) -> Result<(), Failure> {
    let found = repository.branches().map_err(refs)?;
    let told: Vec<Value> = found
        .iter()
        .map(|branch| {
            json!({
                "name": branch.name,
                "commit": branch.last.id.to_string(),
                "subject": branch.last.subject(),
                "default": branch.is_default,
                "worktree": branch.worktree,
                "upstream": branch.upstream.as_ref().map(|upstream| json!({
                    "name": upstream.name,
                    "ahead": upstream.ahead_behind.map(|(ahead, _)| ahead),
                    "behind": upstream.ahead_behind.map(|(_, behind)| behind),
                })),
            })
        })
        .collect();
    output.print(&told, |_| {
        let rows: Vec<_> = found
            .iter()
            .map(|branch| {
                let follows = match &branch.upstream {
                    None => "-".to_owned(),
                    Some(upstream) => {
                        let name = upstream.name.trim_start_matches("refs/remotes/");
                        match upstream.ahead_behind {
                            Some((ahead, behind)) => format!("{name} +{ahead} -{behind}"),
                            None => format!("{name} (gone)"),
                        }
                    }
                };
                let star = if branch.is_default { "*" } else { " " };
                [
                    format!("{star} {}", branch.name),
                    short(&branch.last.id.to_string()).to_owned(),
                    follows,
                    branch.last.subject().to_owned(),
                ]
            })
            .collect();
        table(["  BRANCH", "COMMIT", "FOLLOWS", "SUBJECT"], &rows)
    })
}

pub(crate) fn tag(home: &Home, args: &TagArgs, output: Output) -> Result<(), Failure> {
    let repository = args.which.repository(home)?;
    let Some(name) = &args.name else {
        let found = repository.tags().map_err(refs)?;
        let told: Vec<Value> = found
            .iter()
            .map(|tag| {
                json!({
                    "name": tag.name,
                    "commit": tag.commit.as_ref().map(ToString::to_string),
                    "message": tag.annotation.as_ref().map(|said| said.message.clone()),
                })
            })
            .collect();
        return output.print(&told, |_| {
            let rows: Vec<_> = found
                .iter()
                .map(|tag| {
                    let commit = tag.commit.as_ref().map(ToString::to_string);
                    let said = tag.annotation.as_ref().map(|said| said.message.as_str());
                    [
                        tag.name.clone(),
                        short(commit.as_deref().unwrap_or("-")).to_owned(),
                        said.and_then(|said| said.lines().next())
                            .unwrap_or_default()
                            .to_owned(),
                    ]
                })
                .collect();
            table(["TAG", "COMMIT", "MESSAGE"], &rows)
        });
    };
    if args.delete {
        repository.delete_tag(name).map_err(refs)?;
        return said(output, "deleted", name, None);
    }
    let commit = match &args.commit {
        Some(commit) => repository.resolve(commit).map_err(history)?,
        None => here(home, &args.which)?.1,
    };
    let annotation = match &args.message {
        Some(message) => Some(Metadata::new(author::author()?, message)),
        None => None,
    };
    repository
        .create_tag(name, &commit, annotation.as_ref())
        .map_err(refs)?;
    said(output, "created", name, Some(commit.to_string().as_str()))
}

pub(crate) fn merge(home: &Home, args: &MergeArgs, output: Output) -> Result<(), Failure> {
    let repository = args.which.repository(home)?;
    let from = repository.resolve(&args.from).map_err(history)?;
    let worktree = match &args.into {
        Some(_) => None,
        None => Some(args.which.worktree(home).map_err(|failure| {
            failure.hint("name the branch that is merged into: --into BRANCH")
        })?),
    };
    let into = match (&args.into, &worktree) {
        (Some(into), _) => into.clone(),
        (None, Some(worktree)) => worktree
            .branch()
            .map_err(super::work::failure)?
            .unwrap_or_else(|| "HEAD".to_owned()),
        (None, None) => unreachable!("one of them is there"),
    };
    let message = match &args.message {
        Some(message) => message.clone(),
        None => format!("Merge {} into {into}", args.from),
    };
    let mut options = Merge::new(Metadata::new(author::author()?, &message));
    options.fast_forward = match (args.ff_only, args.no_ff) {
        (true, _) => FastForward::Only,
        (_, true) => FastForward::Never,
        _ => FastForward::Allow,
    };
    let merged = match &worktree {
        Some(worktree) => worktree.merge(&from, &options),
        None => repository.merge(&into, &from, &options),
    }
    .map_err(merging)?;
    outcome(&merged, &into, output)
}

/// Tells what came of a merge; conflicts are a failure.
pub(crate) fn outcome(merged: &Merged, into: &str, output: Output) -> Result<(), Failure> {
    let (what, commit) = match merged {
        Merged::UpToDate => ("up to date", None),
        Merged::FastForward(commit) => ("fast-forward", Some(commit)),
        Merged::Committed(commit) => ("merged", Some(commit)),
        Merged::Conflicts(files) => {
            let list: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
            if output.json {
                let told = json!({"branch": into, "result": "conflicts", "paths": list});
                output.print(&told, |_| String::new())?;
            }
            return Err(Failure::new(
                Kind::Refused,
                format!(
                    "nothing was merged: {} differ on both sides",
                    list.join(", ")
                ),
            )
            .hint("decide them in a worktree with git merge, or take one side whole"));
        }
    };
    let told = json!({
        "branch": into,
        "result": what,
        "commit": commit.map(ToString::to_string),
    });
    output.print(&told, |_| match commit {
        Some(commit) => format!("{into}: {what}, now at {}", short(&commit.to_string())),
        None => format!("{into}: {what}"),
    })
}

/// One thing that was done.
pub(crate) fn said(
    output: Output,
    done: &str,
    name: &str,
    detail: Option<&str>,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Said<'a> {
        name: &'a str,
        done: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a str>,
    }
    output.print(&Said { name, done, detail }, |said| match said.detail {
        Some(detail) => format!("{name} {done} ({})", short_if_commit(detail)),
        None => format!("{name} {done}"),
    })
}

fn short_if_commit(text: &str) -> &str {
    if text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        short(text)
    } else {
        text
    }
}

pub(crate) fn history(error: HistoryError) -> Failure {
    by_reason(error.reason(), chain(&error))
}

pub(crate) fn refs(error: RefError) -> Failure {
    by_reason(error.reason(), chain(&error))
}

pub(crate) fn merging(error: MergeError) -> Failure {
    by_reason(error.reason(), chain(&error))
}

/// One map from the reasons of the library to exit codes.
pub(crate) fn by_reason(reason: &str, message: String) -> Failure {
    let kind = match reason {
        "ReferenceNotFound" | "RepositoryNotFound" | "NotFound" | "NotTracked" => Kind::NotFound,
        "HostUnreachable"
        | "UpstreamError"
        | "AuthenticationFailed"
        | "HostNotTrusted"
        | "Timeout"
        | "MissingLFSObject" => Kind::Remote,
        "InvalidReference" | "InvalidPath" | "InvalidURL" | "InvalidName" | "InvalidMessage"
        | "InvalidAuthor" => Kind::Usage,
        "Cancelled" => Kind::Interrupted,
        "InternalError" | "DiskFull" | "DigestMismatch" | "RefusedContent" => Kind::Failed,
        _ => Kind::Refused,
    };
    Failure::new(kind, message)
}
