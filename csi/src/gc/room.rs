//! Making room on a full disk: the least worth first, and only as much as is needed.
//!
//! First what no fetch is known to want, then checkouts that nothing uses, the longest unused
//! first, at last what came of fetches that are not under way at present.

use super::{
    Collected, Collector, all_checkouts, empty_trash, modified,
    objects::{STRAY_AGE, freed_bytes, stray_bytes},
};
use crate::{
    error::Error,
    fetch::{Checkout, Room},
    layout::CheckoutKey,
};

/// What is made free where nobody knows how much is needed. A file outside LFS has no more.
const UNKNOWN_NEED_BYTES: u64 = 64 << 20;

impl Room for Collector {
    fn make_room(&self, free_bytes: u64) -> Result<u64, Error> {
        self.make_room_for(free_bytes, false)
    }
}

impl Collector {
    /// Frees some space, or what there is to free. For writes that failed. Blocks.
    pub fn make_some_room(&self) -> Result<u64, Error> {
        let free = self.volumes.layout.free_bytes()?;
        self.make_room_for(free.saturating_add(UNKNOWN_NEED_BYTES), true)
    }

    /// `any`: delete also if it will not be enough.
    fn make_room_for(&self, free_bytes: u64, any: bool) -> Result<u64, Error> {
        let layout = &self.volumes.layout;
        let is_enough = || Ok::<_, Error>(layout.free_bytes()? >= free_bytes);
        if is_enough()? {
            return layout.free_bytes();
        }
        let mut done = Collected::default();
        empty_trash(layout)?;
        self.collect_damaged()?;
        self.collect_objects(STRAY_AGE, &mut done)?;
        let unused = self.unused_checkouts()?;
        if !is_enough()? && !any && !self.could_free(free_bytes, &unused)? {
            return layout.free_bytes();
        }
        for (key, _) in &unused {
            if is_enough()? {
                break;
            }
            self.remove_checkout(key, &mut done)?;
        }
        if !is_enough()? {
            self.collect_adapters(true, &mut done)?;
            empty_trash(layout)?;
            for (key, _) in self.unused_checkouts()? {
                if is_enough()? {
                    break;
                }
                self.remove_checkout(&key, &mut done)?;
            }
        }
        if !is_enough()? {
            self.collect_repositories(true)?;
            empty_trash(layout)?;
            self.collect_waiting_objects(&mut done)?;
        }
        done.log();
        layout.free_bytes()
    }

    /// Whether deleting all that may be deleted would make `free_bytes` free.
    fn could_free(
        &self,
        free_bytes: u64,
        unused: &[(CheckoutKey, Checkout)],
    ) -> Result<bool, Error> {
        let layout = &self.volumes.layout;
        let kept = self.volumes.checkouts.kept().running;
        let checkouts: Vec<Checkout> = unused.iter().map(|(_, found)| found.clone()).collect();
        let possible = freed_bytes(&checkouts, &kept) + stray_bytes(layout, &kept)?;
        Ok(layout.free_bytes()?.saturating_add(possible) >= free_bytes)
    }

    /// Complete checkouts that nothing uses, the longest unused first.
    pub(super) fn unused_checkouts(&self) -> Result<Vec<(CheckoutKey, Checkout)>, Error> {
        let layout = &self.volumes.layout;
        let mut used = self.used_checkouts()?;
        used.extend(self.volumes.adapters.named_checkouts()?);
        let mut unused = Vec::new();
        for key in all_checkouts(layout)? {
            if used.contains(&key) {
                continue;
            }
            if let Some(checkout) = self.volumes.checkouts.open(&key)? {
                unused.push((modified(&layout.last_use(&key)), key, checkout));
            }
        }
        unused.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        Ok(unused
            .into_iter()
            .map(|(_, key, checkout)| (key, checkout))
            .collect())
    }
}
