//! What is remembered of a worktree besides what stock git keeps.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{WorktreesError, io_error};
use crate::storage::Kind;

/// `hyprstream.json` in the folder that git keeps of a worktree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Record {
    /// The driver that made it.
    pub(super) driver: Kind,
    /// The key of the checkout below it.
    pub(super) checkout: String,
    /// Where it is.
    pub(super) path: PathBuf,
    /// False while it is being made or removed. One that stays so is of a process that was killed.
    pub(super) complete: bool,
}

impl Record {
    /// The record in `admin`; `None` for a worktree of stock git.
    pub(super) fn read(admin: &Path) -> Result<Option<Self>, WorktreesError> {
        let path = Self::path(admin);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text)
                    .map(Some)
                    .map_err(|e| WorktreesError::Record {
                        path,
                        detail: e.to_string(),
                    })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path, error)),
        }
    }

    /// Writes it; durable when it says that the worktree is complete.
    pub(super) fn write(&self, admin: &Path) -> Result<(), WorktreesError> {
        let text = serde_json::to_vec(self).expect("a record is JSON");
        replace(&Self::path(admin), &text, self.complete)
    }

    fn path(admin: &Path) -> PathBuf {
        admin.join("hyprstream.json")
    }
}

/// Writes a file whole or not at all.
pub(super) fn replace(path: &Path, content: &[u8], durable: bool) -> Result<(), WorktreesError> {
    let folder = path.parent().unwrap_or(path);
    let act = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(mode())
            .tempfile_in(folder)?;
        file.write_all(content)?;
        if durable {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    act().map_err(|e| io_error("write", path, e))
}

/// As git's own files beside it.
fn mode() -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    fs::Permissions::from_mode(0o644)
}
