//! Trusting the ssh host keys that a caller gives, and no others.

#![allow(unsafe_code)]

use std::{cell::RefCell, ffi::CString, sync::Mutex};

use tempfile::TempDir;

use crate::{RemoteError, RemoteUrl};

/// libgit2 reads `~/.ssh/known_hosts` while it connects and has one home per process, so
/// connections are begun one after the other.
static HOME: Mutex<()> = Mutex::new(());

/// The host keys of one connection, in place until [`HostKeys::release`].
pub(crate) struct HostKeys {
    held: RefCell<Option<Held>>,
}

struct Held {
    // Dropped in this order: the folder goes while nobody else can have set another.
    _home: TempDir,
    _turn: std::sync::MutexGuard<'static, ()>,
}

impl HostKeys {
    /// Makes `known_hosts` the only host keys that libgit2 knows.
    pub(crate) fn trust_only(url: &RemoteUrl, known_hosts: &str) -> Result<Self, RemoteError> {
        if known_hosts.trim().is_empty() {
            return Err(RemoteError::HostNotTrusted {
                host: url.host().to_owned(),
                detail: "no known_hosts were given, so no host key can be checked".to_owned(),
            });
        }
        let local = |detail: String| RemoteError::Local { detail };
        let turn = HOME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let home = tempfile::Builder::new()
            .prefix("hyprstream-ssh-")
            .tempdir()
            .map_err(|e| local(format!("cannot make a folder for known_hosts: {e}")))?;
        let folder = home.path().join(".ssh");
        let mut text = known_hosts.to_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        std::fs::create_dir(&folder)
            .and_then(|()| std::fs::write(folder.join("known_hosts"), text))
            .map_err(|e| local(format!("cannot write known_hosts: {e}")))?;
        let path = home
            .path()
            .to_str()
            .and_then(|p| CString::new(p).ok())
            .ok_or_else(|| local("the folder for temporary files has an odd name".to_owned()))?;
        // SAFETY: the option takes one C string, which libgit2 copies. It reads its copy only
        // when it connects over ssh, which happens in this crate only with `HOME` held.
        let code = unsafe {
            libgit2_sys::git_libgit2_opts(libgit2_sys::GIT_OPT_SET_HOMEDIR as _, path.as_ptr())
        };
        if code < 0 {
            return Err(local(
                "libgit2 does not take the folder with known_hosts".to_owned(),
            ));
        }
        Ok(Self {
            held: RefCell::new(Some(Held {
                _home: home,
                _turn: turn,
            })),
        })
    }

    /// Lets the next connection begin. Called once the host keys have been read.
    pub(crate) fn release(&self) {
        self.held.borrow_mut().take();
    }
}
