//! How we use libgit2: settings of the process, credentials, and what its errors mean.

mod classify;
mod memory;
mod recreate;
mod settings;
mod ssh;
mod stream;

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    time::Instant,
};

use git2::cert::Cert;
use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, ErrorClass, ErrorCode,
    FetchOptions, ProxyOptions, RemoteCallbacks, RemoteRedirect,
};

pub(crate) use classify::{is_disk_full, is_malformed, is_memory_full, remote_error};
pub(crate) use memory::{allow as allow_objects, largest as largest_object};
pub(crate) use recreate::recreate;
pub(crate) use settings::init;
pub use settings::{Timeouts, set_timeouts};
pub use stream::guarded;

use hyprstream_tls::Trust;

use crate::{Credentials, Limits, Observer, Progress, RemoteError, RemoteUrl, Scheme, pace::Meter};

/// How often credentials are given on one connection before they count as refused.
const MAX_ASKED: u8 = 2;

/// Bytes of a pack after which the free space is looked at again. libgit2 writes packs through a
/// mapping: where the disk is full, that ends the process.
const SPACE_CHECK_BYTES: u64 = 256 << 10;

/// One connection to a remote: credentials, host keys, progress, limits.
///
/// A session is for one connection. Its callbacks borrow from it.
pub(crate) struct Session<'a> {
    url: &'a RemoteUrl,
    credentials: &'a Credentials,
    observer: &'a dyn Observer,
    limits: Limits,
    /// Where a pack is written.
    disk: Option<&'a Path>,
    asked: Cell<u8>,
    /// Why we ended it ourselves.
    ended: RefCell<Option<Ended>>,
    checked_bytes: Cell<u64>,
    last_call: Cell<(Instant, u64)>,
    meter: Rc<RefCell<Meter>>,
    _watched: stream::Watched,
    host_keys: Option<ssh::HostKeys>,
}

#[derive(Clone)]
enum Ended {
    Cancelled,
    DiskFull,
    Refused(String),
    NotTrusted(String),
}

impl<'a> Session<'a> {
    /// Prepares a connection, which waits for nobody.
    pub(crate) fn new(
        url: &'a RemoteUrl,
        credentials: &'a Credentials,
        observer: &'a dyn Observer,
        limits: &Limits,
        disk: Option<&'a Path>,
    ) -> Result<Self, RemoteError> {
        init();
        memory::allow(limits.max_blob_bytes);
        let host_keys = match (url.scheme(), credentials) {
            (Scheme::Ssh, Credentials::SshKey { known_hosts, .. }) => {
                Some(ssh::HostKeys::trust_only(url, known_hosts)?)
            }
            (Scheme::Ssh, _) => {
                return Err(RemoteError::AuthenticationFailed {
                    url: url.clone(),
                    detail: "ssh needs a private key and known_hosts".to_owned(),
                });
            }
            (_, Credentials::SshKey { .. }) => {
                return Err(RemoteError::AuthenticationFailed {
                    url: url.clone(),
                    detail: "an ssh key is of no use for a URL that is not ssh".to_owned(),
                });
            }
            _ => None,
        };
        let meter = Rc::new(RefCell::new(Meter::new(limits.pace)));
        let stand_in = host_keys.as_ref().map(|keys| stream::StandIn {
            name: keys.stand_in().to_owned(),
            host: url.host().to_owned(),
        });
        let session = Self {
            url,
            credentials,
            observer,
            limits: *limits,
            disk,
            asked: Cell::new(0),
            ended: RefCell::new(None),
            checked_bytes: Cell::new(0),
            last_call: Cell::new((Instant::now(), 0)),
            _watched: stream::Watched::by(&meter, stand_in),
            meter,
            host_keys,
        };
        session.check_space(0);
        match session.verdict() {
            Some(error) => Err(error),
            None => Ok(session),
        }
    }

