//! Deleting what nothing on the node uses any more.
//!
//! What a journal entry, a mount or a call under way refers to stays, and so do the objects of a
//! fetch that somebody wants. The rest goes when it has been unused for a while, or at once, the
//! longest unused first, while the disk is too full. No fetch keeps the objects of others.

mod damage;
mod measure;
mod objects;
mod room;
mod scrub;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyprstream_git2db::checkout;

use self::objects::STRAY_AGE;
pub use self::scrub::Scrub;
use crate::{
    error::Error,
    fetch::{Checkout, FetchError},
    layout::{CheckoutKey, Layout},
    volumes::Volumes,
};

/// When to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long to keep what nothing uses.
    pub keep_unused: Duration,
    /// From this share of the disk in use on, everything unused may go.
    pub disk_high_percent: u8,
    /// Until this share is in use.
    pub disk_low_percent: u8,
}

/// Deletes what nothing uses.
pub struct Collector {
    /// The volumes of the node.
    pub volumes: Arc<Volumes>,
    /// When.
    pub policy: Policy,
}

/// What a collection deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Checkouts.
    pub checkouts: usize,
    /// Folders of adapters.
    pub adapters: usize,
    /// Uppers of read-write volumes.
    pub uppers: usize,
    /// Objects of the store.
    pub objects: u64,
    /// Bytes of these objects.
    pub object_bytes: u64,
}

impl Collected {
    fn log(&self) {
        if *self != Self::default() {
            tracing::info!(
                checkouts = self.checkouts,
                adapters = self.adapters,
                uppers = self.uppers,
                objects = self.objects,
                object_bytes = self.object_bytes,
                "unused data deleted"
            );
        }
    }
}

impl Collector {
    /// Deletes what nothing uses and has not been used for long enough, or for less long while
    /// the disk is too full. Blocks.
    pub fn collect(&self) -> Result<Collected, Error> {
        let layout = &self.volumes.layout;
        empty_trash(layout)?;
        self.collect_damaged()?;
        let mut done = Collected::default();
        let pressed = self.disk_percent()? >= self.policy.disk_high_percent;
        self.collect_adapters(pressed, &mut done)?;
        self.collect_checkouts(pressed, &mut done)?;
        self.collect_layers()?;
        self.collect_uppers(&mut done)?;
        self.collect_repositories(pressed)?;
        let min_age = if pressed {
            self.policy.keep_unused.min(STRAY_AGE)
        } else {
            self.policy.keep_unused
        };
        self.collect_objects(min_age, &mut done)?;
        empty_trash(layout)?;
        done.log();
        Ok(done)
    }

    /// Folders of adapters that no volume shows; at once while the disk is too full.
    fn collect_adapters(&self, pressed: bool, done: &mut Collected) -> Result<(), Error> {
        let keep_unused = if pressed {
            Duration::ZERO
        } else {
            self.policy.keep_unused
        };
        let mounted = self.mounted_folders()?;
        done.adapters += self.volumes.adapters.collect(keep_unused, &mounted)?;
        Ok(())
    }

    fn collect_checkouts(&self, pressed: bool, done: &mut Collected) -> Result<(), Error> {
        let layout = &self.volumes.layout;
        for (key, _) in self.unused_checkouts()? {
            let old = age(modified(&layout.last_use(&key))) >= self.policy.keep_unused;
            if !old && !pressed {
                continue;
            }
            if !old && self.disk_percent()? <= self.policy.disk_low_percent {
                break;
            }
            self.remove_checkout(&key, done)?;
        }
        Ok(())
    }

    /// Deletes a checkout that nothing uses, with the objects that only it linked to: only with
    /// these its space is free.
    fn remove_checkout(&self, key: &CheckoutKey, done: &mut Collected) -> Result<(), Error> {
        let named = || self.volumes.adapters.named_checkouts();
        match self.remove_files(key, named, done)? {
            Some(found) => self.drop_objects(&found.files, done),
            None => Ok(()),
        }
    }

    /// Deletes the files of a checkout that nothing uses and that is not `named`, and its marks.
    /// Returns what it was; `None` if it stays.
    fn remove_files(
        &self,
        key: &CheckoutKey,
        named: impl FnOnce() -> Result<HashSet<CheckoutKey>, Error>,
        done: &mut Collected,
    ) -> Result<Option<Checkout>, Error> {
        let layout = &self.volumes.layout;
        let Some(found) = self.volumes.checkouts.open(key)? else {
            return Ok(None);
        };
        let removed = self
            .volumes
            .checkouts
            .remove_unused(key, || -> Result<_, Error> {
                // A volume may have come since somebody looked.
                if self.used_checkouts()?.contains(key) || named()?.contains(key) {
                    return Ok(false);
                }
                // No volume can be staged meanwhile: the files are only moved away here.
                to_trash(layout, &found.path)?;
                if let Err(error) = checkout::remove(&layout.repository(key), key.name()) {
                    // On a full disk, say. A mark of a checkout that is not there means nothing.
                    tracing::debug!(checkout = %key, %error, "mark of a checkout stays");
                }
                Ok(true)
            })?;
        if removed != Some(true) {
            return Ok(None);
        }
        tracing::info!(checkout = %key, "unused checkout deleted");
        done.checkouts += 1;
        remove_if_there(&layout.last_use(key))?;
        remove_if_there(&layout.damage_mark(key))?;
        empty_trash(layout)?;
        Ok(Some(found))
    }

