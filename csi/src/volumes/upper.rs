//! What pods write to a read-write volume: a disk of its capacity in a file of the state directory,
//! mounted while the volume is staged, so that no volume takes more than it may and none finds the
//! node's disk full.

use std::{
    fs::Permissions,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use hyprstream_git2db::storage::disk;

use super::{Volumes, stage::create_folder};
use crate::{
    error::Error,
    layout::CheckoutKey,
    mount::{DiskError, Upper, mounted_at},
};

/// Everyone may write at the root of a read-write volume, as in an `emptyDir`: the pod's user is
/// not known here.
const UPPER_MODE: u32 = 0o777;

/// What the disks of volumes that are written to take of the node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of volumes that are on the node.
    pub in_use_bytes: u64,
    /// Volumes that are not, and may come back.
    pub left: usize,
    /// Their bytes.
    pub left_bytes: u64,
}

impl Volumes {
    /// The upper of the volume, on its disk, which is made and mounted if need be. Blocks.
    ///
    /// # Errors
    /// [`Error::NoRoom`] if the node's disk has not what the capacity lacks.
    pub(super) fn ensure_upper(
        &self,
        handle: &str,
        key: &CheckoutKey,
        capacity_bytes: u64,
    ) -> Result<Upper, Error> {
        let disk = self.layout.disk(handle);
        create_folder(&disk)?;
        if !self.is_mounted(&disk)? {
            self.make_disk(handle, key, capacity_bytes)?;
            self.mounts
                .disk(&self.layout.disk_image(handle), &disk)
                .map_err(|e| disk_error(handle, e))?;
        }
        let upper = Upper {
            upper: self.layout.upper(handle),
            work: disk.join("work"),
        };
        for path in [&upper.upper, &upper.work] {
            create_folder(path)?;
        }
        std::fs::set_permissions(&upper.upper, Permissions::from_mode(UPPER_MODE))
            .map_err(|e| Error::io("set the mode of", &upper.upper, e))?;
        Ok(upper)
    }

    /// Makes the disk, or allocates what somebody took out of it.
    fn make_disk(&self, handle: &str, key: &CheckoutKey, capacity_bytes: u64) -> Result<(), Error> {
        let image = self.layout.disk_image(handle);
        let needed_bytes = self.missing_bytes(handle, capacity_bytes)?;
        let no_room = |available_bytes| Error::NoRoom {
            handle: handle.to_owned(),
            path: self.layout.root().to_owned(),
            needed_bytes,
            available_bytes,
            held: self.held(),
        };
        self.checkouts
            .allocating(key, needed_bytes, |available_bytes| {
                if needed_bytes > available_bytes {
                    return Err(no_room(available_bytes));
                }
                let bytes = disk::whole_blocks(capacity_bytes);
                match self.mounts.make_disk(&image, bytes) {
                    // Somebody else was faster.
                    Err(e) if e.is_full() => Err(no_room(self.layout.free_bytes()?)),
                    other => other.map_err(|e| disk_error(handle, e)),
                }
            })
    }

    /// Bytes that the disk of a volume of this capacity still has to be given.
    pub(super) fn missing_bytes(&self, handle: &str, capacity_bytes: u64) -> Result<u64, Error> {
        let bytes = disk::whole_blocks(capacity_bytes);
        disk::missing_bytes(&self.layout.disk_image(handle), bytes)
            .map_err(|e| disk_error(handle, e))
    }

    /// What the disks of volumes that are written to take of the node's. Blocks.
    pub(crate) fn held(&self) -> Held {
        let mut held = Held::default();
        for entry in self.journal.all() {
            let Ok(found) = std::fs::metadata(self.layout.disk_image(&entry.handle)) else {
                continue;
            };
            // st_blocks counts 512 bytes whatever the filesystem's blocks are.
            let bytes = found.blocks() * 512;
            if entry.is_off_node() {
                held.left += 1;
                held.left_bytes += bytes;
            } else {
                held.in_use_bytes += bytes;
            }
        }
        held
    }

    /// Whether a mount shows what was written to the volume.
    pub(super) fn is_shown(&self, handle: &str) -> Result<bool, Error> {
        let disk = self.layout.disk(handle);
        let list = self
            .mounts
            .list()
            .map_err(|e| Error::io("read", Path::new("/proc/self/mountinfo"), e))?;
        let mut folders = list.iter().flat_map(|mounted| &mounted.folders);
        Ok(folders.any(|folder| folder.starts_with(&disk)))
    }

    /// Takes the disk of a volume away that is not staged; what was written stays in its file.
    pub(super) fn unmount_disk(&self, handle: &str) -> Result<(), Error> {
        self.unmount_disk_at(&self.layout.disk(handle))
    }

    fn unmount_disk_at(&self, disk: &Path) -> Result<(), Error> {
        while self.is_mounted(disk)? {
            // It is in use while its content is measured. The device lives as long as that, and is
            // found by the next stage.
            self.mounts
                .unmount(disk, true)
                .map_err(|e| Error::io("unmount", disk, e))?;
        }
        Ok(())
    }

    /// Takes disks away that no overlay shows and no journal entry asks for, such as after a kill
    /// between two steps whose volume the kubelet forgot.
    pub(super) fn unmount_idle_disks(&self) -> Result<(), Error> {
        let list = self
            .mounts
            .list()
            .map_err(|e| Error::io("read", Path::new("/proc/self/mountinfo"), e))?;
        let folders: Vec<&PathBuf> = list.iter().flat_map(|mounted| &mounted.folders).collect();
        for disk in list.iter().map(|mounted| &mounted.path) {
            let Some(volume) = self.layout.disk_owner(disk) else {
                continue;
            };
            let entries = self.journal.all();
            let entry = entries
                .iter()
                .find(|entry| self.layout.volume(&entry.handle) == volume);
            let is_asked_for = entry.is_some_and(|entry| entry.staging.is_some());
            let is_shown = folders.iter().any(|folder| folder.starts_with(disk));
            if is_asked_for || is_shown {
                continue;
            }
            // A stage may be about to note its volume: it holds the lock.
            let guard = entry.map(|entry| self.locks.take(&entry.handle));
            if matches!(guard, Some(Err(_))) {
                continue;
            }
            let staged_since = entry
                .and_then(|entry| self.journal.get(&entry.handle))
                .is_some_and(|entry| entry.staging.is_some());
            if !staged_since {
                self.unmount_disk_at(disk)?;
            }
        }
        Ok(())
    }

    /// Takes what was written to a volume out of the way; the collector deletes it.
    pub(crate) fn discard_upper(&self, handle: &str) -> Result<(), Error> {
        let folder = self.layout.volume(handle);
        if !folder.exists() {
            return Ok(());
        }
        self.unmount_disk(handle)?;
        crate::gc::to_trash(&self.layout, &folder)
    }

    fn is_mounted(&self, disk: &Path) -> Result<bool, Error> {
        let mounted = mounted_at(&*self.mounts, disk);
        let mounted = mounted.map_err(|e| Error::io("look for mounts at", disk, e))?;
        Ok(mounted.is_some())
    }
}

fn disk_error(handle: &str, source: DiskError) -> Error {
    Error::Disk {
        handle: handle.to_owned(),
        source,
    }
}
