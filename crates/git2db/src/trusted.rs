//! Servers that are known by certificates of their own.
//!
//! libgit2 has one set of roots for the whole process, the system's, to which roots can only be
//! added, and added for everybody. So those stay as they are, and connections to the servers that
//! are named here get a verdict of ours in their place.

use std::sync::{Mutex, PoisonError};

use hyprstream_tls::Trust;
use url::Url;

use crate::{RemoteUrl, Scheme};

static TRUSTED: Mutex<Vec<(Origin, Trust)>> = Mutex::new(Vec::new());

/// Host and port of an https server.
type Origin = (String, u16);

/// A text that is no URL of a server. It does not show it, for there may be a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not the URL of a server, such as https://registry.example")]
pub struct NoServer;

/// From now on, in this whole process, believes the server of `url`, which is an https one, only
/// by the authorities of `trust`. All others go on being believed by the system's.
pub fn trust_only(url: &RemoteUrl, trust: Trust) {
    if let Some(origin) = origin(url) {
        add(origin, trust);
    }
}

/// As [`trust_only`], for the URL of a server that need not name a repository.
///
/// # Errors
/// `url` is no URL with a host.
pub fn trust_server(url: &str, trust: Trust) -> Result<(), NoServer> {
    let url = Url::parse(url).map_err(|_| NoServer)?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(NoServer);
    }
    if let Some(origin) = origin_of_endpoint(&url) {
        add(origin, trust);
    }
    Ok(())
}

fn add(origin: Origin, trust: Trust) {
    let mut all = TRUSTED.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(known, _)| *known != origin);
    all.push((origin, trust));
}

/// By what the server of `url` is believed, if not by the system's authorities.
pub(crate) fn of(url: &RemoteUrl) -> Option<Trust> {
    find(&origin(url)?)
}

/// The same of a URL that is no repository's.
pub(crate) fn of_endpoint(url: &Url) -> Option<Trust> {
    find(&origin_of_endpoint(url)?)
}

fn origin_of_endpoint(url: &Url) -> Option<Origin> {
    let host = url.host_str().filter(|_| url.scheme() == "https")?;
    Some((host.to_ascii_lowercase(), url.port_or_known_default()?))
}

fn find(origin: &Origin) -> Option<Trust> {
    let all = TRUSTED.lock().unwrap_or_else(PoisonError::into_inner);
    let found = all.iter().find(|(known, _)| known == origin);
    found.map(|(_, trust)| trust.clone())
}

fn origin(url: &RemoteUrl) -> Option<Origin> {
    (url.scheme() == Scheme::Https)
        .then(|| (url.host().to_ascii_lowercase(), url.port().unwrap_or(443)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_by_scheme_host_and_port() {
        let url = |text: &str| RemoteUrl::parse(text).unwrap();
        trust_only(&url("https://trusted.example/git/a"), Trust::nobody());
        let known = |text: &str| {
            let endpoint = of_endpoint(&Url::parse(text).unwrap()).is_some();
            assert_eq!(of(&url(text)).is_some(), endpoint, "{text}");
            endpoint
        };
        assert!(known("https://trusted.example/other"));
        assert!(known("https://TRUSTED.example:443/a"));
        assert!(!known("https://trusted.example:444/a"));
        assert!(!known("http://trusted.example:443/a"));
        assert!(!known("https://example/a"));
        // A server's own URL, without a repository.
        let server = |text: &str| trust_server(text, Trust::nobody());
        assert_eq!(server("https://only.example"), Ok(()));
        assert!(known("https://only.example/git/a.git"));
        assert_eq!(server("http://plain.example"), Ok(()));
        assert!(!known("http://plain.example/git/a.git"));
        for none in ["", "registry", "unix:/run/x"] {
            assert_eq!(server(none), Err(NoServer), "{none}");
        }
    }
}