    /// The checkouts that a journal entry or a mount refers to.
    fn used_checkouts(&self) -> Result<HashSet<CheckoutKey>, Error> {
        let mut used: HashSet<CheckoutKey> = self
            .volumes
            .journal
            .all()
            .iter()
            .filter_map(|entry| entry.lowers().map(|(checkout, _)| checkout))
            .collect();
        for folder in self.mounted_folders()? {
            used.extend(self.volumes.layout.checkout_key(&folder));
        }
        Ok(used)
    }

    fn mounted_folders(&self) -> Result<HashSet<PathBuf>, Error> {
        let mounts = self
            .volumes
            .mounts
            .list()
            .map_err(|e| Error::io("read", Path::new("/proc/self/mountinfo"), e))?;
        Ok(mounts
            .into_iter()
            .flat_map(|mounted| mounted.mount.folders.into_iter().chain(mounted.shown))
            .collect())
    }

    fn collect_layers(&self) -> Result<(), Error> {
        let layout = &self.volumes.layout;
        let mut used: HashSet<PathBuf> = self
            .volumes
            .journal
            .all()
            .iter()
            .filter_map(|entry| entry.lowers().map(|(_, layer)| layout.layer(&layer)))
            .collect();
        used.extend(self.mounted_folders()?);
        for folder in children(&layout.layers())? {
            if !used.contains(&folder) && age(modified(&folder)) >= self.policy.keep_unused {
                to_trash(layout, &folder)?;
            }
        }
        Ok(())
    }

    /// Uppers of volumes that were not on the node for long. They hold what no other place holds,
    /// so a full disk does not hasten this. Those of volumes that are known to be gone go before,
    /// see [`Volumes::let_go`].
    fn collect_uppers(&self, done: &mut Collected) -> Result<(), Error> {
        let Volumes {
            layout,
            journal,
            locks,
            ..
        } = &*self.volumes;
        for entry in journal.all() {
            if !entry.is_off_node() || entry.age() < self.policy.keep_unused {
                continue;
            }
            let Ok(guard) = locks.take(&entry.handle) else {
                continue;
            };
            // Somebody may have staged it since.
            if journal.get(&entry.handle).as_ref() == Some(&entry)
                && self.volumes.discard_idle(&guard, &entry)?
            {
                done.uppers += 1;
            }
        }
        let mut known: HashSet<PathBuf> = journal
            .all()
            .iter()
            .map(|entry| layout.volume(&entry.handle))
            .collect();
        for folder in self.mounted_folders()? {
            known.extend(folder.parent().and_then(|disk| layout.disk_owner(disk)));
        }
        // The next reconciliation takes a disk away that nobody uses.
        let mounts = self.volumes.mounts.list();
        let mounts = mounts.map_err(|e| Error::io("read", Path::new("/proc/self/mountinfo"), e))?;
        known.extend(mounts.iter().filter_map(|m| layout.disk_owner(&m.path)));
        for folder in children(&layout.volumes())? {
            // An entry is written before its folder is made, so one without is nobody's.
            if !known.contains(&folder) && age(modified(&folder)) >= self.policy.keep_unused {
                to_trash(layout, &folder)?;
                done.uppers += 1;
            }
        }
        Ok(())
    }

    fn collect_repositories(&self, pressed: bool) -> Result<(), Error> {
        let layout = &self.volumes.layout;
        let with_checkouts: HashSet<PathBuf> = all_checkouts(layout)?
            .iter()
            .map(|key| layout.repository(key))
            .collect();
        for folder in children(&layout.repositories())? {
            let unused_since = modified(&folder.join("checkouts")).max(modified(&folder));
            let old = age(unused_since) >= self.policy.keep_unused;
            let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if !with_checkouts.contains(&folder) && (pressed || old) {
                let checkouts = &self.volumes.checkouts;
                checkouts.remove_unused_repository(name, || to_trash(layout, &folder))?;
            }
        }
        Ok(())
    }

    fn disk_percent(&self) -> Result<u8, Error> {
        let root = self.volumes.layout.root();
        let disk = rustix::fs::statvfs(root).map_err(|e| Error::io("measure", root, e.into()))?;
        // As `df` counts: what is kept for root is neither used nor available.
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        let usable = used + disk.f_bavail;
        Ok((used * 100)
            .checked_div(usable)
            .map_or(100, |percent| percent.min(100) as u8))
    }
}

/// The complete checkouts on the node.
pub(crate) fn all_checkouts(layout: &Layout) -> Result<Vec<CheckoutKey>, Error> {
    let mut keys = Vec::new();
    for folder in children(&layout.repositories())? {
        let Some(repository) = folder.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let names =
            checkout::list(&folder).map_err(|e| Error::Fetch(Arc::new(FetchError::from(e))))?;
        keys.extend(
            names
                .iter()
                .map(|name| CheckoutKey::found(repository, name)),
        );
    }
    Ok(keys)
}

/// Puts a folder out of sight; [`Collector::collect`] deletes it.
pub(crate) fn to_trash(layout: &Layout, folder: &Path) -> Result<(), Error> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let place = layout.trash().join(format!("{name}.{now}"));
    match std::fs::rename(folder, &place) {
        // Two collections met.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| Error::io("move to the trash", folder, e)),
    }
}

pub(crate) fn empty_trash(layout: &Layout) -> Result<(), Error> {
    for path in children(&layout.trash())? {
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(|e| Error::io("delete", &path, e))?,
        }
    }
    Ok(())
}

pub(crate) fn children(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    std::fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(|e| Error::io("read", folder, e))
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// When a file changed last; long ago if it is not there.
pub(crate) fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path)
        .and_then(|found| found.modified())
        .unwrap_or(UNIX_EPOCH)
}

pub(crate) fn age(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

fn store_error(error: hyprstream_git2db::store::StoreError) -> Error {
    Error::Fetch(Arc::new(FetchError::from(error)))
}
