//! `clone`, `list`, `info`, `rename` and `remove`: what is tracked.

use std::{num::NonZeroU32, path::PathBuf};

use hyprstream_git2db::{
    CommitId, Credentials, Reference, RemoteUrl,
    manager::{Adding, ManagerError, Name, Tracked},
    remote,
};
use serde_json::{Value, json};

use super::history::{by_reason, commit_json, history, refs, said};
use crate::{
    credentials::CredentialArgs,
    failure::{Failure, Kind, chain},
    home::{Home, followed, parse},
    output::{Output, bytes, short, table},
    progress::Transfer,
    reference::{self, Named, Place},
};

/// Brings a repository here, with the large files of what it follows.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CloneArgs {
    /// The repository, and the branch, tag or commit that is followed; by default its default
    /// branch. A folder with a repository is one too.
    #[arg(value_name = "URL[@REF]")]
    url: String,
    /// By what name it is tracked; by default after the last part of the URL.
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Only so many commits.
    #[arg(long, value_name = "COMMITS")]
    depth: Option<NonZeroU32>,
    /// Only large files that match; may be given several times.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No large files that match; may be given several times.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// No large files at all.
    #[arg(long, conflicts_with_all = ["include", "exclude"])]
    no_lfs: bool,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// Tracks a repository that is on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// A bare repository, or a folder with one.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// By what name.
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Moves it here, rather than leave it where it is.
    #[arg(long)]
    adopt: bool,
}

/// Shows what is tracked.
#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// The repository.
    #[arg(value_name = "NAME")]
    name: Name,
}

/// Gives a repository another name.
#[derive(Debug, clap::Args)]
pub(crate) struct RenameArgs {
    /// The repository.
    #[arg(value_name = "NAME")]
    name: Name,
    /// Its new name.
    #[arg(value_name = "NEW")]
    new: Name,
}

/// Removes a repository with all that is only here.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// The repository.
    #[arg(value_name = "NAME")]
    name: Name,
    /// Also with commits that its upstream does not have.
    #[arg(long, short)]
    force: bool,
}

impl CloneArgs {
    /// A clone that is made because it is needed.
    pub(crate) fn of(url: &str, reference: Option<&str>, credentials: CredentialArgs) -> Self {
        Self {
            url: match reference {
                Some(reference) => format!("{url}@{reference}"),
                None => url.to_owned(),
            },
            name: None,
            depth: None,
            include: Vec::new(),
            exclude: Vec::new(),
            no_lfs: false,
            credentials,
        }
    }
}

pub(crate) fn run(home: &Home, args: &CloneArgs, output: Output) -> Result<(), Failure> {
    let tracked = make(home, args)?;
    show(home, &tracked, output, |text| format!("cloned {text}"))
}

/// Clones.
pub(crate) fn make(home: &Home, args: &CloneArgs) -> Result<Tracked, Failure> {
    let (url, reference) = source(&args.url)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => parse(&default_name(url.as_str()))?,
    };
    let credentials = args.credentials.find(&url)?;
    let wanted = match reference {
        Some(text) => wanted(&url, &text, &credentials)?,
        None => Reference::Head,
    };
    let mut clone = home
        .registry()?
        .clone_from(name, url)
        .reference(wanted)
        .include(args.include.clone())
        .exclude(args.exclude.clone())
        .credentials(credentials);
    if let Some(depth) = args.depth {
        clone = clone.depth(depth);
    }
    if args.no_lfs {
        clone = clone.without_lfs();
    }
    let transfer = Transfer::start("cloning");
    let cloned = clone.run(&transfer).map_err(|error| {
        let failure = by_reason(error.reason(), chain(&error));
        match error.reason() {
            "Cancelled" => failure.hint("the same command goes on where it was"),
            "AuthenticationFailed" => failure.hint("see --token-file and --ssh-key"),
            "NameTaken" => failure.hint("choose another with --name"),
            _ => failure,
        }
    })?;
    Ok(cloned.tracked)
}

fn source(text: &str) -> Result<(RemoteUrl, Option<String>), Failure> {
    let named: Named = text.parse().map_err(Failure::usage)?;
    if !named.adapters.is_empty() {
        return Err(Failure::usage(
            "adapters are not cloned: they are files of it",
        ));
    }
    match named.model {
        Place::Remote { url, reference } => Ok((reference::url(&url)?, reference)),
        Place::Folder(folder) => Ok((reference::local_url(&folder)?, None)),
        Place::Tracked { name, .. } => Err(Failure::usage(format!(
            "{name:?} is neither a URL nor a folder"
        ))
        .hint("clone https://huggingface.co/ORG/MODEL, or ./FOLDER")),
    }
}

