//! Where a repository lies.

use std::{fmt, path::Path, sync::Arc};

/// How a remote is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `https://`
    Https,
    /// `http://`
    Http,
    /// `ssh://` and `user@host:path`
    Ssh,
    /// A path on this machine; only [`RemoteUrl::local`] makes one.
    File,
}

/// The URL of a git repository, checked and without credentials.
///
/// Two URLs are equal if their [canonical forms](RemoteUrl::as_str) are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RemoteUrl(Arc<Parts>);

#[derive(PartialEq, Eq, Hash)]
struct Parts {
    text: String,
    scheme: Scheme,
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

/// A text that is no URL of a repository, and why. Never shows a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// The URL holds a user name or password.
    #[error(
        "the URL for host {host:?} holds credentials: take them out of the URL and put them into \
         the Secret that the Model's source names"
    )]
    EmbeddedCredentials {
        /// The host of the URL.
        host: String,
    },
    /// The scheme is not one that is fetched from.
    #[error("the scheme {0:?} is not supported: use https://, http://, ssh:// or user@host:path")]
    UnsupportedScheme(String),
    /// Something else is wrong.
    #[error("{url:?} is not the URL of a git repository: {why}")]
    Malformed {
        /// The text, shortened, with what stands before an `@` left out.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl InvalidUrl {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        "InvalidURL"
    }
}

/// Longest URL that is looked at, in bytes.
const MAX_BYTES: usize = 2048;

impl RemoteUrl {
    /// Parses `https://host/path`, `http://host/path`, `ssh://user@host/path` or
    /// `user@host:path`.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let malformed = |why| InvalidUrl::Malformed {
            url: shown(text),
            why,
        };
        if text.len() > MAX_BYTES {
            return Err(malformed("it is longer than 2048 bytes"));
        }
        if text.is_empty() || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(malformed(
                "it is empty or holds spaces or control characters",
            ));
        }
        match text.split_once("://") {
            Some((scheme, _)) => parse_url(text, scheme),
            None => parse_scp(text),
        }
    }

    /// The repository at a path of this machine, for tests and tools. [`Self::parse`] never makes
    /// one, so that no user of a server names paths on it.
    pub fn local(path: &Path) -> Result<Self, InvalidUrl> {
        let url = url::Url::from_file_path(path).map_err(|()| InvalidUrl::Malformed {
            url: path.display().to_string(),
            why: "the path must be absolute",
        })?;
        Ok(Self::new(Parts {
            text: url.as_str().trim_end_matches('/').to_owned(),
            scheme: Scheme::File,
            user: None,
            host: String::new(),
            port: None,
        }))
    }

    /// A URL as our own files and a repository's configuration hold it: also `file://` and an
    /// absolute path. Not for what users of a server give.
    pub(crate) fn parse_stored(text: &str) -> Result<Self, InvalidUrl> {
        if text.starts_with('/') {
            return Self::local(Path::new(text));
        }
        let path = url::Url::parse(text)
            .ok()
            .filter(|url| url.scheme() == "file")
            .and_then(|url| url.to_file_path().ok());
        path.map_or_else(|| Self::parse(text), |path| Self::local(&path))
    }

    /// The path that [`Self::local`] was given.
    pub fn to_path(&self) -> Option<std::path::PathBuf> {
        match self.0.scheme {
            Scheme::File => url::Url::parse(&self.0.text).ok()?.to_file_path().ok(),
            _ => None,
        }
    }

    fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The canonical form: scheme and host in lower case, no default port, no trailing slash, no
    /// credentials. `/a` and `/a.git` stay two URLs, because servers may serve both.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The canonical form with another host.
    pub(crate) fn with_host(&self, host: &str) -> String {
        let before = self.as_str().find("://").map_or(0, |at| at + 3);
        let before = before + self.user().map_or(0, |user| user.len() + 1);
        let (before, after) = self.as_str().split_at(before);
        format!("{before}{host}{}", &after[self.host().len()..])
    }

    /// How it is reached.
    pub fn scheme(&self) -> Scheme {
        self.0.scheme
    }

    /// The host in lower case; empty for [`Scheme::File`].
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// The port, if it is not the scheme's own.
    pub fn port(&self) -> Option<u16> {
        self.0.port
    }

    /// The user name of an ssh URL.
    pub fn user(&self) -> Option<&str> {
        self.0.user.as_deref()
    }

    /// Where the LFS API of this repository lies, `<url>.git/info/lfs`; `None` if not on HTTP.
    pub fn lfs_endpoint(&self) -> Option<String> {
        match self.0.scheme {
            Scheme::Https | Scheme::Http => {
                let base = self.0.text.strip_suffix(".git").unwrap_or(&self.0.text);
                Some(format!("{base}.git/info/lfs"))
            }
            Scheme::Ssh | Scheme::File => None,
        }
    }
}

