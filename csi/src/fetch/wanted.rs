//! The fetches that somebody wants: what they count on, and what is promised to them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use hyprstream_git2db::Digest;
use parking_lot::Mutex;

use super::{Missing, Progress};
use crate::layout::CheckoutKey;

/// Fetches under way, and those that failed and will be asked for again.
pub(super) struct Wanted {
    fetches: Mutex<HashMap<CheckoutKey, Fetch>>,
    forget_after: Duration,
}

struct Fetch {
    objects: Arc<HashSet<Digest>>,
    asked: Instant,
    running: Option<Running>,
}

struct Running {
    progress: Arc<Progress>,
    missing: Missing,
}

/// Objects that a collection must leave alone, with what came of them so far.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Those of fetches under way, which found them there or are bringing them.
    pub(crate) running: HashSet<Digest>,
    /// Those, and those of fetches that failed and will be asked for again.
    pub(crate) wanted: HashSet<Digest>,
}

impl Wanted {
    /// Nothing. A fetch that nobody has asked for after `forget_after` is not wanted.
    pub(super) fn new(forget_after: Duration) -> Self {
        Self {
            fetches: Mutex::default(),
            forget_after,
        }
    }

    /// From here on `objects` stay. Nothing is promised yet.
    pub(super) fn begin(
        &self,
        key: &CheckoutKey,
        objects: Arc<HashSet<Digest>>,
        progress: Arc<Progress>,
    ) {
        let running = Some(Running {
            progress,
            missing: Missing::default(),
        });
        let asked = Instant::now();
        let fetch = Fetch {
            objects,
            asked,
            running,
        };
        self.fetches.lock().insert(key.clone(), fetch);
    }

    /// Promises the fetch what it still has to write.
    pub(super) fn promise(&self, key: &CheckoutKey, missing: Missing) {
        if let Some(fetch) = self.fetches.lock().get_mut(key)
            && let Some(running) = &mut fetch.running
        {
            running.missing = missing;
        }
    }

    /// The fetch is no longer under way. It stays wanted for a while unless it is `complete`.
    pub(super) fn end(&self, key: &CheckoutKey, complete: bool) {
        let mut fetches = self.fetches.lock();
        if complete {
            fetches.remove(key);
        } else if let Some(fetch) = fetches.get_mut(key) {
            fetch.running = None;
        }
    }

    /// Somebody asked for the checkout.
    pub(super) fn ask(&self, key: &CheckoutKey) {
        if let Some(fetch) = self.fetches.lock().get_mut(key) {
            fetch.asked = Instant::now();
        }
    }

    /// Bytes that fetches other than `key` still have to write, and were promised.
    pub(super) fn promised_to_others(&self, key: &CheckoutKey) -> u64 {
        let fetches = self.fetches.lock();
        let others = fetches.iter().filter(|(other, _)| *other != key);
        others
            .filter_map(|(_, fetch)| fetch.running.as_ref())
            .map(Running::left)
            .sum()
    }

    /// What a collection must leave alone.
    pub(super) fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        let mut fetches = self.fetches.lock();
        fetches.retain(|_, fetch| {
            fetch.running.is_some() || fetch.asked.elapsed() < self.forget_after
        });
        for fetch in fetches.values() {
            kept.wanted.extend(fetch.objects.iter().cloned());
            if fetch.running.is_some() {
                kept.running.extend(fetch.objects.iter().cloned());
            }
        }
        kept
    }

    /// Whether a fetch out of this repository is wanted.
    pub(super) fn has_repository(&self, repository: &str) -> bool {
        let fetches = self.fetches.lock();
        fetches.iter().any(|(key, fetch)| {
            key.repository() == repository
                && (fetch.running.is_some() || fetch.asked.elapsed() < self.forget_after)
        })
    }
}

impl Running {
    fn left(&self) -> u64 {
        let done = self.progress.bytes_done.load(Ordering::Relaxed);
        let written = done.saturating_sub(self.missing.present_bytes);
        self.missing.needed_bytes.saturating_sub(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> CheckoutKey {
        CheckoutKey::found("r", name)
    }

    fn objects(name: &str) -> Arc<HashSet<Digest>> {
        Arc::new(HashSet::from([Digest::of(name.as_bytes())]))
    }

    #[test]
    fn what_is_promised_shrinks_with_what_was_written() {
        let wanted = Wanted::new(Duration::from_mins(1));
        let progress = Arc::new(Progress::default());
        wanted.begin(&key("a"), objects("a"), progress.clone());
        assert_eq!(wanted.promised_to_others(&key("b")), 0);
        let missing = Missing {
            needed_bytes: 10,
            present_bytes: 5,
        };
        wanted.promise(&key("a"), missing);
        for (done, left) in [(0, 10), (5, 10), (8, 7), (15, 0), (99, 0)] {
            progress.bytes_done.store(done, Ordering::Relaxed);
            assert_eq!(wanted.promised_to_others(&key("b")), left);
        }
        assert_eq!(wanted.promised_to_others(&key("a")), 0, "not to oneself");
    }

    #[test]
    fn a_failed_fetch_keeps_its_objects_until_nobody_asks() {
        let wanted = Wanted::new(Duration::from_millis(50));
        for (name, complete) in [("failed", false), ("complete", true)] {
            wanted.begin(&key(name), objects(name), Arc::default());
            assert!(wanted.kept().running.contains(&Digest::of(name.as_bytes())));
            wanted.end(&key(name), complete);
        }
        let kept = wanted.kept();
        assert!(kept.running.is_empty());
        assert_eq!(kept.wanted, *objects("failed"));
        assert!(wanted.has_repository("r"));
        std::thread::sleep(Duration::from_millis(60));
        assert!(wanted.kept().wanted.is_empty() && !wanted.has_repository("r"));
    }
}
