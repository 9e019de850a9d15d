//! Trusting the ssh host keys that a caller gives, and no others.
//!
//! libgit2 looks for host keys in `~/.ssh/known_hosts` and has one home per process, which cannot
//! be a connection's own without a lock that lasts as long as a server is silent. So whether a key
//! is right is decided here, when libgit2 shows it ([`HostKeys::verdict`]).
//!
//! What is left to libgit2 is which kind of key it asks for: a server that has several shows one,
//! and it must be one that the caller knows. So what libgit2 calls is no host but a name that
//! stands for a set of kinds. Its known_hosts, the same for all connections, has a line for each
//! such name and kind, with a key that nobody has; our sockets know which host is meant.

#![allow(unsafe_code)]

mod known_hosts;

use std::{
    ffi::CString,
    fmt::Write as _,
    fs,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use git2::cert::Cert;
use known_hosts::{KINDS, KnownHosts};
use tempfile::TempDir;

use crate::{RemoteError, RemoteUrl};

/// A key that no server has, in the form of known_hosts.
const NOBODYS_KEY: &str = "AAAAE25vYm9keXMua2V5LmludmFsaWQ=";

/// The home that libgit2 has now, as long as a connection needs one.
static HOME: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());

/// The host keys of one connection.
pub(crate) struct HostKeys {
    known: KnownHosts,
    stand_in: String,
    // Invariant: as long as one is held, libgit2's home is not changed.
    _home: Arc<TempDir>,
}

impl HostKeys {
    /// Reads what `known_hosts` says of the host of `url`, whose keys are the only ones that
    /// [`Self::verdict`] takes. Waits for nobody.
    pub(crate) fn trust_only(url: &RemoteUrl, known_hosts: &str) -> Result<Self, RemoteError> {
        let known = KnownHosts::read(known_hosts, url.host(), url.port()).map_err(|detail| {
            RemoteError::HostNotTrusted {
                host: url.host().to_owned(),
                detail,
            }
        })?;
        Ok(Self {
            stand_in: stand_in(known.kinds()),
            known,
            _home: home().map_err(|detail| RemoteError::Local { detail })?,
        })
    }

    /// What libgit2 has to call in place of the host.
    pub(crate) fn stand_in(&self) -> &str {
        &self.stand_in
    }

    /// Whether the key that the server shows is one that is known, and if not, why.
    pub(crate) fn verdict(&self, certificate: &Cert<'_>) -> Result<(), String> {
        let shown = certificate.as_hostkey().and_then(|key| key.hostkey());
        self.known
            .check(shown.ok_or_else(|| "it shows no host key".to_owned())?)
    }
}

/// The name that stands for a set of kinds, a bit for each of [`KINDS`].
fn stand_in(kinds: u8) -> String {
    format!("host-keys-{kinds}.invalid")
}

/// A home for libgit2 whose known_hosts let it ask for each set of kinds.
fn home() -> Result<Arc<TempDir>, String> {
    let mut held = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(home) = held.upgrade() {
        return Ok(home);
    }
    let home = tempfile::Builder::new()
        .prefix("hyprstream-ssh-")
        .tempdir()
        .map_err(|e| format!("cannot make a folder for known_hosts: {e}"))?;
    let folder = home.path().join(".ssh");
    fs::create_dir(&folder)
        .and_then(|()| fs::write(folder.join("known_hosts"), lines()))
        .map_err(|e| format!("cannot write known_hosts: {e}"))?;
    let path = home
        .path()
        .to_str()
        .and_then(|p| CString::new(p).ok())
        .ok_or_else(|| "the folder for temporary files has an odd name".to_owned())?;
    // SAFETY: the option takes one C string, which libgit2 copies. It reads its copy when it
    // connects over ssh, which in this crate happens only with a home held, and then none is set.
    let code = unsafe {
        libgit2_sys::git_libgit2_opts(libgit2_sys::GIT_OPT_SET_HOMEDIR as _, path.as_ptr())
    };
    if code < 0 {
        return Err("libgit2 does not take the folder with known_hosts".to_owned());
    }
    let home = Arc::new(home);
    *held = Arc::downgrade(&home);
    Ok(home)
}

fn lines() -> String {
    let mut text = String::new();
    for kinds in 1..1u8 << KINDS.len() {
        for (bit, kind) in KINDS.iter().enumerate() {
            if kinds & 1 << bit != 0 {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{} {kind} {NOBODYS_KEY}", stand_in(kinds));
            }
        }
    }
    text
}
