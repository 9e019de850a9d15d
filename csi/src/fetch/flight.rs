//! One fetch per checkout, however many ask at once.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use hyprstream_contract::VolumeAttributes;
use parking_lot::Mutex;
use tokio::{
    sync::{RwLock, Semaphore, watch},
    time::Instant,
};

use super::{Checkout, FetchError, Progress, Source};
use crate::{
    error::Error,
    layout::{CheckoutKey, Layout},
};

/// Fetches at the same time. Each has a few transfers at once, which fill a network.
const PARALLEL_FETCHES: usize = 4;

/// A fetch ends when nobody has asked for it for so long. The kubelet asks again within two
/// minutes of every answer.
const ABANDONED_AFTER: Duration = Duration::from_mins(10);

type Outcome = Option<Result<Arc<Checkout>, Arc<FetchError>>>;

struct Flight {
    progress: Arc<Progress>,
    outcome: watch::Receiver<Outcome>,
    asked: Instant,
}

/// The checkouts of this node and the fetches under way.
pub struct Checkouts {
    source: Arc<dyn Source>,
    layout: Layout,
    flights: Mutex<HashMap<CheckoutKey, Flight>>,
    leases: Arc<Mutex<HashMap<CheckoutKey, usize>>>,
    slots: Arc<Semaphore>,
    abandoned_after: Duration,
    /// Held for reading by every fetch and for writing while objects are collected.
    collecting: Arc<RwLock<()>>,
}

/// Keeps a checkout from being collected while it lives.
pub struct Lease {
    key: CheckoutKey,
    leases: Arc<Mutex<HashMap<CheckoutKey, usize>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.leases.lock();
        if let Some(count) = leases.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&self.key);
            }
        }
    }
}

impl Checkouts {
    /// Checkouts from `source`, below `layout`.
    pub fn new(source: Arc<dyn Source>, layout: Layout) -> Arc<Self> {
        Self::abandoning_after(ABANDONED_AFTER, source, layout)
    }

