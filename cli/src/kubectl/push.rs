//! `push`: a folder becomes a repository of the cluster's registry.

use std::path::{Path, PathBuf};

use hyprstream_git2db::{
    CommitId, Credentials, Include, Reference, RemoteError, RemoteUrl,
    commit::{self, Change, CommitError},
    remote,
    repo::{self, Fetch, History},
    store::ObjectStore,
    tree::{self, Limits},
    trust_only,
};
use serde_json::json;

use super::{forward::Forward, run::Kubectl};
use crate::{
    author,
    failure::{Context as _, Failure, Kind, chain},
    files,
    output::{Output, bytes, short},
    progress::Transfer,
};

#[derive(Debug, clap::Args)]
pub(super) struct PushArgs {
    /// The folder, in Hugging Face's layout.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Name of the repository; a Model names it as hyprstream://NAMESPACE/NAME.
    #[arg(value_name = "NAME")]
    name: String,
    /// Branch that the commit is put on.
    #[arg(long, default_value = "main")]
    branch: String,
    /// What the commit says.
    #[arg(long, short, default_value = "Push with kubectl hyprstream")]
    message: String,
    /// Service account whose token the registry is shown; you have to be allowed to make one.
    #[arg(long, default_value = "default", value_name = "NAME")]
    service_account: String,
    /// A token of the registry in place of one that the cluster makes.
    #[arg(long, value_name = "FILE", conflicts_with = "service_account")]
    token_file: Option<PathBuf>,
}

/// Runs `push`.
pub(super) fn push(kubectl: &Kubectl, args: &PushArgs, output: Output) -> Result<(), Failure> {
    let changes = files::all_below(&args.folder)?;
    if changes.is_empty() {
        return Err(Failure::usage(format!(
            "{} has no files",
            args.folder.display()
        )));
    }
    let namespace = kubectl.namespace()?;
    let token = token(kubectl, args, &namespace)?;
    let service = kubectl.system_service("registry")?;
    let forward = Forward::to(kubectl, &service)?;
    let scheme = if service.is_https { "https" } else { "http" };
    let url = format!(
        "{scheme}://{}/git/{namespace}/{}.git",
        forward.address(),
        args.name
    );
    let url = RemoteUrl::parse(&url).map_err(|error| Failure::usage(chain(&error)))?;
    if service.is_https {
        trust_only(&url, kubectl.trust(&service.namespace)?);
    }
    let pushed = Push {
        url: &url,
        credentials: Credentials::Token(token),
        branch: &args.branch,
    }
    .run(changes, &args.message)?;
    let source = format!("hyprstream://{namespace}/{}", args.name);
    let told = json!({
        "source": source,
        "branch": args.branch,
        "commit": pushed.commit.to_string(),
        "changed": pushed.changed,
        "uploadedBytes": pushed.uploaded_bytes,
    });
    output.print(&told, |_| {
        let commit = pushed.commit.to_string();
        let commit = short(&commit);
        if pushed.changed {
            format!(
                "{source} has commit {commit} on {} ({} of large files sent)",
                args.branch,
                bytes(pushed.uploaded_bytes)
            )
        } else {
            format!("{source} has all of it: commit {commit}")
        }
    })
}

fn token(kubectl: &Kubectl, args: &PushArgs, namespace: &str) -> Result<String, Failure> {
    if let Some(file) = &args.token_file {
        let token = std::fs::read_to_string(file)
            .context(format_args!("cannot read {}", file.display()))?;
        return Ok(token.trim().to_owned());
    }
    let token = kubectl.output(&[
        "create",
        "token",
        &args.service_account,
        "--namespace",
        namespace,
        "--audience",
        "hyprstream",
        "--duration",
        "1h",
    ])?;
    Ok(token.trim().to_owned())
}

struct Push<'a> {
    url: &'a RemoteUrl,
    credentials: Credentials,
    branch: &'a str,
}

struct Pushed {
    commit: CommitId,
    changed: bool,
    uploaded_bytes: u64,
}

