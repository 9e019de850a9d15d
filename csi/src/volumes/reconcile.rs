//! Bringing journal, mounts and what the kubelet knows together: at start and now and then.
//!
//! The kubelet writes `vol_data.json` beside a path before it asks us to mount there, and removes
//! it after we have unmounted. A mount of ours below the kubelet's folder without that file is one
//! that the kubelet, and so the API server, no longer knows.

use std::path::Path;

use super::Volumes;
use crate::{error::Error, journal::Entry};

/// The kubelet's note beside every path that it gives us.
const KUBELET_NOTE: &str = "vol_data.json";

/// What a reconciliation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Mounts that nobody knew any more and that were unmounted.
    pub unmounted: usize,
    /// Journal entries that were removed.
    pub forgotten: usize,
}

impl Volumes {
    /// Unmounts what the kubelet no longer knows and forgets what is not there. Mounts that work
    /// are left alone; nothing is mounted. Blocks.
    ///
    /// One volume that fails does not keep the others from their turn; it is logged.
    pub fn reconcile(&self) -> Result<Reconciled, Error> {
        let mut done = Reconciled::default();
        for entry in self.journal.all() {
            // One that is being worked on is in good hands.
            let Ok(guard) = self.locks.take(&entry.handle) else {
                continue;
            };
            let Some(entry) = self.journal.get(&entry.handle) else {
                continue;
            };
            if let Err(error) = self.reconcile_entry(&guard, &entry, &mut done) {
                tracing::warn!(volume = entry.handle, %error, "volume could not be reconciled");
            }
        }
        self.journal.write_late();
        self.follow();
        self.unmount_unknown(&mut done)?;
        self.unmount_idle_disks()?;
        let staged = self
            .journal
            .all()
            .iter()
            .filter(|entry| entry.staging.is_some())
            .count();
        self.metrics.volumes.set(staged as i64);
        Ok(done)
    }

    fn reconcile_entry(
        &self,
        guard: &super::Guard,
        entry: &Entry,
        done: &mut Reconciled,
    ) -> Result<(), Error> {
        let mut kept = entry.clone();
        for path in entry.targets.keys() {
            let mounted = self.our_mount(path)?.is_some();
            if mounted && self.is_wanted(path, mounted) {
                continue;
            }
            if mounted {
                self.unpublish_now(guard, &entry.handle, path)?;
                done.unmounted += 1;
            }
            // Not mounted: the kubelet publishes anew if it wants it.
            kept.targets.remove(path);
        }
        if let Some(staging) = &entry.staging
            && kept.targets.is_empty()
        {
            let mounted = self.our_mount(staging)?.is_some();
            if !self.is_wanted(staging, mounted) {
                if mounted {
                    self.unstage_now(guard, &entry.handle, staging)?;
                    done.unmounted += 1;
                    return Ok(());
                }
                kept.staging = None;
            }
        }
        if kept == *entry {
            return Ok(());
        }
        if kept.staging.is_none() && kept.targets.is_empty() && !self.has_upper(&entry.handle) {
            done.forgotten += 1;
            return self.journal.remove(&entry.handle);
        }
        self.journal.lessen(kept)
    }

    /// Unmounts our mounts below the kubelet's folder that neither journal nor kubelet know.
    fn unmount_unknown(&self, done: &mut Reconciled) -> Result<(), Error> {
        let list = self
            .mounts
            .list()
            .map_err(|e| Error::io("read", Path::new("/proc/self/mountinfo"), e))?;
        for mounted in list.iter().filter(|mounted| mounted.is_ours()) {
            let path = &mounted.path;
            if !self.is_in_kubelet_dir(path) || is_known(path) {
                continue;
            }
            let in_journal = self.journal.all().iter().any(|entry| {
                entry.staging.as_ref() == Some(path) || entry.targets.contains_key(path)
            });
            if in_journal {
                continue;
            }
            tracing::warn!(path = %path.display(), "mount that nobody knows is unmounted");
            if let Err(error) = self.unmount_all(path, true) {
                tracing::warn!(path = %path.display(), %error, "could not unmount");
                continue;
            }
            done.unmounted += 1;
        }
        Ok(())
    }

    /// Whether somebody wants us to be mounted at `path`. Outside the kubelet's folder nobody
    /// leaves a note: there, what is mounted is wanted.
    fn is_wanted(&self, path: &Path, mounted: bool) -> bool {
        if self.is_in_kubelet_dir(path) {
            is_known(path)
        } else {
            mounted
        }
    }

    fn is_in_kubelet_dir(&self, path: &Path) -> bool {
        path.starts_with(&self.kubelet_dir)
    }
}

/// Whether the kubelet has a note of this path.
fn is_known(path: &Path) -> bool {
    path.parent()
        .is_some_and(|parent| parent.join(KUBELET_NOTE).exists())
}
