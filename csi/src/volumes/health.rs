//! How a volume is, and how much it holds.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hyprstream_contract::{
    adapters::{AdapterFolder, AdapterState, CONFIG_FILE, FOLDER_FILE, WEIGHTS_FILE},
    volume::VolumeContent,
};

use super::Volumes;
use crate::{error::Error, journal::Entry, layout::CheckoutKey};

/// What is wrong with a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing.
    Good,
    /// A mount is gone.
    MountVanished {
        /// Where it should be.
        path: PathBuf,
    },
    /// Files of the checkout are gone or have another size.
    FilesDamaged {
        /// The first of them, below the root of the volume.
        path: String,
    },
    /// The registry does not let the volume read which adapters its Model has.
    Refused {
        /// The Model.
        model: String,
    },
}

impl Health {
    /// CamelCase, for machines.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Good => "Good",
            Self::MountVanished { .. } => "MountVanished",
            Self::FilesDamaged { .. } => "FilesDamaged",
            Self::Refused { .. } => "AccessDenied",
        }
    }

    /// For people.
    pub fn message(&self) -> String {
        match self {
            Self::Good => "mounts and files are as they should be".to_owned(),
            Self::MountVanished { path } => format!(
                "the mount at {} is gone: delete the pod, so that it is mounted anew",
                path.display()
            ),
            Self::FilesDamaged { path } => format!(
                "{path:?} of the checkout was removed or changed on the node's disk: delete the \
                 pods that use it, so that it is fetched anew"
            ),
            Self::Refused { model } => format!(
                "the registry does not let the volume read which adapters {model} has; those that \
                 are here stay. The kubelet brings its word again within minutes; if that does not \
                 help, look at the operator's log for the volume's grant"
            ),
        }
    }
}

/// How much a volume holds, in bytes and in files, and the filesystem that it lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the commit's files, shared with other volumes, and of what was written.
    pub used_bytes: u64,
    /// Files of the commit and those that were written.
    pub used_inodes: u64,
    /// Bytes that may still be written to the disk: the volume's own, or else the node's.
    pub available_bytes: u64,
    /// Bytes of that disk.
    pub total_bytes: u64,
    /// Files that may still be made on that disk.
    pub available_inodes: u64,
    /// Files that it can hold.
    pub total_inodes: u64,
}

impl Volumes {
    /// Health of a volume: of its staging mount, of the mounts at `paths`, of its files. Blocks.
    pub fn health(&self, handle: &str, paths: &[PathBuf]) -> Result<Health, Error> {
        let (entry, staging) = self.staged(handle)?;
        for path in std::iter::once(&staging).chain(paths) {
            if self.our_mount(path)?.is_none() {
                return Ok(Health::MountVanished { path: path.clone() });
            }
        }
        let volume = match entry.content()? {
            VolumeContent::Commit(volume) => volume,
            VolumeContent::Adapters(model) => {
                let health = adapters_health(&staging);
                let is_refused = health == Health::Good && self.adapters.is_refused(&model);
                return Ok(if is_refused {
                    let model = model.to_string();
                    Health::Refused { model }
                } else {
                    health
                });
            }
        };
        let key = CheckoutKey::of(&volume)?;
        let Some(checkout) = self.checkouts.open(&key)? else {
            return Ok(Health::FilesDamaged {
                path: "/".to_owned(),
            });
        };
        let damage = self.checkouts.damage(&key, &checkout);
        Ok(damage.map_or(Health::Good, |path| Health::FilesDamaged { path }))
    }

    /// How much the volume at `path` holds. Blocks.
    ///
    /// # Errors
    /// [`Error::UnknownVolume`] if it is neither staged nor published there.
    pub fn usage(&self, handle: &str, path: &Path) -> Result<Usage, Error> {
        let (entry, staging) = self.staged(handle)?;
        if staging != path && !entry.targets.contains_key(path) {
            return Err(Error::UnknownVolume {
                handle: handle.to_owned(),
                path: path.to_owned(),
            });
        }
        let (mut used_bytes, mut used_inodes) = (0, 0);
        let written = match entry.content()? {
            VolumeContent::Commit(volume) => {
                let checkout = self.checkouts.open(&CheckoutKey::of(&volume)?)?;
                (used_bytes, used_inodes) = checkout
                    .map(|checkout| (checkout.bytes(), checkout.files.len() as u64))
                    .unwrap_or_default();
                disk_use(&self.layout.upper(handle))
            }
            VolumeContent::Adapters(model) => disk_use(&self.layout.adapters_shown(&model)),
        };
        used_bytes += written.bytes;
        used_inodes += written.files;
        let disk = if entry.is_writable() {
            self.layout.disk(handle)
        } else {
            self.layout.root().to_owned()
        };
        let disk = rustix::fs::statvfs(&disk).map_err(|e| Error::io("measure", &disk, e.into()))?;
        Ok(Usage {
            used_bytes,
            used_inodes,
            available_bytes: disk.f_bavail * disk.f_frsize,
            total_bytes: disk.f_blocks * disk.f_frsize,
            available_inodes: disk.f_favail,
            total_inodes: disk.f_files,
        })
    }

    fn staged(&self, handle: &str) -> Result<(Entry, PathBuf), Error> {
        let unknown = || Error::UnknownVolume {
            handle: handle.to_owned(),
            path: PathBuf::from("/"),
        };
        let entry = self.journal.get(handle).ok_or_else(unknown)?;
        let staging = entry.staging.clone().ok_or_else(unknown)?;
        Ok((entry, staging))
    }
}

/// Health of the folder of adapters at `path`: whether it says what is in it, and has that. What is
/// being fetched, or cannot be had, stands in it and is no damage.
fn adapters_health(path: &Path) -> Health {
    let damaged = |path: String| Health::FilesDamaged { path };
    let text = std::fs::read(path.join(FOLDER_FILE)).unwrap_or_default();
    let Ok(content) = serde_json::from_slice::<AdapterFolder>(&text) else {
        return damaged(FOLDER_FILE.to_owned());
    };
    let ready = content.adapters.iter();
    let ready = ready.filter(|adapter| adapter.state == AdapterState::Ready);
    ready
        .flat_map(|adapter| [WEIGHTS_FILE, CONFIG_FILE].map(|f| format!("{}/{f}", adapter.folder)))
        .find(|file| !path.join(file).is_file())
        .map_or(Health::Good, damaged)
}

/// What a folder takes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Files, links and folders.
    pub(crate) files: u64,
}

/// What lies below `folder`; what cannot be read, or goes away meanwhile, counts for nothing.
pub(crate) fn disk_use(folder: &Path) -> DiskUse {
    let mut sum = DiskUse::default();
    let mut seen = std::collections::HashSet::new();
    add_disk_use(folder, &mut seen, &mut sum);
    sum
}

/// Adds what lies below `folder` and whose inode is not in `seen`.
pub(crate) fn add_disk_use(
    folder: &Path,
    seen: &mut std::collections::HashSet<(u64, u64)>,
    sum: &mut DiskUse,
) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(found) = entry.metadata() else {
            continue;
        };
        if seen.insert((found.dev(), found.ino())) {
            // st_blocks counts 512 bytes whatever the filesystem's blocks are.
            sum.bytes += found.blocks() * 512;
            sum.files += 1;
        }
        if found.is_dir() {
            add_disk_use(&entry.path(), seen, sum);
        }
    }
}
