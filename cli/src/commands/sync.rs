//! `pull` and `push`: the upstream.

use hyprstream_git2db::{
    CommitId, Include, Reference, RemoteUrl, RepositoryHandle,
    commit::{Author, Metadata},
    handle::{Expected, FastForward, FetchOptions, Merge, Merged, PushRef, Tags},
    lfs::{self, ObjectSource as _},
    manager::Tracked,
    transport::LocalSource,
    tree::{self, Limits},
};
use serde_json::json;

use super::{
    clone,
    context::Which,
    history::{by_reason, history, merging, outcome},
    work,
};
use crate::{
    author,
    credentials::CredentialArgs,
    failure::{Context as _, Failure, chain},
    home::Home,
    output::{Output, bytes},
    progress::Transfer,
    reference,
};

/// Fetches, and merges what the upstream has into the worktree's branch. With -R, lets the branch
/// that is followed go forward.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    which: Which,
    /// Only goes forward, or fails.
    #[arg(long)]
    ff_only: bool,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// Pushes branches and tags with their large files.
#[derive(Debug, clap::Args)]
pub(crate) struct PushArgs {
    #[command(flatten)]
    which: Which,
    /// BRANCH, SOURCE:TARGET or :TARGET, which deletes it; by default the worktree's branch, or
    /// the one that is followed.
    #[arg(value_name = "REF")]
    refs: Vec<String>,
    /// To this URL in place of the one it was cloned from.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// These tags too.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Over what is there, if that is still what was last fetched.
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    credentials: CredentialArgs,
}

pub(crate) fn pull(home: &Home, args: &PullArgs, output: Output) -> Result<(), Failure> {
    let repository = args.which.repository(home)?;
    let tracked = tracked(home, &repository)?;
    fetch(home, &tracked, &args.credentials)?;
    let worktree = args.which.worktree(home).ok();
    let branch = match &worktree {
        Some(worktree) => worktree.branch().map_err(work::failure)?.ok_or_else(|| {
            Failure::usage("the worktree is on no branch").hint("check one out, or give -R NAME")
        })?,
        None => followed_branch(&repository, &tracked)?,
    };
    let upstream = format!("refs/remotes/origin/{branch}");
    let there = repository.resolve(&upstream).map_err(|error| {
        history(error).hint(format!(
            "the upstream has no branch {branch}: push it first"
        ))
    })?;
    // Before files change: a merge that is there is whole.
    download(&tracked, &repository, &there, &args.credentials)?;
    let merged = if let Some(worktree) = &worktree {
        let merge = merge(&branch, args.ff_only)?;
        let merged = worktree.merge(&there, &merge).map_err(merging)?;
        worktree.fill().map_err(work::failure)?;
        merged
    } else {
        // Nobody commits who has no worktree.
        let merge = merge(&branch, true)?;
        repository.merge(&branch, &there, &merge).map_err(merging)?
    };
    if merged == Merged::UpToDate && output.json {
        return output.print(
            &json!({"branch": branch, "result": "up to date", "commit": there.to_string()}),
            |_| String::new(),
        );
    }
    outcome(&merged, &branch, output)
}

fn merge(branch: &str, only_forward: bool) -> Result<Merge, Failure> {
    let message = format!("Merge the upstream's {branch}");
    // Who only goes forward signs nothing.
    let author = if only_forward {
        Author {
            name: "hyprstream".to_owned(),
            email: "hyprstream@localhost".to_owned(),
        }
    } else {
        author::author()?
    };
    let mut merge = Merge::new(Metadata::new(author, &message));
    if only_forward {
        merge.fast_forward = FastForward::Only;
    }
    Ok(merge)
}

/// Fetches all that is new from where a repository was cloned.
pub(crate) fn fetch(
    home: &Home,
    tracked: &Tracked,
    credentials: &CredentialArgs,
) -> Result<(), Failure> {
    let url = upstream(tracked)?;
    let repository = home.repository(&tracked.name)?;
    let options = FetchOptions {
        tags: Tags::All,
        prune: true,
        ..FetchOptions::default()
    };
    let transfer = Transfer::start("fetching");
    let fetched = repository
        .fetch("origin", &options, &credentials.find(url)?, &transfer)
        .map_err(|error| by_reason(error.reason(), chain(&error)))?;
    drop(transfer);
    for (name, why) in &fetched.rejected {
        eprintln!("note: {name} stays as it is: {why}");
    }
    home.registry()?
        .mark_fetched(&tracked.name)
        .map_err(clone::failure)
}

