//! What was pushed lately, or changed otherwise.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyprstream_contract::registry::{Change, EventPage, PushEvent};
use parking_lot::Mutex;
use tokio::sync::watch;

/// The latest pushes, in memory.
///
/// Numbers begin at the time of the start in microseconds, so that they grow across restarts and a
/// reader with a number of an earlier life is told to look at everything again.
pub(crate) struct Events {
    first: u64,
    ring: Mutex<VecDeque<PushEvent>>,
    last: watch::Sender<u64>,
}

const KEPT: usize = 1024;

impl Events {
    pub(crate) fn new() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |d| d.as_micros() as u64);
        Self {
            first: now,
            ring: Mutex::default(),
            last: watch::Sender::new(now),
        }
    }

    /// Notes that a repository changed, an event for each change that is known.
    pub(crate) fn push(&self, namespace: &str, name: &str, changes: Vec<Change>) {
        let mut changes: Vec<_> = changes.into_iter().map(Some).collect();
        if changes.is_empty() {
            changes.push(None);
        }
        let mut ring = self.ring.lock();
        let mut sequence = *self.last.borrow();
        for change in changes {
            sequence += 1;
            ring.push_back(PushEvent {
                sequence,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                change,
            });
            if ring.len() > KEPT {
                ring.pop_front();
            }
        }
        self.last.send_replace(sequence);
    }

    /// The events after `after`; waits up to `patience` for one.
    pub(crate) async fn after(&self, after: u64, patience: Duration) -> EventPage {
        let mut last = self.last.subscribe();
        if after == *last.borrow_and_update() {
            let _ = tokio::time::timeout(patience, last.changed()).await;
        }
        self.page(after)
    }

    fn page(&self, after: u64) -> EventPage {
        let ring = self.ring.lock();
        let last = *self.last.borrow();
        let oldest = ring.front().map_or(last + 1, |event| event.sequence);
        let lost = after > last || after < self.first || after + 1 < oldest;
        if lost {
            return EventPage {
                events: Vec::new(),
                last,
                reset: true,
            };
        }
        let events = ring
            .iter()
            .filter(|event| event.sequence > after)
            .cloned()
            .collect();
        EventPage {
            events,
            last,
            reset: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyprstream_contract::registry::ChangeKind;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_reader_sees_each_push_once_and_in_order() {
        let events = Arc::new(Events::new());
        let start = events.after(0, SOON).await;
        assert!(start.reset && start.events.is_empty());
        events.push("a", "m", Vec::new());
        events.push("a", "n", Vec::new());
        let page = events.after(start.last, SOON).await;
        let names: Vec<_> = page.events.iter().map(|e| e.name.as_str()).collect();
        assert_eq!((names, page.reset), (vec!["m", "n"], false));
        assert_eq!(events.after(page.last - 1, SOON).await.events.len(), 1);
        assert_eq!(
            events.after(page.last, Duration::ZERO).await.events.len(),
            0
        );
    }

    #[tokio::test]
    async fn each_ref_of_a_push_is_an_event() {
        let events = Events::new();
        let start = events.after(0, SOON).await;
        let change = |reference: &str| Change {
            kind: ChangeKind::Push,
            subject: "alice".to_owned(),
            reference: Some(reference.to_owned()),
            is_default: false,
            old: None,
            new: None,
            bytes: None,
        };
        let both = vec![change("refs/heads/a"), change("refs/heads/b")];
        events.push("a", "m", both.clone());
        let page = events.after(start.last, SOON).await;
        let changes: Vec<_> = page.events.into_iter().filter_map(|e| e.change).collect();
        assert_eq!((changes, page.last), (both, start.last + 2));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_by_a_push() {
        let events = Arc::new(Events::new());
        let last = events.after(0, SOON).await.last;
        let waiting = tokio::spawn({
            let events = Arc::clone(&events);
            async move { events.after(last, SOON).await }
        });
        tokio::task::yield_now().await;
        events.push("a", "m", Vec::new());
        assert_eq!(waiting.await.unwrap().events.len(), 1);
    }

    #[tokio::test]
    async fn a_reader_that_missed_events_is_told_so() {
        let events = Events::new();
        let last = events.after(0, SOON).await.last;
        for _ in 0..=KEPT {
            events.push("a", "m", Vec::new());
        }
        assert!(events.after(last, SOON).await.reset);
        assert!(!events.after(last + 1, SOON).await.reset);
        assert!(events.after(last + 1_000_000, SOON).await.reset);
    }
}