/// A branch or else a tag of that name there, or a commit.
fn wanted(url: &RemoteUrl, text: &str, credentials: &Credentials) -> Result<Reference, Failure> {
    if let Ok(commit) = text.parse::<CommitId>() {
        return Ok(Reference::Commit(commit));
    }
    let branch = Reference::Branch(text.to_owned());
    match remote::resolve(url, &branch, credentials) {
        Ok(_) => return Ok(branch),
        Err(error) if error.reason() == "ReferenceNotFound" => {}
        Err(error) => return Err(by_reason(error.reason(), chain(&error))),
    }
    let tag = Reference::Tag(text.to_owned());
    match remote::resolve(url, &tag, credentials) {
        Ok(_) => Ok(tag),
        Err(error) if error.reason() == "ReferenceNotFound" => Err(Failure::not_found(format!(
            "{url} has neither a branch nor a tag {text:?}"
        ))
        .hint("a commit is named with all of its 40 digits")),
        Err(error) => Err(by_reason(error.reason(), chain(&error))),
    }
}

/// The last part of a URL, as a reference can name it.
fn default_name(url: &str) -> String {
    let path = url.trim_end_matches('/').trim_end_matches("/.git");
    let last = path.rsplit(['/', ':']).next().unwrap_or(path);
    let last = last.strip_suffix(".git").unwrap_or(last).to_lowercase();
    let name: String = last
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' => c,
            _ => '-',
        })
        .collect();
    let name = name.trim_matches('-');
    let name = name.get(..63).unwrap_or(name).trim_end_matches('-');
    if name.is_empty() {
        "model".to_owned()
    } else {
        name.to_owned()
    }
}

pub(crate) fn add(home: &Home, args: &AddArgs, output: Output) -> Result<(), Failure> {
    let name = if let Some(name) = &args.name {
        name.clone()
    } else {
        let folder = args
            .folder
            .canonicalize()
            .map_err(|error| Failure::not_found(format!("{}: {error}", args.folder.display())))?;
        parse(&default_name(&folder.to_string_lossy()))?
    };
    let adding = if args.adopt {
        Adding::Adopt
    } else {
        Adding::Reference
    };
    let tracked = home
        .registry()?
        .add(name, &args.folder, adding)
        .map_err(failure)?;
    show(home, &tracked, output, |text| format!("tracked {text}"))
}

pub(crate) fn list(home: &Home, output: Output) -> Result<(), Failure> {
    let all = home.registry()?.list().map_err(failure)?;
    let told: Vec<Value> = all
        .iter()
        .map(|tracked| describe(tracked, tip(home, tracked)))
        .collect();
    if all.is_empty() && !output.json {
        eprintln!("nothing is tracked; hyprstream clone URL begins");
        return Ok(());
    }
    output.print(&told, |_| {
        let rows: Vec<_> = all
            .iter()
            .map(|tracked| {
                let commit = tip(home, tracked).map(|commit| commit.to_string());
                [
                    tracked.name.to_string(),
                    follows(&tracked.reference),
                    short(commit.as_deref().unwrap_or("-")).to_owned(),
                    origin(tracked),
                ]
            })
            .collect();
        table(["NAME", "FOLLOWS", "COMMIT", "FROM"], &rows)
    })
}

/// What a repository is at, as far as that is here.
fn tip(home: &Home, tracked: &Tracked) -> Option<CommitId> {
    let repository = home.repository(&tracked.name).ok()?;
    followed(&repository, &tracked.reference).ok()
}

fn follows(reference: &Reference) -> String {
    match reference {
        Reference::Head => "HEAD".to_owned(),
        Reference::Branch(name) => name.clone(),
        Reference::Tag(name) => format!("tag {name}"),
        Reference::Commit(commit) => short(commit.as_str()).to_owned(),
    }
}

fn origin(tracked: &Tracked) -> String {
    match &tracked.url {
        Some(url) => url.as_str().to_owned(),
        None => tracked.path.display().to_string(),
    }
}

fn describe(tracked: &Tracked, commit: Option<CommitId>) -> Value {
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    json!({
        "name": tracked.name.as_str(),
        "follows": follows(&tracked.reference),
        "commit": commit.map(|commit| commit.to_string()),
        "url": tracked.url.as_ref().map(RemoteUrl::as_str),
        "path": tracked.path,
        "referenced": tracked.is_referenced,
        "createdUnixSeconds": seconds(tracked.created),
        "fetchedUnixSeconds": tracked.last_fetched.map(seconds),
    })
}

fn show(
    home: &Home,
    tracked: &Tracked,
    output: Output,
    text: impl FnOnce(String) -> String,
) -> Result<(), Failure> {
    let commit = tip(home, tracked);
    output.print(&describe(tracked, commit.clone()), |_| {
        let commit = commit.map(|commit| commit.to_string());
        text(format!(
            "{} ({} at {})",
            tracked.name,
            follows(&tracked.reference),
            short(commit.as_deref().unwrap_or("-"))
        ))
    })
}

