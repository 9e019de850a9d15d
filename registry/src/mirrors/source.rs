//! Where a Model's repository lies.

use hyprstream_contract::registry::{self, Credentials, Reference, SCHEME, Upstream, reason};
use hyprstream_git2db::{RemoteError, RemoteUrl, guarded};

use super::failure::Failure;
use crate::{
    names::{Namespace, Repository},
    state::State,
};

/// A parsed [`Upstream`].
#[derive(Debug)]
pub(crate) enum Source {
    /// A repository that was pushed here, which the namespace may read.
    Here(Repository),
    /// Somewhere else.
    There(RemoteUrl),
}

/// Where `upstream` lies.
pub(crate) fn parse(upstream: &Upstream) -> Result<Source, Failure> {
    let Some(path) = upstream
        .url
        .strip_prefix(SCHEME)
        .and_then(|rest| rest.strip_prefix("://"))
    else {
        return Ok(Source::There(RemoteUrl::parse(&upstream.url)?));
    };
    let invalid = |why: String| Failure::lasting(reason::INVALID_URL, why);
    let (namespace, name) = path
        .split_once('/')
        .ok_or_else(|| invalid("the form is hyprstream://NAMESPACE/NAME".to_owned()))?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    let namespace: Namespace = namespace.parse().map_err(|e| invalid(format!("{e}")))?;
    let name = name.parse().map_err(|e| invalid(format!("{e}")))?;
    if namespace.as_str() != upstream.namespace {
        return Err(Failure::lasting(
            reason::ACCESS_DENIED,
            format!(
                "{} belongs to namespace {namespace}: a Model of namespace {} cannot read it; \
                 push the repository to its own namespace",
                upstream.url, upstream.namespace
            ),
        ));
    }
    if upstream.credentials.is_some() {
        return Err(Failure::lasting(
            reason::INVALID_URL,
            "hyprstream:// needs no credentials: take secretRef out of the source",
        ));
    }
    Ok(Source::Here(Repository::Pushed { namespace, name }))
}

/// Asks an upstream through git, unless it is at an address that is not allowed. Blocks.
///
/// The answer for such a one is that of a host that does not exist, so that nobody learns which
/// names and addresses of the cluster there are. The address is looked at before anything is
/// connected, and again at each connection: a name may lead elsewhere by then.
pub(crate) fn ask<T>(
    state: &State,
    url: &RemoteUrl,
    question: impl FnOnce() -> Result<T, RemoteError>,
) -> Result<T, Failure> {
    if !state
        .upstreams
        .allows_host(url.host(), url.port().unwrap_or(443))
    {
        tracing::debug!(
            host = url.host(),
            "an upstream has no address that is allowed"
        );
        return Err(Failure::unreachable(url.host()));
    }
    guarded(state.fence(), question).map_err(Failure::from)
}

/// The reference as git2db names it.
pub(crate) fn reference(reference: &Reference) -> hyprstream_git2db::Reference {
    use hyprstream_git2db::Reference as Theirs;
    match reference {
        Reference::Head => Theirs::Head,
        Reference::Branch(name) => Theirs::Branch(name.clone()),
        Reference::Tag(name) => Theirs::Tag(name.clone()),
        Reference::Commit(commit) => Theirs::Commit(commit_id(commit)),
    }
}

/// The commit as git2db names it.
pub(crate) fn commit_id(commit: &hyprstream_contract::CommitId) -> hyprstream_git2db::CommitId {
    commit
        .as_str()
        .parse()
        .expect("both are 40 hexadecimal digits")
}

/// The credentials as git2db names them.
pub(crate) fn credentials(
    credentials: Option<&registry::Credentials>,
) -> hyprstream_git2db::Credentials {
    use hyprstream_git2db::Credentials as Theirs;
    match credentials.cloned() {
        None => Theirs::None,
        Some(Credentials::Token(token)) => Theirs::Token(token),
        Some(Credentials::Basic { username, password }) => Theirs::Basic { username, password },
        Some(Credentials::SshKey {
            private_key,
            passphrase,
            known_hosts,
        }) => Theirs::SshKey {
            private_key,
            passphrase,
            known_hosts,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, namespace: &str) -> Result<Source, &'static str> {
        let (url, namespace) = (url.to_owned(), namespace.to_owned());
        parse(&Upstream {
            url,
            namespace,
            credentials: None,
        })
        .map_err(|failure| failure.reason)
    }

    #[test]
    fn a_pushed_repository_is_read_by_its_own_namespace_only() {
        let Ok(Source::Here(repository)) = check("hyprstream://a/m", "a") else {
            panic!()
        };
        assert_eq!(repository.to_string(), "git/a/m");
        assert_eq!(
            check("hyprstream://a/m", "b").unwrap_err(),
            reason::ACCESS_DENIED
        );
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for url in [
            "hyprstream://",
            "hyprstream://a",
            "hyprstream://a/",
            "hyprstream://a/b/c",
            "hyprstream://a/../b",
            "hyprstream://A/m",
            "file:///etc",
            "",
            "/etc",
        ] {
            assert_eq!(check(url, "a").unwrap_err(), reason::INVALID_URL, "{url}");
        }
    }
}