    /// What libgit2 connects to: the URL, in which over ssh another name stands for the host.
    pub(crate) fn address(&self) -> Cow<'a, str> {
        match &self.host_keys {
            Some(keys) => Cow::Owned(self.url.with_host(keys.stand_in())),
            None => Cow::Borrowed(self.url.as_str()),
        }
    }

    /// The callbacks for this connection.
    pub(crate) fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(|url, user, allowed| self.credential(url, user, allowed));
        let trust = crate::trusted::of(self.url);
        callbacks.certificate_check(move |certificate, host| {
            if let Some(host_keys) = &self.host_keys {
                return match host_keys.verdict(certificate) {
                    Ok(()) => Ok(CertificateCheckStatus::CertificateOk),
                    Err(why) => {
                        let error = git2::Error::new(ErrorCode::Certificate, ErrorClass::Ssh, &why);
                        // libgit2 has words of its own for it.
                        self.end(Ended::NotTrusted(why));
                        Err(error)
                    }
                };
            }
            // A proxy shows a certificate of its own, if any.
            if let Some(trust) = &trust
                && host.eq_ignore_ascii_case(self.url.host())
            {
                return verdict(trust, certificate, host);
            }
            // The verdict of OpenSSL stands.
            Ok(CertificateCheckStatus::CertificatePassthrough)
        });
        callbacks.transfer_progress(|stats| {
            self.observer.progress(Progress::Git {
                bytes_done: stats.received_bytes() as u64,
                objects_done: stats.received_objects() as u64,
                objects_total: stats.total_objects() as u64,
            });
            self.check_pack(&stats);
            self.go_on()
        });
        callbacks.sideband_progress(|_| self.go_on());
        callbacks
    }

    /// Options of a fetch with `depth` (0 for all) by `callbacks` of this session.
    pub(crate) fn fetch_options(&self, depth: i32) -> FetchOptions<'_> {
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks())
            .proxy_options(proxy())
            .depth(depth)
            .download_tags(AutotagOption::None)
            .update_fetchhead(false)
            .follow_redirects(self.redirects());
        options
    }

    /// Never to other hosts: libgit2 would take credentials along, and go where a stranger sends
    /// it.
    #[allow(clippy::unused_self)]
    pub(crate) fn redirects(&self) -> RemoteRedirect {
        RemoteRedirect::None
    }

    /// What an error of this session's connection means.
    pub(crate) fn error(&self, error: &git2::Error) -> RemoteError {
        if let Some(error) = self.verdict() {
            return error;
        }
        if error.code() == ErrorCode::User {
            return RemoteError::Cancelled;
        }
        remote_error(self.url, error)
    }

    /// Why we ended the work, if we did.
    fn verdict(&self) -> Option<RemoteError> {
        let url = self.url.clone();
        match &*self.ended.borrow() {
            Some(Ended::Cancelled) => return Some(RemoteError::Cancelled),
            Some(Ended::DiskFull) => {
                let detail = self.disk.unwrap_or(Path::new("")).display().to_string();
                return Some(RemoteError::DiskFull { detail });
            }
            Some(Ended::Refused(detail)) => {
                let detail = detail.clone();
                return Some(RemoteError::Refused { url, detail });
            }
            Some(Ended::NotTrusted(detail)) => {
                let (host, detail) = (self.url.host().to_owned(), detail.clone());
                return Some(RemoteError::HostNotTrusted { host, detail });
            }
            None => {}
        }
        let slow = self.meter.borrow().verdict()?;
        let detail = slow.to_string();
        Some(RemoteError::Timeout { url, detail })
    }

    fn go_on(&self) -> bool {
        if self.observer.is_cancelled() {
            self.end(Ended::Cancelled);
        }
        self.ended.borrow().is_none() && self.meter.borrow().verdict().is_none()
    }

    fn end(&self, why: Ended) {
        self.ended.borrow_mut().get_or_insert(why);
    }

    /// Whether what came so far of a pack is still accepted.
    fn check_pack(&self, stats: &git2::Progress<'_>) {
        let received = stats.received_bytes() as u64;
        let Limits {
            max_pack_bytes,
            max_pack_objects,
            ..
        } = self.limits;
        if stats.total_objects() > max_pack_objects {
            self.end(Ended::Refused(format!(
                "it has {} objects, the limit is {max_pack_objects}",
                stats.total_objects()
            )));
        }
        if received > max_pack_bytes {
            self.end(Ended::Refused(format!(
                "its git objects have more than {max_pack_bytes} bytes, which is the limit: \
                 large files belong into LFS"
            )));
        }
        if received >= self.checked_bytes.get() + SPACE_CHECK_BYTES {
            self.check_space(received);
        }
        // Over ssh it is not our socket that reads. What comes is worked on at once, so that the
        // time since the last call is the time that was waited.
        let (last, before) = self.last_call.replace((Instant::now(), received));
        let mut meter = self.meter.borrow_mut();
        meter.flows();
        if self.url.scheme() == Scheme::Ssh && stats.received_objects() < stats.total_objects() {
            // The meter keeps its verdict.
            let _ = meter.waited(last.elapsed(), received.saturating_sub(before));
        }
    }

    fn check_space(&self, received: u64) {
        self.checked_bytes.set(received);
        let Some(stat) = self.disk.and_then(|path| rustix::fs::statvfs(path).ok()) else {
            return;
        };
        if stat.f_bavail.saturating_mul(stat.f_frsize) < self.limits.min_free_bytes {
            self.end(Ended::DiskFull);
        }
    }

    fn credential(
        &self,
        url: &str,
        user: Option<&str>,
        allowed: CredentialType,
    ) -> Result<Cred, git2::Error> {
        let refuse = |why: &str| {
            let class = if self.url.scheme() == Scheme::Ssh {
                ErrorClass::Ssh
            } else {
                ErrorClass::Http
            };
            git2::Error::new(ErrorCode::Auth, class, why)
        };
        if allowed.contains(CredentialType::USERNAME) {
            return Cred::username(self.url.user().unwrap_or("git"));
        }
        // libgit2 asks again after a refusal, without end, and now and then for a new connection.
        if self.asked.replace(self.asked.get().saturating_add(1)) >= MAX_ASKED {
            return Err(refuse("the server does not accept them"));
        }
        match self.credentials {
            Credentials::None => Err(refuse("the server wants credentials and none were given")),
            Credentials::SshKey {
                private_key,
                passphrase,
                ..
            } => Cred::ssh_key_from_memory(
                user.or(self.url.user()).unwrap_or("git"),
                None,
                private_key,
                passphrase.as_deref(),
            ),
            Credentials::Token(_) | Credentials::Basic { .. } => {
                if !same_origin(self.url, url) {
                    return Err(refuse(
                        "the server redirects to another one, which gets none",
                    ));
                }
                let (name, password) = self
                    .credentials
                    .basic()
                    .ok_or_else(|| refuse("none were given"))?;
                Cred::userpass_plaintext(name, password)
            }
        }
    }
}