pub(crate) fn info(home: &Home, args: &InfoArgs, output: Output) -> Result<(), Failure> {
    let tracked = home.registry()?.get(&args.name).map_err(failure)?;
    let repository = home.repository(&args.name)?;
    let commit = tip(home, &tracked);
    let branches = repository.branches().map_err(refs)?;
    let tags = repository.tags().map_err(refs)?;
    let mut told = describe(&tracked, commit.clone());
    told["branches"] = branches
        .iter()
        .map(|branch| branch.name.clone())
        .collect::<Vec<_>>()
        .into();
    told["tags"] = tags
        .iter()
        .map(|tag| tag.name.clone())
        .collect::<Vec<_>>()
        .into();
    let mut lines = vec![
        format!("name      {}", tracked.name),
        format!("from      {}", origin(&tracked)),
        format!("follows   {}", follows(&tracked.reference)),
        format!("path      {}", tracked.path.display()),
        format!("branches  {}", branches.len()),
        format!("tags      {}", tags.len()),
    ];
    if let Some(commit) = commit {
        let info = repository.commit_info(&commit).map_err(history)?;
        let files = repository
            .diff(None, Some(&commit), None)
            .map_err(history)?;
        let sizes = files.iter().filter_map(|file| file.after.as_ref());
        let all: u64 = sizes.clone().map(|version| version.bytes).sum();
        let pointers = sizes.filter_map(|version| version.pointer.as_ref());
        let missing: u64 = pointers
            .filter(|pointer| !repository.store().contains(&pointer.oid))
            .map(|pointer| pointer.size)
            .sum();
        told["head"] = commit_json(&info);
        told["files"] = files.len().into();
        told["bytes"] = all.into();
        told["missingBytes"] = missing.into();
        lines.push(format!("commit    {commit} {}", info.subject()));
        lines.push(format!("files     {}, {}", files.len(), bytes(all)));
        if missing > 0 {
            lines.push(format!("missing   {} of large files", bytes(missing)));
        }
    }
    output.print(&told, |_| lines.join("\n"))
}

pub(crate) fn rename(home: &Home, args: &RenameArgs, output: Output) -> Result<(), Failure> {
    let renamed = home
        .registry()?
        .rename(&args.name, args.new.clone())
        .map_err(failure)?;
    said(output, "renamed", renamed.name.as_str(), None)
}

pub(crate) fn remove(home: &Home, args: &RemoveArgs, output: Output) -> Result<(), Failure> {
    let registry = home.registry()?;
    let tracked = registry.get(&args.name).map_err(failure)?;
    if !args.force
        && !tracked.is_referenced
        && let Some(branch) = only_here(home, &tracked)?
    {
        return Err(Failure::new(
            Kind::Refused,
            format!("{} has commits on {branch} that nobody else has", args.name),
        )
        .hint("push them, or remove it with --force"));
    }
    registry.remove(&args.name).map_err(failure)?;
    said(output, "removed", args.name.as_str(), None)
}

/// A branch with commits that the upstream does not have.
fn only_here(home: &Home, tracked: &Tracked) -> Result<Option<String>, Failure> {
    let repository = home.repository(&tracked.name)?;
    for branch in repository.branches().map_err(refs)? {
        let there = repository.resolve(&format!("refs/remotes/origin/{}", branch.name));
        let safe = match there {
            Ok(there) => {
                let base = repository
                    .merge_base(&branch.last.id, &there)
                    .map_err(history)?;
                base.as_ref() == Some(&branch.last.id)
            }
            // Without remote branches, as a clone of one commit has them, nothing was made here
            // unless it is not what was cloned.
            Err(_) => false,
        };
        if !safe {
            return Ok(Some(branch.name));
        }
    }
    Ok(None)
}

pub(crate) fn failure(error: ManagerError) -> Failure {
    let failure = by_reason(error.reason(), chain(&error));
    match error {
        ManagerError::NotTracked { .. } => {
            Failure::not_found(chain(&error)).hint("hyprstream list shows what is tracked")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_have_names_that_references_can_say() {
        for (url, name) in [
            ("https://huggingface.co/Qwen/Qwen3-0.6B", "qwen3-0-6b"),
            ("git@example.org:a/My_Model.git", "my-model"),
            ("file:///models/smollm2/.git", "smollm2"),
            ("https://example.org/___", "model"),
        ] {
            assert_eq!(default_name(url), name, "{url}");
            assert!(parse(name).is_ok());
            assert!(name.parse::<hyprstream_contract::ModelRef>().is_ok());
        }
    }
}
