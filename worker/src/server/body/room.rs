//! Memory for bodies: what many connections may take at once, and who makes way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Room for so many bytes. A body that is still coming makes way for others that need it, first
/// that which has brought nothing for longest: clients that begin bodies and do not end them keep
/// no others out.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// Bytes of bodies that are whole.
    ///
    /// Invariant: with those of `coming` at most the total.
    whole: usize,
    /// Those that are not, that which grew last at the end.
    coming: BTreeMap<u64, Coming>,
    /// Bytes of `coming`.
    coming_bytes: usize,
    /// Greater than all keys of `coming` so far.
    clock: u64,
}

#[derive(Debug)]
struct Coming {
    bytes: usize,
    gives_way: Arc<Notify>,
}

/// What one body has, until it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    room: Room,
    bytes: usize,
    /// Its key in [`Used::coming`], where it is missing once it made way; `None` once it is whole.
    key: Option<u64>,
    gives_way: Arc<Notify>,
}

impl Room {
    pub(super) fn new(total: usize) -> Self {
        Self(Arc::new(Inner {
            total,
            used: Mutex::default(),
        }))
    }

    /// The part of a body of which nothing has come yet.
    pub(super) fn begin(&self) -> Part {
        let gives_way = Arc::new(Notify::new());
        let coming = Coming {
            bytes: 0,
            gives_way: Arc::clone(&gives_way),
        };
        let key = self.used().begin(coming);
        Part {
            room: self.clone(),
            bytes: 0,
            key: Some(key),
            gives_way,
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// Takes `more` bytes. Returns whether there is room; there is none once it made way.
    pub(super) fn grow(&mut self, more: usize) -> bool {
        let total = self.room.0.total;
        let mut used = self.room.used();
        let Some(mut coming) = self.key.and_then(|key| used.end(key)) else {
            return false;
        };
        let is_room = used.make_room(total.saturating_sub(coming.bytes), more);
        if is_room {
            coming.bytes += more;
            self.bytes += more;
        }
        // From now on it grew last.
        self.key = Some(used.begin(coming));
        is_room
    }

    /// It is whole and makes way for nobody any more. Returns whether it did not have to before.
    pub(super) fn complete(&mut self) -> bool {
        let mut used = self.room.used();
        let Some(coming) = self.key.and_then(|key| used.end(key)) else {
            return false;
        };
        used.whole += coming.bytes;
        self.key = None;
        true
    }

    /// Waits until it has to make way.
    pub(super) async fn gives_way(&self) {
        self.gives_way.notified().await;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut used = self.room.used();
        match self.key {
            Some(key) => {
                used.end(key);
            }
            None => used.whole -= self.bytes,
        }
    }
}

impl Used {
    fn begin(&mut self, coming: Coming) -> u64 {
        self.clock += 1;
        self.coming_bytes += coming.bytes;
        self.coming.insert(self.clock, coming);
        self.clock
    }

    fn end(&mut self, key: u64) -> Option<Coming> {
        let coming = self.coming.remove(&key)?;
        self.coming_bytes -= coming.bytes;
        Some(coming)
    }

    /// Sees to it that `more` of `total` is free. Returns whether it is.
    fn make_room(&mut self, total: usize, more: usize) -> bool {
        if self.whole + more > total {
            // Nobody who could make way has so much.
            return false;
        }
        while self.whole + self.coming_bytes + more > total {
            let Some((_, idlest)) = self.coming.pop_first() else {
                return false;
            };
            self.coming_bytes -= idlest.bytes;
            idlest.gives_way.notify_one();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn made_way(part: &Part) -> bool {
        part.gives_way().now_or_never().is_some()
    }

    #[test]
    fn who_has_brought_nothing_for_longest_makes_way() {
        let room = Room::new(10);
        let [mut a, mut b, mut c] = [room.begin(), room.begin(), room.begin()];
        for part in [&mut a, &mut b, &mut c] {
            assert!(part.grow(3));
        }
        assert!(a.grow(1), "there is room");
        let mut d = room.begin();
        assert!(d.grow(2) && d.complete());
        assert!(made_way(&b) && !made_way(&a) && !made_way(&c));
        assert!(!b.grow(1) && !b.complete());
        assert!(!a.grow(7), "what is whole makes no way");
        assert!(!made_way(&c), "it would not have been enough");
        assert!(a.grow(3) && a.complete());
        assert!(made_way(&c) && !made_way(&a));
        drop((a, b, c, d));
        let used = room.used();
        assert_eq!(
            (used.whole, used.coming_bytes, used.coming.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn bodies_that_never_end_keep_nobody_out() {
        let room = Room::new(256);
        let mut stalled = Vec::new();
        for _ in 0..40 {
            let mut part = room.begin();
            assert!(part.grow(15));
            stalled.push(part);
        }
        for _ in 0..40 {
            let mut part = room.begin();
            assert!(part.grow(1) && part.grow(15) && part.complete());
        }
        assert!(stalled.iter().filter(|part| made_way(part)).count() > 20);
    }
}
