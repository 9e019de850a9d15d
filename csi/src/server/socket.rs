//! Unix sockets.

use std::{io, path::Path};

use tokio::net::UnixListener;

use crate::error::Error;

/// A listener at `path`, in place of whatever socket a killed process left there.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    unlink(path)?;
    UnixListener::bind(path).map_err(|e| Error::io("listen at", path, e))
}

/// Removes the socket at `path`, if it is there.
pub fn unlink(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
