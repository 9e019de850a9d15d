//! The memory of adapters that are ready to compute with, and who uses them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::Limits;

/// What is taken of the room that there is.
#[derive(Debug)]
pub(super) struct Ledger {
    limits: Limits,
    used: Mutex<Used>,
    /// Told whenever some of it is given back.
    pub(super) freed: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    bytes: u64,
    adapters: usize,
}

/// Room for one adapter, until this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    bytes: u64,
    ledger: Arc<Ledger>,
}

/// Room that is needed, or had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) adapters: usize,
}

impl Amount {
    /// That of all of these.
    pub(super) fn of(bytes: impl IntoIterator<Item = u64>) -> Self {
        bytes.into_iter().fold(Self::default(), Self::and)
    }

    /// With one adapter more.
    pub(super) fn and(self, bytes: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_add(bytes),
            adapters: self.adapters + 1,
        }
    }

    /// Whether this is no more than `other`.
    pub(super) fn fits(self, other: Self) -> bool {
        self.bytes <= other.bytes && self.adapters <= other.adapters
    }
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            used: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// All there is.
    pub(super) fn whole(&self) -> Amount {
        Amount {
            bytes: self.limits.memory_bytes,
            adapters: self.limits.resident,
        }
    }

    /// What nobody has, if `credit` of what is taken counted as free.
    pub(super) fn free(&self, credit: Amount) -> Amount {
        let used = *lock(&self.used);
        let whole = self.whole();
        Amount {
            bytes: (whole.bytes + credit.bytes).saturating_sub(used.bytes),
            adapters: (whole.adapters + credit.adapters).saturating_sub(used.adapters),
        }
    }

    /// Takes room, whether or not it is free.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Room {
        let mut used = lock(&self.used);
        used.bytes += bytes;
        used.adapters += 1;
        Room {
            bytes,
            ledger: Arc::clone(self),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut used = lock(&self.ledger.used);
        used.bytes -= self.bytes;
        used.adapters -= 1;
        drop(used);
        self.ledger.freed.notify_waiters();
    }
}

/// How many requests do something, by the name of an adapter.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: Mutex<BTreeMap<String, usize>>,
}

/// One of a [`Tally`], until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    name: String,
    tally: Arc<Tally>,
}

impl Tally {
    pub(super) fn count(self: &Arc<Self>, name: &str) -> Counted {
        *lock(&self.counts).entry(name.to_owned()).or_default() += 1;
        Counted {
            name: name.to_owned(),
            tally: Arc::clone(self),
        }
    }

    /// Those of which there are some.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        lock(&self.counts).clone()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = lock(&self.tally.counts);
        if let Some(count) = counts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

/// What a lock guards; nothing here is left half done by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_and_what_is_over_the_bound_is_not_free() {
        let ledger = Arc::new(Ledger::new(Limits {
            memory_bytes: 10,
            resident: 2,
            ..Limits::default()
        }));
        let amount = |bytes, adapters| Amount { bytes, adapters };
        let none = Amount::default();
        let first = ledger.take(4);
        assert_eq!(ledger.free(none), amount(6, 1));
        let (_second, _third) = (ledger.take(8), ledger.take(1));
        assert_eq!(ledger.free(none), none);
        assert_eq!(ledger.free(amount(8, 2)), amount(5, 1));
        drop(first);
        assert_eq!(ledger.free(none), amount(1, 0));
        assert!(Amount::of([4, 6]).fits(ledger.whole()));
        assert!(!Amount::of([1, 1, 1]).fits(ledger.whole()));
    }

    #[test]
    fn only_names_that_somebody_has_are_counted() {
        let tally = Arc::new(Tally::default());
        let (a, b) = (tally.count("a"), tally.count("a"));
        assert_eq!(tally.counts()["a"], 2);
        drop(a);
        assert_eq!(tally.counts()["a"], 1);
        drop(b);
        assert!(tally.counts().is_empty());
    }
}
