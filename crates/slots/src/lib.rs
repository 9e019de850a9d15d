//! Places for work, shared fairly between those whom the work is for.
//!
//! Whoever holds the fewest places gets the next one, and nobody holds more than half of them: so
//! that one namespace, whatever it asks for, takes no place from the others. The list of those
//! that wait has no end of its own; it costs a namespace nothing that others have many in it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Whom some work is for. More may join while it waits.
pub type Owners = Arc<Mutex<BTreeSet<String>>>;

/// Places for work.
pub struct Slots(Arc<Shared>);

/// A place, which is free again when this is dropped.
pub struct Slot {
    shared: Arc<Shared>,
    owner: String,
    counts: bool,
}

struct Shared {
    total: usize,
    most: usize,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    taken: usize,
    held: HashMap<String, usize>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    owners: Owners,
    again: bool,
    wake: oneshot::Sender<Slot>,
}

/// The owners of work that is for one.
pub fn owner(name: &str) -> Owners {
    Arc::new(Mutex::new(BTreeSet::from([name.to_owned()])))
}

impl Slots {
    /// `total` places, of which one owner holds at most half, but at least one.
    pub fn new(total: usize) -> Self {
        let total = total.max(1);
        Self(Arc::new(Shared {
            total,
            most: total.div_ceil(2),
            book: Mutex::default(),
        }))
    }

    /// Waits for a place. Work that comes `again` waits behind that of the same owner which comes
    /// for the first time.
    pub async fn acquire(&self, owners: &Owners, again: bool) -> Slot {
        loop {
            let (wake, woken) = oneshot::channel();
            let owners = Arc::clone(owners);
            self.0.book.lock().waiting.push(Waiting {
                owners,
                again,
                wake,
            });
            self.0.grant();
            if let Ok(slot) = woken.await {
                return slot;
            }
        }
    }

    /// Looks at the waiting list again, since owners have joined work on it.
    pub fn joined(&self) {
        self.0.grant();
    }

    /// How many works of `owner` wait.
    pub fn waiting(&self, owner: &str) -> usize {
        let book = self.0.book.lock();
        let waits = |w: &&Waiting| !w.wake.is_closed() && w.owners.lock().contains(owner);
        book.waiting.iter().filter(waits).count()
    }

    /// Whether somebody waits who holds fewer places than the owner of `slot`.
    pub fn is_wanted(&self, slot: &Slot) -> bool {
        let book = self.0.book.lock();
        let held = |name: &String| book.held.get(name).copied().unwrap_or(0);
        let mine = held(&slot.owner);
        // Works of one owner take turns too.
        book.waiting.iter().any(|w| {
            let owners = w.owners.lock();
            !w.wake.is_closed()
                && owners
                    .iter()
                    .any(|name| *name == slot.owner || held(name) < mine)
        })
    }
}

impl Slot {
    /// Gives the place to others although the work has not ended, because it cannot be ended. Its
    /// owner still pays for it.
    pub fn set_aside(&mut self) {
        if std::mem::take(&mut self.counts) {
            self.shared.book.lock().taken -= 1;
            self.shared.grant();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut book = self.shared.book.lock();
            if self.counts {
                book.taken -= 1;
            }
            if let Some(held) = book.held.get_mut(&self.owner) {
                *held -= 1;
                if *held == 0 {
                    book.held.remove(&self.owner);
                }
            }
        }
        self.shared.grant();
    }
}

impl Shared {
    fn grant(self: &Arc<Self>) {
        while let Some((wake, slot)) = self.next() {
            // Who has gone meanwhile gives it back, which grants it to the next.
            drop(wake.send(slot));
        }
    }

    fn next(self: &Arc<Self>) -> Option<(oneshot::Sender<Slot>, Slot)> {
        let mut book = self.book.lock();
        book.waiting.retain(|waiting| !waiting.wake.is_closed());
        if book.taken >= self.total {
            return None;
        }
        let held = |name: &String| book.held.get(name).copied().unwrap_or(0);
        let (_, again_index, owner) = book
            .waiting
            .iter()
            .enumerate()
            .filter_map(|(index, waiting)| {
                let owners = waiting.owners.lock();
                let owner = owners.iter().min_by_key(|name| held(name))?;
                let count = held(owner);
                (count < self.most).then(|| (count, (waiting.again, index), owner.clone()))
            })
            .min()?;
        let waiting = book.waiting.remove(again_index.1);
        book.taken += 1;
        *book.held.entry(owner.clone()).or_insert(0) += 1;
        let slot = Slot {
            shared: Arc::clone(self),
            owner,
            counts: true,
        };
        Some((waiting.wake, slot))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn now(slots: &Slots, name: &str) -> Option<Slot> {
        slots.acquire(&owner(name), false).now_or_never()
    }

    #[tokio::test]
    async fn one_owner_holds_at_most_half() {
        let slots = Slots::new(4);
        let held: Vec<_> = (0..4).filter_map(|_| now(&slots, "a")).collect();
        assert_eq!(held.len(), 2);
        assert!(now(&slots, "b").is_some());
    }

    #[tokio::test]
    async fn who_holds_least_is_next_however_long_the_list_of_others_is() {
        let slots = Slots::new(2);
        let first = now(&slots, "a").unwrap();
        let second = now(&slots, "b").unwrap();
        let (a, c) = (owner("a"), owner("c"));
        let mut flood: Vec<_> = (0..100)
            .map(|_| Box::pin(slots.acquire(&a, false)))
            .collect();
        for wait in &mut flood {
            assert!(wait.now_or_never().is_none());
        }
        drop(flood);
        assert_eq!(slots.waiting("a"), 0, "what was dropped waits");
        let mut flood: Vec<_> = (0..100)
            .map(|_| Box::pin(slots.acquire(&a, false)))
            .collect();
        for wait in &mut flood {
            assert!(futures::poll!(wait).is_pending());
        }
        let mut late = Box::pin(slots.acquire(&c, false));
        assert!(futures::poll!(&mut late).is_pending());
        assert!(slots.is_wanted(&first));
        drop(second);
        assert!(late.now_or_never().is_some());
        assert_eq!(slots.waiting("a"), 100);
    }

    #[tokio::test]
    async fn what_cannot_be_ended_is_paid_by_its_owner_alone() {
        let slots = Slots::new(2);
        let mut stuck = now(&slots, "a").unwrap();
        stuck.set_aside();
        assert!(now(&slots, "a").is_none());
        let (b, c) = (now(&slots, "b"), now(&slots, "c"));
        assert!(b.is_some() && c.is_some());
        drop((b, c, stuck));
        assert!(now(&slots, "a").is_some());
    }

    #[tokio::test]
    async fn work_that_others_join_is_done_at_their_turn() {
        let slots = Slots::new(2);
        let held = now(&slots, "a").unwrap();
        let owners = owner("a");
        let mut wait = Box::pin(slots.acquire(&owners, false));
        assert!(futures::poll!(&mut wait).is_pending());
        owners.lock().insert("b".to_owned());
        slots.joined();
        assert!(wait.now_or_never().is_some());
        drop(held);
    }
}