impl Push<'_> {
    /// Makes the files a commit on top of what the branch has there, and pushes it.
    fn run(&self, files: Vec<Change>, message: &str) -> Result<Pushed, Failure> {
        let place = tempfile::tempdir().context("no temporary folder")?;
        let bare = place.path().join("git");
        let store =
            ObjectStore::open(&place.path().join("store")).context("no store for large files")?;
        repo::init_bare(&bare).context("no temporary repository")?;
        let base = self.base(&bare)?;
        let mut changes = removed(&bare, base.as_ref(), &files)?;
        changes.extend(files);
        let staged = commit::stage(&bare, base.as_ref(), &changes, &store).map_err(refused)?;
        if let Some(base) = &base
            && commit::tree_of(&bare, base).map_err(refused)? == staged.tree
        {
            return Ok(Pushed {
                commit: base.clone(),
                changed: false,
                uploaded_bytes: 0,
            });
        }
        if let Some(base) = &base {
            let branch = Reference::Branch(self.branch.to_owned());
            repo::set_reference(&bare, &branch, base).context("the branch cannot be made")?;
        }
        let author = author::author()?;
        let commit =
            commit::commit(&bare, self.branch, &staged, &author, message).map_err(refused)?;
        let transfer = Transfer::start("pushing");
        let sent = commit::push(
            &bare,
            self.branch,
            self.url,
            &self.credentials,
            &store,
            &transfer,
        )
        .map_err(refused)?;
        Ok(Pushed {
            commit,
            changed: true,
            uploaded_bytes: sent.bytes_moved,
        })
    }

    /// What the branch names there now, with its git objects.
    fn base(&self, bare: &Path) -> Result<Option<CommitId>, Failure> {
        let reference = Reference::Branch(self.branch.to_owned());
        let commit = match remote::resolve(self.url, &reference, &self.credentials) {
            Ok(commit) => commit,
            Err(error) if is_new(&error) => return Ok(None),
            Err(error) => return Err(remote_failure(&error)),
        };
        let fetch = Fetch {
            url: self.url,
            reference: &reference,
            commit: &commit,
            history: History::Whole,
            credentials: &self.credentials,
        };
        let transfer = Transfer::start("fetching");
        repo::fetch_commit(bare, &fetch, &transfer).map_err(|error| remote_failure(&error))?;
        Ok(Some(commit))
    }
}

/// The first push makes repository and branch.
fn is_new(error: &RemoteError) -> bool {
    matches!(error.reason(), "RepositoryNotFound" | "ReferenceNotFound")
}

/// The files of the base that are no more.
fn removed(bare: &Path, base: Option<&CommitId>, files: &[Change]) -> Result<Vec<Change>, Failure> {
    let Some(base) = base else {
        return Ok(Vec::new());
    };
    let there: std::collections::HashSet<&str> = files
        .iter()
        .filter_map(|change| match change {
            Change::Put { path, .. } => Some(path.as_str()),
            Change::Remove { .. } => None,
        })
        .collect();
    let old = tree::walk(bare, base, &Include::all(), &Limits::default())
        .context("what the branch has cannot be read")?;
    Ok(old
        .into_iter()
        .map(|entry| entry.path)
        // Lines that staging adds to it are not in the folder.
        .filter(|path| !there.contains(path.as_str()) && path != ".gitattributes")
        .map(|path| Change::Remove { path })
        .collect())
}

fn refused(error: CommitError) -> Failure {
    let kind = match error.reason() {
        "AuthenticationFailed" | "HostUnreachable" | "UpstreamError" => Kind::Remote,
        "Rejected" => Kind::Refused,
        _ => Kind::Failed,
    };
    with_hint(Failure::new(kind, chain(&error)), error.reason())
}

fn remote_failure(error: &RemoteError) -> Failure {
    with_hint(Failure::new(Kind::Remote, chain(error)), error.reason())
}

fn with_hint(failure: Failure, reason: &str) -> Failure {
    match reason {
        "AuthenticationFailed" => failure.hint(
            "the service account needs the right to push: see docs/registry.md, Rights",
        ),
        "Rejected" => failure.hint("somebody pushed meanwhile, or the branch is protected: run it again, or push to another --branch"),
        _ => failure,
    }
}
