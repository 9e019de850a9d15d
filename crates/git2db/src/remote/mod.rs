//! Asking a remote.

mod error;

use std::fs;

use git2::{Config, Direction, Odb, Repository};

pub use error::RemoteError;

use crate::{
    CommitId, Credentials, Limits, Observer, Reference, RemoteUrl,
    libgit::{Session, proxy, remote_error},
};

const NO_REDIRECTS: &str = "[http]\n\tfollowRedirects = false\n";

/// The commit that `reference` names now, asked from the remote as `git ls-remote` does.
///
/// An annotated tag is peeled. A [`Reference::Commit`] is returned as it is, without asking.
/// An empty repository has no [`Reference::Head`].
pub fn resolve(
    url: &RemoteUrl,
    reference: &Reference,
    credentials: &Credentials,
) -> Result<CommitId, RemoteError> {
    if let Reference::Commit(commit) = reference {
        return Ok(commit.clone());
    }
    let heads = list(url, credentials, &())?;
    pick(&heads, reference).ok_or_else(|| RemoteError::ReferenceNotFound {
        url: url.clone(),
        reference: reference.clone(),
    })
}

/// One ref of a remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRef {
    /// Full name, such as `refs/heads/main` or `HEAD`.
    pub name: String,
    /// What it names. For an annotated tag, the tag's own object: its commit stands at
    /// `refs/tags/NAME^{}`.
    pub commit: CommitId,
}

/// All refs of the remote, as `git ls-remote` shows them.
pub fn list(
    url: &RemoteUrl,
    credentials: &Credentials,
    observer: &dyn Observer,
) -> Result<Vec<RemoteRef>, RemoteError> {
    list_within(url, credentials, &Limits::default(), observer)
}

/// As [`list`], for a push: servers such as our registry make a repository when it is first pushed
/// to, so that one which is not there has no refs. Of one that cannot be, the push itself tells.
pub(crate) fn list_for_push(
    url: &RemoteUrl,
    credentials: &Credentials,
    observer: &dyn Observer,
) -> Result<Vec<RemoteRef>, RemoteError> {
    match list(url, credentials, observer) {
        Err(RemoteError::RepositoryNotFound { .. }) => Ok(Vec::new()),
        other => other,
    }
}

/// As [`list`], with limits of one's own.
pub fn list_within(
    url: &RemoteUrl,
    credentials: &Credentials,
    limits: &Limits,
    observer: &dyn Observer,
) -> Result<Vec<RemoteRef>, RemoteError> {
    let session = Session::new(url, credentials, observer, limits, None)?;
    let repo = no_redirects().map_err(|e| remote_error(url, &e))?;
    let mut remote = repo
        .remote_anonymous(&session.address())
        .map_err(|e| remote_error(url, &e))?;
    let connection = remote
        .connect_auth(Direction::Fetch, Some(session.callbacks()), Some(proxy()))
        .map_err(|e| session.error(&e))?;
    let heads = connection.list().map_err(|e| session.error(&e))?;
    Ok(heads
        .iter()
        .map(|head| RemoteRef {
            name: head.name().to_owned(),
            commit: CommitId::from_oid(head.oid()),
        })
        .collect())
}

/// A repository in memory whose configuration keeps libgit2 from following a redirect to another
/// host: without one it would follow, and nobody could tell before where to.
fn no_redirects() -> Result<Repository, git2::Error> {
    let repo = Repository::from_odb(Odb::new()?)?;
    let file = tempfile::NamedTempFile::new()
        .and_then(|file| fs::write(file.path(), NO_REDIRECTS).map(|()| file))
        .map_err(|e| git2::Error::from_str(&format!("cannot write a configuration: {e}")))?;
    repo.set_config(&Config::open(file.path())?.snapshot()?)?;
    Ok(repo)
}

/// Lets a repository's own connections follow no redirect to another host.
pub(crate) fn follow_no_redirects(repo: &Repository) -> Result<(), git2::Error> {
    let mut config = repo.config()?;
    if config.get_bool("http.followRedirects").ok() == Some(false) {
        return Ok(());
    }
    config.set_bool("http.followRedirects", false)
}

/// The commit that `reference` names among `heads`.
pub(crate) fn pick(heads: &[RemoteRef], reference: &Reference) -> Option<CommitId> {
    let name = reference.full_name()?;
    let find = |name: &str| heads.iter().find(|head| head.name == name);
    find(&format!("{name}^{{}}"))
        .or_else(|| find(&name))
        .map(|head| head.commit.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotated_tag_is_peeled() {
        let id = |digit: &str| digit.repeat(40).parse::<CommitId>().unwrap();
        let head = |name: &str, digit| RemoteRef {
            name: name.to_owned(),
            commit: id(digit),
        };
        let heads = [
            head("refs/tags/v1", "1"),
            head("refs/tags/v1^{}", "2"),
            head("HEAD", "3"),
        ];
        assert_eq!(pick(&heads, &Reference::Tag("v1".into())), Some(id("2")));
        assert_eq!(pick(&heads, &Reference::Head), Some(id("3")));
        assert_eq!(pick(&heads, &Reference::Branch("v1".into())), None);
    }
}
