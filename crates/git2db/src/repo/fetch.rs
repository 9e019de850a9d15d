//! Fetching one commit, as little else as the server allows.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use git2::{Direction, ObjectType, Repository};

use crate::{
    CommitId, Credentials, Limits, Observer, Reference, RemoteError, RemoteUrl, RepoError, Scheme,
    libgit::{Session, proxy},
    lock::FileLock,
    remote::{self, RemoteRef},
};

/// What `git fetch --unshallow` asks for.
pub(crate) const UNSHALLOW: i32 = i32::MAX;

/// What to fetch from where.
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    /// The remote.
    pub url: &'a RemoteUrl,
    /// How `commit` was found; helps with servers that do not serve commits by name.
    pub reference: &'a Reference,
    /// The commit.
    pub commit: &'a CommitId,
    /// What beside the commit.
    pub history: History,
    /// How to authenticate.
    pub credentials: &'a Credentials,
}

/// What comes with a fetched commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// All that led to it. Needed where the repository is served to others: libgit2 cannot fetch
    /// from a shallow repository (1.9 refuses the `shallow` lines that git advertises).
    Whole,
    /// Nothing, where the server allows it (depth 1).
    None,
}

/// Brings a commit with its tree into the bare repository at `path`; nothing to do if it is there.
///
/// Asks for a ref that names the commit, or for the commit by its own name where the server allows
/// that, else for the history of the reference, else for everything. One fetch at a time per
/// repository, across processes. Keeps the commit by the ref `refs/hyprstream/commits/<commit>`.
///
/// What is more than [`Limits::default`] is `Refused` and leaves no pack. Neither does a transfer
/// that is broken off, which is a `Timeout` if the server is slower than [`Limits::pace`] says.
pub fn fetch_commit(
    path: &Path,
    fetch: &Fetch<'_>,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    fetch_commit_within(path, fetch, &Limits::default(), observer)
}

/// As [`fetch_commit`], with limits of one's own.
pub fn fetch_commit_within(
    path: &Path,
    fetch: &Fetch<'_>,
    limits: &Limits,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    let Fetch { url, commit, .. } = *fetch;
    let repo = super::open(path).map_err(local)?;
    let _lock = lock(path, observer)?;
    let is_there = || {
        let shallow = fetch.history == History::Whole && repo.is_shallow();
        super::is_complete(&repo, path, commit)
            .map(|there| there && !shallow)
            .map_err(local)
    };
    if is_there()? {
        return keep(&repo, path, commit);
    }
    let heads = remote::list_within(url, fetch.credentials, limits, observer)?;
    let mut last = None;
    for attempt in attempts(fetch, &heads) {
        if observer.is_cancelled() {
            return Err(RemoteError::Cancelled);
        }
        tracing::debug!(refspecs = ?attempt.refspecs, "fetching");
        let wanted = Download {
            url,
            credentials: fetch.credentials,
            names: &attempt.refspecs,
            depth: match attempt.shallow {
                true => 1,
                false if repo.is_shallow() => UNSHALLOW,
                false => 0,
            },
            limits,
        };
        match download(&repo, path, &wanted, observer) {
            Ok(()) => last = None,
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "this way of fetching did not work");
                last = Some(error);
            }
        }
        if is_there()? {
            return keep(&repo, path, commit);
        }
        if let Some(kind) = other_kind(&repo, commit) {
            return Err(RemoteError::NotACommit {
                url: url.clone(),
                reference: fetch.reference.clone(),
                kind,
            });
        }
    }
    Err(last.unwrap_or_else(|| RemoteError::ReferenceNotFound {
        url: url.clone(),
        reference: Reference::Commit(commit.clone()),
    }))
}

/// Waits until nobody else fetches into the repository, and clears away what a killed fetch left.
pub(crate) fn lock(path: &Path, observer: &dyn Observer) -> Result<FileLock, RemoteError> {
    let lock_path = path.join("hyprstream.lock");
    let lock = FileLock::acquire(&lock_path, &|| observer.is_cancelled())
        .map_err(|e| on_disk(&e, format!("cannot lock {}: {e}", lock_path.display())))?
        .ok_or(RemoteError::Cancelled)?;
    super::stale::remove(path)
        .map_err(|e| on_disk(&e, format!("cannot tidy {}: {e}", path.display())))?;
    Ok(lock)
}