/// Brings the large files of a commit that are not here.
pub(crate) fn download(
    tracked: &Tracked,
    repository: &RepositoryHandle,
    commit: &CommitId,
    credentials: &CredentialArgs,
) -> Result<(), Failure> {
    let entries = tree::walk(
        repository.path(),
        commit,
        &Include::all(),
        &Limits::default(),
    )
    .context("the commit cannot be read")?;
    let mut objects = tree::pointers(&entries);
    objects.retain(|object| !repository.store().contains(&object.oid));
    if objects.is_empty() {
        return Ok(());
    }
    let url = upstream(tracked)
        .map_err(|failure| failure.hint(format!("{} large files are missing", objects.len())))?;
    let transfer = Transfer::start("downloading");
    let store = repository.store();
    let brought = match url.to_path() {
        Some(folder) => LocalSource::open(&folder)
            .map_err(|error| by_reason(error.reason(), chain(&error)))?
            .objects()
            .fetch(&objects, store, &transfer),
        None => lfs::Client::new(url, &credentials.find(url)?, lfs::Options::default())
            .and_then(|client| client.download(&objects, store, &transfer)),
    };
    brought
        .map(drop)
        .map_err(|error| by_reason(error.reason(), chain(&error)))
}

fn upstream(tracked: &Tracked) -> Result<&RemoteUrl, Failure> {
    tracked
        .url
        .as_ref()
        .ok_or_else(|| Failure::usage(format!("{} was cloned from nowhere", tracked.name)))
}

/// The entry of a repository that was found by its worktree.
fn tracked(home: &Home, repository: &RepositoryHandle) -> Result<Tracked, Failure> {
    let all = home.registry()?.list().map_err(clone::failure)?;
    let path = repository.path().canonicalize().ok();
    all.into_iter()
        .find(|tracked| tracked.path.canonicalize().ok() == path)
        .ok_or_else(|| {
            Failure::not_found(format!(
                "{} is not tracked here",
                repository.path().display()
            ))
            .hint("is HYPRSTREAM_HOME that of its clone?")
        })
}

fn followed_branch(repository: &RepositoryHandle, tracked: &Tracked) -> Result<String, Failure> {
    match &tracked.reference {
        Reference::Branch(name) => Ok(name.clone()),
        Reference::Head => repository
            .branches()
            .map_err(super::history::refs)?
            .into_iter()
            .find(|branch| branch.is_default)
            .map(|branch| branch.name)
            .ok_or_else(|| Failure::usage(format!("{} has no default branch", tracked.name))),
        Reference::Tag(_) | Reference::Commit(_) => Err(Failure::usage(format!(
            "{} follows no branch, but a tag or commit",
            tracked.name
        ))
        .hint("tags and commits do not move; clone a branch, or name one")),
    }
}

pub(crate) fn push(home: &Home, args: &PushArgs, output: Output) -> Result<(), Failure> {
    let repository = args.which.repository(home)?;
    let url = match &args.to {
        Some(url) => reference::url(url)?,
        None => upstream(&tracked(home, &repository)?)?.clone(),
    };
    let mut refs: Vec<PushRef> = args.refs.iter().map(|text| PushRef::parse(text)).collect();
    refs.extend(args.tag.iter().map(|tag| PushRef::tag(tag)));
    if refs.is_empty() {
        let branch = match args.which.worktree(home) {
            Ok(worktree) => worktree.branch().map_err(work::failure)?.ok_or_else(|| {
                Failure::usage("the worktree is on no branch").hint("name what is pushed")
            })?,
            Err(_) => followed_branch(&repository, &tracked(home, &repository)?)?,
        };
        refs.push(PushRef::branch(&branch));
    }
    if args.force {
        for wanted in &mut refs {
            wanted.force = true;
            wanted.expected = last_seen(&repository, &wanted.target);
        }
    }
    let transfer = Transfer::start("pushing");
    let pushed = repository
        .push(&url, &refs, &args.credentials.find(&url)?, &transfer)
        .map_err(|error| {
            let failure = by_reason(error.reason(), chain(&error));
            match error.reason() {
                "Rejected" | "NotFastForward" => {
                    failure.hint("pull first; --force replaces what is there")
                }
                _ => failure,
            }
        })?;
    drop(transfer);
    let told = json!({
        "url": url.as_str(),
        "changed": pushed.changed,
        "uploadedBytes": pushed.objects.bytes_moved,
    });
    output.print(&told, |_| {
        if pushed.changed.is_empty() {
            return "everything is there".to_owned();
        }
        format!(
            "pushed {} ({} of large files sent)",
            pushed.changed.join(", "),
            bytes(pushed.objects.bytes_moved)
        )
    })
}

/// What the last fetch saw of a ref, which is what may be replaced.
fn last_seen(repository: &RepositoryHandle, target: &str) -> Expected {
    let Some(branch) = target.strip_prefix("refs/heads/") else {
        return Expected::Any;
    };
    match repository.resolve(&format!("refs/remotes/origin/{branch}")) {
        Ok(commit) => Expected::Is(commit),
        Err(_) => Expected::Any,
    }
}
