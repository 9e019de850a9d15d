//! Checkouts that were damaged on the disk.

use std::collections::HashSet;

use hyprstream_git2db::store::ObjectStore;

use super::{Collected, Collector, all_checkouts, remove_if_there, store_error};
use crate::error::Error;

impl Collector {
    /// Removes damaged checkouts that nothing uses, with the objects of a wrong size that they
    /// were linked from, so that the next stage fetches them anew. Returns how many. Blocks.
    pub fn collect_damaged(&self) -> Result<usize, Error> {
        let volumes = &self.volumes;
        let layout = &volumes.layout;
        let store = ObjectStore::open(&layout.store()).map_err(store_error)?;
        let (mut removed, mut done) = (0, Collected::default());
        for key in all_checkouts(layout)? {
            let Some(found) = volumes.checkouts.open(&key)? else {
                continue;
            };
            let Some(damaged) = volumes.checkouts.damage(&key, &found) else {
                continue;
            };
            // Files of adapters are links: they are taken away and fetched anew, and whoever reads
            // them has them open.
            volumes.adapters.forget(&found, &damaged)?;
            let named = || Ok(HashSet::new());
            if self.remove_files(&key, named, &mut done)?.is_none() {
                tracing::warn!(checkout = %key, "damaged checkout is in use");
                continue;
            }
            volumes.checkouts.collecting(|_| -> Result<_, Error> {
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
                Ok(())
            })?;
            tracing::warn!(checkout = %key, "damaged checkout deleted");
            removed += 1;
        }
        Ok(removed)
    }
}