/// What the object is if it is here and no commit: a tag may name anything.
fn other_kind(repo: &Repository, commit: &CommitId) -> Option<&'static str> {
    match repo.odb().and_then(|odb| odb.read_header(commit.oid())) {
        Ok((_, ObjectType::Tree)) => Some("a folder"),
        Ok((_, ObjectType::Blob)) => Some("a file"),
        Ok((_, ObjectType::Tag)) => Some("a tag"),
        _ => None,
    }
}

struct Attempt {
    refspecs: Vec<String>,
    shallow: bool,
}

/// Ways to get at the commit, the cheapest first.
fn attempts(fetch: &Fetch<'_>, heads: &[RemoteRef]) -> Vec<Attempt> {
    let Fetch {
        url,
        reference,
        commit,
        ..
    } = *fetch;
    // The local transport knows no depth.
    let shallow = fetch.history == History::None && url.scheme() != Scheme::File;
    let mut attempts = Vec::new();
    let wanted = reference.full_name();
    let at_tip = |head: &&RemoteRef| head.commit == *commit;
    let tip = heads
        .iter()
        .filter(at_tip)
        .find(|head| Some(plain(&head.name)) == wanted.as_deref())
        .or_else(|| heads.iter().find(at_tip));
    if let Some(head) = tip {
        attempts.push(Attempt {
            refspecs: vec![plain(&head.name).to_owned()],
            shallow,
        });
    }
    attempts.push(Attempt {
        refspecs: vec![commit.to_string()],
        shallow,
    });
    if let Some(name) = wanted.filter(|name| heads.iter().any(|head| head.name == *name)) {
        attempts.push(Attempt {
            refspecs: vec![name],
            shallow: false,
        });
    }
    let all = ["refs/heads/*", "refs/tags/*"];
    let refspecs = all.map(|name| format!("+{name}:{name}")).to_vec();
    attempts.push(Attempt {
        refspecs,
        shallow: false,
    });
    attempts
}

/// The ref without the mark of a peeled tag.
fn plain(name: &str) -> &str {
    name.strip_suffix("^{}").unwrap_or(name)
}

/// What [`download`] asks a server for.
pub(crate) struct Download<'a> {
    pub(crate) url: &'a RemoteUrl,
    pub(crate) credentials: &'a Credentials,
    /// Names of refs, or of commits where the server allows it.
    pub(crate) names: &'a [String],
    /// As libgit2 counts: 0 for what there is, [`UNSHALLOW`] for all.
    pub(crate) depth: i32,
    pub(crate) limits: &'a Limits,
}

/// Downloads objects; no ref is changed.
pub(crate) fn download(
    repo: &Repository,
    path: &Path,
    wanted: &Download<'_>,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    let Download {
        url, credentials, ..
    } = *wanted;
    let session = Session::new(url, credentials, observer, wanted.limits, Some(path))?;
    let failed = |error: git2::Error| session.error(&error);
    remote::follow_no_redirects(repo).map_err(|e| local(super::access(repo.path())(e)))?;
    let mut remote = repo.remote_anonymous(&session.address()).map_err(failed)?;
    let mut connection = remote
        .connect_auth(Direction::Fetch, Some(session.callbacks()), Some(proxy()))
        .map_err(failed)?;
    let mut options = session.fetch_options(wanted.depth);
    connection
        .remote()
        .download(wanted.names, Some(&mut options))
        .map_err(failed)
}

/// Whether no other way of fetching can do better.
fn is_final(error: &RemoteError) -> bool {
    matches!(
        error,
        RemoteError::Cancelled
            | RemoteError::DiskFull { .. }
            | RemoteError::AuthenticationFailed { .. }
            | RemoteError::HostUnreachable { .. }
            | RemoteError::HostNotTrusted { .. }
            | RemoteError::Timeout { .. }
            | RemoteError::Refused { .. }
    )
}

fn keep(repo: &Repository, path: &Path, commit: &CommitId) -> Result<(), RemoteError> {
    repo.reference(
        &super::keeping_ref(commit),
        commit.oid(),
        true,
        "hyprstream",
    )
    .map(|_| ())
    .map_err(|e| local(super::access(path)(e)))
}

fn on_disk(error: &io::Error, detail: String) -> RemoteError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RemoteError::DiskFull { detail },
        _ => RemoteError::Local { detail },
    }
}

fn local(error: RepoError) -> RemoteError {
    match error {
        RepoError::DiskFull { path } => RemoteError::DiskFull {
            detail: path.display().to_string(),
        },
        RepoError::Open { ref source, .. } | RepoError::Access { ref source, .. } => {
            RemoteError::Local {
                detail: format!("{error}: {source}"),
            }
        }
        other => RemoteError::Local {
            detail: other.to_string(),
        },
    }
}
