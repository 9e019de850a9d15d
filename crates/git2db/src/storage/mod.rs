//! How a folder with the files of a commit comes to be: writable, private, and sharing its bytes
//! with the immutable checkout of [`crate::checkout`].
//!
//! | Driver | How | After a reboot |
//! |---|---|---|
//! | [`Overlay2`] | a mount of the kernel's overlay, also in a user namespace | to be shown again |
//! | [`FuseOverlay`] | the program `fuse-overlayfs`, which needs `/dev/fuse` only | to be shown again |
//! | [`Vfs`] | reflinks, else copies; hard links where files are only read | there |
//!
//! [`probe()`] tries each in a given folder and says which work there, and why others do not.

pub mod disk;
mod error;
mod fuse;
pub mod mount;
mod overlay;
mod probe;
mod vfs;

use std::{fmt, path::Path};

pub use error::StorageError;
use error::io_error;
pub use fuse::FuseOverlay;
pub use overlay::Overlay2;
pub use probe::{Finding, Mechanism, Probe, probe};
use serde::{Deserialize, Serialize};
pub use vfs::Vfs;

use crate::durable;

/// Which driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`Overlay2`].
    #[serde(rename = "overlay2")]
    Overlay2,
    /// [`FuseOverlay`].
    #[serde(rename = "fuse-overlayfs")]
    FuseOverlay,
    /// [`Vfs`].
    Vfs,
}

impl Kind {
    /// Its name, as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay2 => "overlay2",
            Self::FuseOverlay => "fuse-overlayfs",
            Self::Vfs => "vfs",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One folder that shows the files of another.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The folder whose files are shown. It never changes, and outlives the view.
    pub base: &'a Path,
    /// A folder of this view's own, for what the driver keeps; made and removed by it. What was
    /// written may lie here, so it is on a disk that stays.
    pub private: &'a Path,
    /// The folder in which the files appear: missing or empty before.
    pub target: &'a Path,
    /// Whether files may be changed and made.
    pub writable: bool,
}

/// A way to make views.
///
/// Callers see to it that nobody else works on the same view at the same time.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// Whether its views are mounts, which a reboot takes away; what was written stays.
    fn is_mount(&self) -> bool;

    /// Makes the view. After an error, or after a kill, [`Driver::remove`] leaves nothing.
    ///
    /// # Errors
    /// The target holds something, or the driver does not work here: see [`probe()`].
    fn create(&self, view: &View<'_>) -> Result<(), StorageError>;

    /// Whether the files are there.
    ///
    /// # Errors
    /// It cannot be told.
    fn is_shown(&self, view: &View<'_>) -> Result<bool, StorageError>;

    /// Shows a view that was made earlier, with what was written to it. Nothing is done if it is
    /// there.
    ///
    /// # Errors
    /// It cannot be mounted, or what the driver kept is gone.
    fn show(&self, view: &View<'_>) -> Result<(), StorageError>;

    /// Takes the files away; what was written stays for [`Driver::show`] if the view is a mount.
    ///
    /// # Errors
    /// It is in use.
    fn hide(&self, view: &View<'_>) -> Result<(), StorageError>;

    /// Removes the view, all that was written to it, and its target. Nothing is done for what is
    /// not there, and what somebody else put at the target stays.
    ///
    /// # Errors
    /// It is in use, or cannot be removed, or something else is at the target.
    fn remove(&self, view: &View<'_>) -> Result<(), StorageError>;
}

/// The driver, made without looking whether it works.
pub fn driver(kind: Kind) -> Box<dyn Driver> {
    match kind {
        Kind::Overlay2 => Box::new(Overlay2::default()),
        Kind::FuseOverlay => Box::new(FuseOverlay),
        Kind::Vfs => Box::new(Vfs),
    }
}

/// Says `Occupied` if there is something at `target` that is not an empty folder.
fn check_free(target: &Path) -> Result<(), StorageError> {
    let occupied = || StorageError::Occupied {
        target: target.to_owned(),
    };
    match std::fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(occupied()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Err(occupied()),
        Err(error) => Err(io_error("read", target, error)),
    }
}

/// Removes an empty folder; says `Occupied` for one that holds what no driver put there.
fn remove_empty(target: &Path) -> Result<(), StorageError> {
    check_free(target)?;
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("remove", target, error))
        }
        _ => Ok(()),
    }
}

fn make_folder(path: &Path) -> Result<(), StorageError> {
    std::fs::create_dir_all(path).map_err(|e| io_error("create folder", path, e))
}

fn remove_folder(path: &Path) -> Result<(), StorageError> {
    durable::remove_dir_all(path).map_err(|e| io_error("remove", path, e))
}
