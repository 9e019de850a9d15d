//! Checkouts that were damaged on the disk.

use std::sync::Arc;

use hyprstream_git2db::{checkout, store::ObjectStore};

use super::{Collector, all_checkouts, remove_if_there, store_error};
use crate::{error::Error, fetch::FetchError};

impl Collector {
    /// Removes damaged checkouts that nothing uses, with the objects of a wrong size that they
    /// were linked from, so that the next stage fetches them anew. Returns how many. Blocks.
    pub fn collect_damaged(&self) -> Result<usize, Error> {
        let volumes = &self.volumes;
        let layout = &volumes.layout;
        let store = ObjectStore::open(&layout.store()).map_err(store_error)?;
        let mut removed = 0;
        for key in all_checkouts(layout)? {
            let Some(found) = volumes.checkouts.open(&key)? else {
                continue;
            };
            if found.damaged_file().is_none() {
                continue;
            }
            // A fetch counts on the objects that it found: none may be under way.
            let Ok(_alone) = volumes.checkouts.collecting().try_write_owned() else {
                break;
            };
            let gone = volumes.checkouts.remove_unused(&key, || {
                if self.used_checkouts()?.contains(&key) {
                    return Ok(false);
                }
                checkout::remove(&layout.repository(&key), key.name())
                    .map(|()| true)
                    .map_err(|e| Error::Fetch(Arc::new(FetchError::from(e))))
            })?;
            if gone != Some(true) {
                tracing::warn!(checkout = %key, "damaged checkout is in use");
                continue;
            }
            for file in &found.files {
                let Ok(oid) = file.sha256.parse() else {
                    continue;
                };
                let object = store.path(&oid);
                let size = std::fs::metadata(&object).map(|found| found.len());
                if size.is_ok_and(|size| size != file.size_bytes) {
                    remove_if_there(&object)?;
                }
            }
            tracing::warn!(checkout = %key, "damaged checkout deleted");
            removed += 1;
        }
        Ok(removed)
    }
}