fn parse_url(text: &str, scheme: &str) -> Result<RemoteUrl, InvalidUrl> {
    let malformed = |why| InvalidUrl::Malformed {
        url: shown(text),
        why,
    };
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        "ssh" | "git+ssh" | "ssh+git" => Scheme::Ssh,
        other => {
            return Err(InvalidUrl::UnsupportedScheme(
                other.chars().take(20).collect(),
            ));
        }
    };
    let url = url::Url::parse(text).map_err(|_| malformed("it cannot be parsed"))?;
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    if host.is_empty() || host.starts_with('-') {
        return Err(malformed("it names no host"));
    }
    let credentials = url.password().is_some() || !url.username().is_empty();
    if url.password().is_some() || (scheme != Scheme::Ssh && credentials) {
        return Err(InvalidUrl::EmbeddedCredentials { host });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(malformed("it has a query or a fragment"));
    }
    let path = url.path().trim_end_matches('/');
    if path.is_empty() || path.starts_with("/-") {
        return Err(malformed("it names no repository on the host"));
    }
    let user = (!url.username().is_empty()).then(|| url.username().to_owned());
    if user.as_deref().is_some_and(|u| !is_user(u)) {
        return Err(malformed(
            "the user name holds characters that are not allowed",
        ));
    }
    let (name, default_port) = match scheme {
        Scheme::Https => ("https", 443),
        Scheme::Http => ("http", 80),
        _ => ("ssh", 22),
    };
    let port = url.port().filter(|p| *p != default_port);
    let at = user.as_ref().map(|u| format!("{u}@")).unwrap_or_default();
    let colon = port.map(|p| format!(":{p}")).unwrap_or_default();
    let text = format!("{name}://{at}{host}{colon}{path}");
    Ok(RemoteUrl::new(Parts {
        text,
        scheme,
        user,
        host,
        port,
    }))
}

/// `[user@]host:path`. The path is relative to the user's home, unlike that of `ssh://`.
fn parse_scp(text: &str) -> Result<RemoteUrl, InvalidUrl> {
    let malformed = |why| InvalidUrl::Malformed {
        url: shown(text),
        why,
    };
    let (authority, path) = text
        .split_once(':')
        .ok_or_else(|| malformed("it has neither a scheme nor the form user@host:path"))?;
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let host_ok = !host.is_empty()
        && !host.starts_with('-')
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !host_ok {
        return Err(malformed("what stands before ':' is not user@host"));
    }
    if user.is_some_and(|u| !is_user(u)) {
        return Err(malformed(
            "the user name holds characters that are not allowed",
        ));
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() || path.starts_with('-') || path.contains(['@', '?', '#']) {
        return Err(malformed("it names no repository on the host"));
    }
    let host = host.to_ascii_lowercase();
    let at = user.map(|u| format!("{u}@")).unwrap_or_default();
    Ok(RemoteUrl::new(Parts {
        text: format!("{at}{host}:{path}"),
        scheme: Scheme::Ssh,
        user: user.map(str::to_owned),
        host,
        port: None,
    }))
}

fn is_user(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// The text without anything that could be a password.
fn shown(text: &str) -> String {
    let text = match text.rsplit_once('@') {
        Some((_, rest)) => format!("...@{rest}"),
        None => text.to_owned(),
    };
    text.chars().take(200).collect()
}

impl std::str::FromStr for RemoteUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) -> RemoteUrl {
        let url = RemoteUrl::parse(text).unwrap();
        assert_eq!(url.as_str(), canonical);
        assert_eq!(RemoteUrl::parse(canonical).unwrap(), url);
        url
    }

    #[test]
    fn a_host_is_replaced_and_nothing_else() {
        for (text, expected) in [
            ("ssh://git@host:2222/a/host", "ssh://git@other:2222/a/host"),
            ("ssh://host/a", "ssh://other/a"),
            ("ssh://host@host/a", "ssh://host@other/a"),
            ("ssh://git@[::1]:2222/a", "ssh://git@other:2222/a"),
            ("git@host:a/b", "git@other:a/b"),
            ("host:a", "other:a"),
        ] {
            let url = RemoteUrl::parse(text).unwrap();
            assert_eq!(url.with_host("other"), expected);
        }
    }

    #[test]
    fn urls_are_read_into_their_canonical_form() {
        check(
            "HTTPS://GitHub.com:443/Org/Repo.git/",
            "https://github.com/Org/Repo.git",
        );
        check("http://host:8080/a", "http://host:8080/a");
        check("https://host/a/../b", "https://host/b");
        let ssh = check("ssh://git@Host:22/a/b", "ssh://git@host/a/b");
        assert_eq!(
            (ssh.user(), ssh.host(), ssh.port()),
            (Some("git"), "host", None)
        );
        assert_eq!(
            check("git@GitHub.com:org/repo", "git@github.com:org/repo").host(),
            "github.com"
        );
    }

    #[test]
    fn credentials_in_the_url_are_refused_and_not_shown() {
        for text in [
            "https://user:hunter2@host/a",
            "https://hunter2@host/a",
            "ssh://git:hunter2@host/a",
            "http://:hunter2@host/a",
        ] {
            let error = RemoteUrl::parse(text).unwrap_err();
            assert!(
                matches!(error, InvalidUrl::EmbeddedCredentials { .. }),
                "{error}"
            );
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = RemoteUrl::parse("user:hunter2@ho st/x").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn what_is_no_remote_is_refused() {
        for text in [
            "",
            "main",
            "file:///etc",
            "git://host/a",
            "ext::sh -c id",
            "https://",
            "https://host",
            "https://host/",
            "https://host/a?x",
            "https://host/a#x",
            "ssh://-oProxyCommand=x/a",
            "-oProxyCommand=x:a",
            "git@host:",
            "git@host:-x",
            "https://ho\nst/a",
            "/srv/repo",
        ] {
            assert!(RemoteUrl::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_lfs_endpoint_has_dot_git_once() {
        let endpoint = |t: &str| RemoteUrl::parse(t).unwrap().lfs_endpoint();
        let expected = Some("https://huggingface.co/org/name.git/info/lfs".to_owned());
        assert_eq!(endpoint("https://huggingface.co/org/name"), expected);
        assert_eq!(endpoint("https://huggingface.co/org/name.git"), expected);
        assert_eq!(endpoint("git@host:a"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_is_stable(text in "(https?://|ssh://|git@)?.{0,60}") {
            if let Ok(url) = RemoteUrl::parse(&text) {
                prop_assert_eq!(RemoteUrl::parse(url.as_str()).unwrap(), url);
            }
        }
    }
}
