//! Reading every object again, slowly and for ever: what a disk loses is found before a pod does.

use std::{
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use hyprstream_git2db::{
    Digest,
    store::{ObjectStore, StoreError, Verified},
};

use super::{Collector, all_checkouts, modified, objects::names, store_error};
use crate::{error::Error, journal::write_durably};

/// How the store is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrub {
    /// Bytes that are read in a second at most.
    pub bytes_per_second: u64,
    /// Time from the end of one pass to the beginning of the next.
    pub every: Duration,
}

/// The longest wait before it is looked again whether it is time.
const LOOK_EVERY: Duration = Duration::from_mins(1);

impl Collector {
    /// Reads what is due of the store, and returns after how long to call it again. Where it is
    /// stands in a file, so that a restart goes on there. Blocks, for hours; `ended` ends it.
    pub fn scrub(&self, scrub: &Scrub, ended: &dyn Fn() -> bool) -> Result<Duration, Error> {
        let position = self.volumes.layout.scrub_position();
        // Empty after a pass; its time is then that of the end of the pass.
        let last = std::fs::read_to_string(&position).unwrap_or_default();
        let since = SystemTime::now()
            .duration_since(modified(&position))
            .unwrap_or_default();
        if position.exists() && last.is_empty() && since < scrub.every {
            return Ok(scrub.every.saturating_sub(since).min(LOOK_EVERY));
        }
        let store = ObjectStore::open(&self.volumes.layout.store()).map_err(store_error)?;
        let mut pace = Pace::new(scrub.bytes_per_second);
        for oid in store.oids().map_err(store_error)? {
            if oid.as_str() <= last.as_str() {
                continue;
            }
            let found = store.verify(&oid, &mut |bytes| {
                pace.wait(bytes);
                if ended() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            match found {
                Ok(Verified::Whole { bytes }) => {
                    self.volumes.metrics.scrubbed_bytes.inc_by(bytes);
                }
                Ok(Verified::Damaged { detail }) => self.damaged(&store, &oid, &detail)?,
                // Collected meanwhile.
                Err(StoreError::Missing { .. }) => {}
                Err(StoreError::Cancelled { .. }) => return Ok(LOOK_EVERY),
                Err(error) => return Err(store_error(error)),
            }
            note(&position, oid.as_str());
        }
        note(&position, "");
        Ok(scrub.every.min(LOOK_EVERY))
    }

    /// Marks the checkouts that show a damaged object and puts it aside, in this order: a mark
    /// that a full disk refuses is made by the next pass.
    fn damaged(&self, store: &ObjectStore, oid: &Digest, detail: &str) -> Result<(), Error> {
        let layout = &self.volumes.layout;
        let inode = |path: &Path| {
            std::fs::symlink_metadata(path)
                .ok()
                .map(|found| found.ino())
        };
        let bad = names(store, oid).map(|path| inode(&path));
        tracing::error!(%oid, detail, "a file was damaged on the node's disk");
        for key in all_checkouts(layout)? {
            let Some(found) = self.volumes.checkouts.open(&key)? else {
                continue;
            };
            let shown = found.files.iter().find(|file| {
                let there = inode(&found.path.join(&file.path));
                file.sha256 == oid.as_str() && there.is_some() && bad.contains(&there)
            });
            if let Some(file) = shown {
                tracing::error!(checkout = %key, file = file.path, "checkout is damaged");
                write_durably(&layout.damage_mark(&key), file.path.as_bytes())?;
            }
        }
        store.quarantine(oid).map_err(store_error)?;
        self.volumes.metrics.damaged_objects.inc();
        self.volumes.damaged.notify_one();
        Ok(())
    }
}

/// Where a pass is. Without it, on a full disk say, the next one begins a little earlier.
fn note(position: &Path, text: &str) {
    if let Err(error) = std::fs::write(position, text) {
        tracing::debug!(%error, "the position of the scrub could not be noted");
    }
}

/// Keeps a rate by sleeping.
struct Pace {
    bytes_per_second: u64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            began: Instant::now(),
            bytes: 0,
        }
    }

    fn wait(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = self.bytes as f64 / self.bytes_per_second as f64;
        let early = Duration::from_secs_f64(due).saturating_sub(self.began.elapsed());
        std::thread::sleep(early.min(Duration::from_secs(5)));
        // Bytes that were not read in time are not read faster later.
        if self.began.elapsed() > Duration::from_secs(10) {
            *self = Self::new(self.bytes_per_second);
        }
    }
}