    fn abandoning_after(
        abandoned_after: Duration,
        source: Arc<dyn Source>,
        layout: Layout,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            layout,
            flights: Mutex::default(),
            leases: Arc::default(),
            slots: Arc::new(Semaphore::new(PARALLEL_FETCHES)),
            abandoned_after,
            collecting: Arc::default(),
        })
    }

    /// Keeps the checkout `key`, present or to come, from being collected.
    pub fn lease(&self, key: &CheckoutKey) -> Lease {
        *self.leases.lock().entry(key.clone()).or_default() += 1;
        Lease {
            key: key.clone(),
            leases: Arc::clone(&self.leases),
        }
    }

    /// What `remove` returns, called unless somebody has a lease on the checkout; then `None`.
    /// No lease begins before `remove` ends.
    pub fn remove_unused<T, E>(
        &self,
        key: &CheckoutKey,
        remove: impl FnOnce() -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let leases = self.leases.lock();
        if leases.contains_key(key) {
            Ok(None)
        } else {
            remove().map(Some)
        }
    }

    /// The checkout, if it is complete on this node. Blocks.
    pub fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, Error> {
        self.source.open(key).map_err(|e| Error::Fetch(Arc::new(e)))
    }

    /// Notes that the checkout is in use now.
    pub fn touch(&self, key: &CheckoutKey) -> Result<(), Error> {
        let path = self.layout.last_use(key);
        std::fs::File::create(&path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|e| Error::io("write", &path, e))
    }

    /// The lock that keeps fetches out while objects are collected.
    pub(crate) fn collecting(&self) -> Arc<RwLock<()>> {
        Arc::clone(&self.collecting)
    }

    /// The checkout, fetched if need be. The fetch goes on when this returns
    /// [`Error::Fetching`] after `patience`, or is dropped.
    ///
    /// Hold a [`Lease`] on it before and for as long as it is used.
    pub async fn ensure(
        self: &Arc<Self>,
        key: &CheckoutKey,
        volume: &VolumeAttributes,
        patience: Duration,
    ) -> Result<Arc<Checkout>, Error> {
        let (progress, mut outcome) = self.join(key, volume);
        let waited = tokio::time::timeout(patience, outcome.wait_for(Option::is_some)).await;
        match waited {
            Err(_) => Err(Error::Fetching(progress.to_string())),
            // The sender is gone without an outcome: the fetch panicked.
            Ok(Err(_)) => Err(Error::BrokenOff),
            Ok(Ok(outcome)) => match &*outcome {
                Some(Ok(checkout)) => Ok(Arc::clone(checkout)),
                Some(Err(error)) => Err(Error::Fetch(Arc::clone(error))),
                None => Err(Error::BrokenOff),
            },
        }
    }

    /// The fetch of `key` that is under way, or a new one.
    fn join(
        self: &Arc<Self>,
        key: &CheckoutKey,
        volume: &VolumeAttributes,
    ) -> (Arc<Progress>, watch::Receiver<Outcome>) {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get_mut(key) {
            flight.asked = Instant::now();
            // One that is ending for want of callers is waited for; its caller then asks again.
            return (Arc::clone(&flight.progress), flight.outcome.clone());
        }
        let progress = Arc::new(Progress::default());
        let (sender, outcome) = watch::channel(None);
        flights.insert(
            key.clone(),
            Flight {
                progress: Arc::clone(&progress),
                outcome: outcome.clone(),
                asked: Instant::now(),
            },
        );
        drop(flights);
        let flight = Arc::clone(self).fly(key.clone(), volume.clone(), Arc::clone(&progress));
        tokio::spawn(async move {
            let outcome = flight.await;
            sender.send_replace(Some(outcome));
        });
        (progress, outcome)
    }

    async fn fly(
        self: Arc<Self>,
        key: CheckoutKey,
        volume: VolumeAttributes,
        progress: Arc<Progress>,
    ) -> Result<Arc<Checkout>, Arc<FetchError>> {
        // Taken out of the list however this ends, so that the next caller begins anew.
        let _landed = Landed {
            checkouts: &self,
            key: &key,
        };
        let _lease = self.lease(&key);
        let broken_off = |why: &str| {
            Arc::new(FetchError::Internal {
                why: why.to_owned(),
            })
        };

        // Most stages find the checkout there: no slot is needed for them.
        let found = {
            let (checkouts, key) = (Arc::clone(&self), key.clone());
            tokio::task::spawn_blocking(move || checkouts.source.open(&key)).await
        };
        match found {
            Ok(Ok(Some(checkout))) => {
                return match checkout.damaged_file() {
                    Some(file) => Err(Arc::new(FetchError::Damaged {
                        path: file.path.clone(),
                    })),
                    None => Ok(Arc::new(checkout)),
                };
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(Arc::new(error)),
            Err(_) => return Err(broken_off("opening the checkout broke off")),
        }

        let Ok(_slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return Err(broken_off("the fetches are being shut down"));
        };
        let _fetching = Arc::clone(&self.collecting).read_owned().await;
        let (checkouts, fetched_key) = (Arc::clone(&self), key.clone());
        let watched = Arc::clone(&progress);
        let mut work = tokio::task::spawn_blocking(move || {
            checkouts.source.fetch(&fetched_key, &volume, &watched)
        });
        let mut look = tokio::time::interval(self.abandoned_after / 40);
        loop {
            tokio::select! {
                done = &mut work => {
                    return match done {
                        Ok(Ok(checkout)) => Ok(Arc::new(checkout)),
                        Ok(Err(error)) => Err(Arc::new(error)),
                        Err(_) => Err(broken_off("the fetch broke off")),
                    };
                }
                _ = look.tick() => {
                    let asked = self.flights.lock().get(&key).map(|flight| flight.asked);
                    if asked.is_none_or(|asked| asked.elapsed() > self.abandoned_after) {
                        progress.cancelled.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    }
}

struct Landed<'a> {
    checkouts: &'a Checkouts,
    key: &'a CheckoutKey,
}

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        self.checkouts.flights.lock().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use hyprstream_contract::volume::VolumeMode;

    use super::*;

    /// Fetches when told to, and counts.
    struct Fake {
        fetches: AtomicUsize,
        go: std::sync::Mutex<std::sync::mpsc::Receiver<Result<(), FetchError>>>,
    }

    impl Source for Fake {
        fn open(&self, _: &CheckoutKey) -> Result<Option<Checkout>, FetchError> {
            Ok(None)
        }

        fn fetch(
            &self,
            _: &CheckoutKey,
            _: &VolumeAttributes,
            progress: &Progress,
        ) -> Result<Checkout, FetchError> {
            self.fetches.fetch_add(1, Ordering::SeqCst);
            progress.bytes_total.store(2 << 20, Ordering::Relaxed);
            progress.bytes_done.store(1 << 20, Ordering::Relaxed);
            self.go.lock().unwrap().recv().unwrap()?;
            Ok(Checkout {
                path: "/c".into(),
                files: vec![],
            })
        }
    }

    struct Setup {
        checkouts: Arc<Checkouts>,
        fake: Arc<Fake>,
        go: std::sync::mpsc::Sender<Result<(), FetchError>>,
        key: CheckoutKey,
        volume: VolumeAttributes,
    }

    fn setup() -> Setup {
        setup_abandoning_after(ABANDONED_AFTER)
    }

    fn setup_abandoning_after(time: Duration) -> Setup {
        let (go, receiver) = std::sync::mpsc::channel();
        let fake = Arc::new(Fake {
            fetches: AtomicUsize::new(0),
            go: std::sync::Mutex::new(receiver),
        });
        let volume = VolumeAttributes {
            repository: "mirror/1".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "s".into(),
            reference: None,
            include: vec![],
            mode: VolumeMode::ReadOnly,
        };
        let checkouts =
            Checkouts::abandoning_after(time, fake.clone(), Layout::new("/nowhere").unwrap());
        Setup {
            checkouts,
            fake,
            go,
            key: CheckoutKey::of(&volume).unwrap(),
            volume,
        }
    }

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn twenty_callers_share_one_fetch() {
        let s = setup();
        let callers: Vec<_> = (0..20)
            .map(|_| {
                let (checkouts, key, volume) =
                    (s.checkouts.clone(), s.key.clone(), s.volume.clone());
                tokio::spawn(async move { checkouts.ensure(&key, &volume, LONG).await })
            })
            .collect();
        s.go.send(Ok(())).unwrap();
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap().path.to_str(), Some("/c"));
        }
        assert_eq!(s.fake.fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_fetch_outlives_the_patience_of_its_caller() {
        let s = setup();
        let mut text = String::new();
        while !text.contains("fetched 1.0 MiB of 2.0 MiB") {
            let error = s
                .checkouts
                .ensure(&s.key, &s.volume, Duration::from_millis(5))
                .await;
            text = error.unwrap_err().to_string();
        }
        s.go.send(Ok(())).unwrap();
        s.checkouts.ensure(&s.key, &s.volume, LONG).await.unwrap();
        assert_eq!(s.fake.fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failure_reaches_its_callers_and_the_next_one_tries_again() {
        let s = setup();
        s.go.send(Err(FetchError::Refused { why: "x".into() }))
            .unwrap();
        let error = s
            .checkouts
            .ensure(&s.key, &s.volume, LONG)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Fetch(_)));
        s.go.send(Ok(())).unwrap();
        s.checkouts.ensure(&s.key, &s.volume, LONG).await.unwrap();
        assert_eq!(s.fake.fetches.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_fetch_that_nobody_asks_for_ends() {
        let s = setup_abandoning_after(Duration::from_millis(100));
        let (progress, mut outcome) = s.checkouts.join(&s.key, &s.volume);
        while !progress.cancelled.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        s.go.send(Err(FetchError::Cancelled)).unwrap();
        let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(*outcome.unwrap().unwrap_err(), FetchError::Cancelled);
        s.go.send(Ok(())).unwrap();
        s.checkouts.ensure(&s.key, &s.volume, LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_leased_checkout_is_not_removed() {
        let s = setup();
        let remove = || {
            s.checkouts
                .remove_unused(&s.key, || Ok::<_, ()>(()))
                .unwrap()
                .is_some()
        };
        let (first, second) = (s.checkouts.lease(&s.key), s.checkouts.lease(&s.key));
        drop(first);
        assert!(!remove());
        drop(second);
        assert!(remove());
    }
}
