//! What is on the disk, and how much of it volumes share.

use std::collections::HashSet;

use super::{Collector, all_checkouts};
use crate::{
    error::Error,
    volumes::{DiskUse, add_disk_use, disk_use},
};

impl Collector {
    /// Sets the gauges. Blocks.
    pub fn measure(&self) -> Result<(), Error> {
        let volumes = &self.volumes;
        let layout = &volumes.layout;
        let (mut shown, mut staged) = (0, 0);
        let (mut seen, mut used) = (HashSet::new(), DiskUse::default());
        for entry in volumes.journal.all() {
            if let (Some(model), Some(_)) = (entry.adapters(), &entry.staging) {
                staged += 1;
                let folder = layout.adapters_shown(&model);
                shown += disk_use(&folder).bytes;
                add_disk_use(&folder, &mut seen, &mut used);
                continue;
            }
            let Some((key, _)) = entry.lowers() else {
                continue;
            };
            staged += 1;
            if let Some(checkout) = volumes.checkouts.open(&key)? {
                shown += checkout.bytes();
                add_disk_use(&checkout.path, &mut seen, &mut used);
            }
            let upper = layout.upper(&entry.handle);
            shown += disk_use(&upper).bytes;
            add_disk_use(&upper, &mut seen, &mut used);
        }
        let checkouts = all_checkouts(layout)?;
        let mut all = DiskUse::default();
        let mut seen = HashSet::new();
        for folder in [layout.store(), layout.repositories()] {
            add_disk_use(&folder, &mut seen, &mut all);
        }
        let metrics = &volumes.metrics;
        metrics.left_bytes.set(volumes.held().left_bytes as i64);
        metrics.volumes.set(staged);
        metrics.checkouts.set(checkouts.len() as i64);
        metrics.bytes_shared.set(shown as i64 - used.bytes as i64);
        metrics.disk_bytes.set(all.bytes as i64);
        Ok(())
    }
}