/// Our verdict on the certificate of `host`, with whose key the handshake was signed: OpenSSL sees
/// to that whatever it thinks of the authority.
fn verdict(
    trust: &Trust,
    certificate: &Cert<'_>,
    host: &str,
) -> Result<CertificateCheckStatus, git2::Error> {
    let refuse = |why: String| git2::Error::new(ErrorCode::Certificate, ErrorClass::Ssl, why);
    let certificate = certificate
        .as_x509()
        .ok_or_else(|| refuse(format!("{host} shows no certificate")))?;
    trust.verify(certificate.data(), host).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
        refuse(format!("{error}: {cause}"))
    })?;
    Ok(CertificateCheckStatus::CertificateOk)
}

/// Proxies as the environment names them.
pub(crate) fn proxy<'a>() -> ProxyOptions<'a> {
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    proxy
}

/// Whether `asking` is on the host and port of `url`, or its upgrade to https.
fn same_origin(url: &RemoteUrl, asking: &str) -> bool {
    let Ok(asking) = url::Url::parse(asking) else {
        return false;
    };
    let upgrade = url.scheme() == Scheme::Http && url.port().is_none();
    let ours = (url.scheme(), url.port());
    let theirs = match asking.scheme() {
        "https" => (Scheme::Https, asking.port()),
        "http" => (Scheme::Http, asking.port()),
        _ => return false,
    };
    asking
        .host_str()
        .is_some_and(|host| host.eq_ignore_ascii_case(url.host()))
        && (theirs == ours || (upgrade && theirs == (Scheme::Https, None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_host_and_port_or_its_upgrade_is_asked_with_credentials() {
        let http = RemoteUrl::parse("http://host/a").unwrap();
        for (asking, expected) in [
            ("http://host/a", true),
            ("http://HOST:80/b", true),
            ("https://host/a", true),
            ("https://host:444/a", false),
            ("http://host:8080/a", false),
            ("http://other/a", false),
            ("host", false),
        ] {
            assert_eq!(same_origin(&http, asking), expected, "{asking}");
        }
        let https = RemoteUrl::parse("https://host/a").unwrap();
        assert!(!same_origin(&https, "http://host/a"));
        assert!(same_origin(&https, "https://host:443/a"));
    }
}
