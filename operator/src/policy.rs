//! What the installation forbids and adds, beyond what a spec says.

use std::{
    fmt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use clap::ValueEnum;
use hyprstream_contract::{WorkerKeys, worker_key::WeakMaster};
use url::Url;

use crate::{
    cache::digest,
    source::{InvalidSource, SourceKey},
};

/// What the installation forbids and adds.
pub struct Policy {
    /// Hosts, as HOST or HOST:PORT, that credentials may go to without TLS.
    pub insecure_hosts: Vec<String>,
    /// The keys of workers.
    pub keys: MasterKey,
    /// Whether workers speak TLS.
    pub worker_tls: WorkerTls,
}

/// Whether workers speak TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WorkerTls {
    /// They speak plain HTTP.
    #[default]
    Off,
    /// They speak TLS, and on a port of its own plain HTTP, which gateways of an earlier release
    /// and clients of a Model's Service ask.
    Permissive,
    /// They speak TLS alone.
    Strict,
}

impl Policy {
    /// Nothing, unless credentials of a source would be sent where anybody can read them and that is
    /// not allowed.
    ///
    /// # Errors
    /// [`InvalidSource::InsecureCredentials`].
    pub fn check(&self, source: &SourceKey) -> Result<(), InvalidSource> {
        let Some(host) = source.secret.as_ref().and_then(|_| plain_host(&source.url)) else {
            return Ok(());
        };
        if self.insecure_hosts.iter().any(|h| names(h, &host)) {
            return Ok(());
        }
        Err(InvalidSource::InsecureCredentials(host))
    }
}

/// Host and port of an `http://` URL.
fn plain_host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok().filter(|u| u.scheme() == "http")?;
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Whether an allowed host is that of a URL; without a port, on all of them.
fn names(allowed: &str, host: &str) -> bool {
    let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
    allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(bare)
}

/// The key that a Model's workers ask for.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkerKey(String);

impl WorkerKey {
    /// The key itself, or those that are accepted while the master key is changed, one a line.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// Tells one key from another, and nothing of either.
    pub fn digest(&self) -> String {
        digest(&self.0)
    }
}

impl fmt::Debug for WorkerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerKey(..)")
    }
}

/// The secret that all keys of workers are made from, out of a file that may change.
pub struct MasterKey {
    path: PathBuf,
    keys: Mutex<(String, WorkerKeys)>,
}

/// There is no master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read.
    #[error("read the workers' master key from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in it is too short.
    #[error("use the workers' master key in {path}")]
    Weak {
        /// The file.
        path: PathBuf,
        /// How short.
        #[source]
        source: WeakMaster,
    },
}

impl MasterKey {
    /// Reads it.
    ///
    /// # Errors
    /// See [`MasterKeyError`].
    pub fn open(path: PathBuf) -> Result<Self, MasterKeyError> {
        let keys = Mutex::new(read(&path)?);
        Ok(Self { path, keys })
    }

    /// Reads it again; says whether it is another one.
    ///
    /// # Errors
    /// See [`MasterKeyError`]. The one before stays.
    pub fn refresh(&self) -> Result<bool, MasterKeyError> {
        let new = read(&self.path)?;
        let mut known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = known.0 != new.0;
        *known = new;
        Ok(is_other)
    }

    /// The key of a Model's workers.
    pub fn of(&self, namespace: &str, name: &str) -> WorkerKey {
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        WorkerKey(known.1.accepted(namespace, name).join("\n"))
    }

    /// The key to show a Model's workers, who accept it whichever key they ask for.
    pub fn shown(&self, namespace: &str, name: &str) -> String {
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.of(namespace, name)
    }
}

fn read(path: &std::path::Path) -> Result<(String, WorkerKeys), MasterKeyError> {
    let text = std::fs::read_to_string(path).map_err(|source| MasterKeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let keys = WorkerKeys::new(&text).map_err(|source| MasterKeyError::Weak {
        path: path.to_owned(),
        source,
    })?;
    Ok((text.trim().to_owned(), keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_over_plain_http_only_to_hosts_that_are_named() {
        let host = plain_host("http://Git.example.org:8080/m").unwrap();
        assert_eq!(host, "git.example.org:8080");
        for (allowed, expected) in [
            ("git.example.org", true),
            ("GIT.example.org:8080", true),
            ("git.example.org:80", false),
            ("example.org", false),
            ("", false),
        ] {
            assert_eq!(names(allowed, &host), expected, "{allowed}");
        }
        assert_eq!(plain_host("https://git.example.org/m"), None);
        assert_eq!(plain_host("git@git.example.org:m"), None);
        assert_eq!(plain_host("http://[::1]/m").as_deref(), Some("[::1]"));
    }

    #[test]
    fn a_new_master_key_is_noticed_and_a_bad_one_leaves_the_old() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        write("short");
        assert!(matches!(
            MasterKey::open(file.path().to_owned()),
            Err(MasterKeyError::Weak { .. })
        ));
        write("0123456789abcdef0123456789abcdef\n");
        let master = MasterKey::open(file.path().to_owned()).unwrap();
        let first = master.of("ns", "m");
        assert!(!master.refresh().unwrap());
        write("");
        assert!(master.refresh().is_err());
        assert_eq!(master.of("ns", "m"), first);
        write("fedcba9876543210fedcba9876543210");
        assert!(master.refresh().unwrap());
        assert_ne!(master.of("ns", "m"), first);
        assert_eq!(format!("{first:?}"), "WorkerKey(..)");
    }
}
