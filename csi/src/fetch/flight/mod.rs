//! One fetch per checkout, however many ask at once.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    time::{Duration, SystemTime},
};

use hyprstream_contract::VolumeAttributes;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use super::{Access, Checkout, FetchError, Kept, Plan, Progress, Room, Source, wanted::Wanted};
use crate::{
    error::Error,
    layout::{CheckoutKey, Layout},
};

/// Fetches of the same kind at the same time. Each has a few transfers at once, which fill a
/// network.
const PARALLEL_FETCHES: usize = 4;
/// Commits whose git objects are fetched at the same time.
const PARALLEL_PLANS: usize = 8;
/// Commits with more bytes than this do not keep smaller ones waiting.
const LARGE_BYTES: u64 = 1 << 30;

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
    plans: Semaphore,
    small: Semaphore,
    large: Semaphore,
    abandoned_after: Duration,
    wanted: Arc<Wanted>,
    /// Held while a fetch is admitted, so that they come in the order in which they ask.
    admission: tokio::sync::Mutex<()>,
    room: OnceLock<Weak<dyn Room>>,
    /// Held for reading, never across the network, by who counts on objects that nothing links
    /// to or that a collection does not know to be wanted; for writing while objects are deleted.
    collecting: RwLock<()>,
}

/// The right of a fetch to write what it was promised, while it lives.
struct Admitted {
    key: CheckoutKey,
    wanted: Arc<Wanted>,
    complete: bool,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.wanted.end(&self.key, self.complete);
    }
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
            plans: Semaphore::new(PARALLEL_PLANS),
            small: Semaphore::new(PARALLEL_FETCHES),
            large: Semaphore::new(PARALLEL_FETCHES),
            abandoned_after,
            wanted: Arc::new(Wanted::new(abandoned_after)),
            admission: tokio::sync::Mutex::default(),
            room: OnceLock::new(),
            collecting: RwLock::default(),
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

    /// The first file of the checkout that is known to be damaged. Reads sizes and a mark.
    pub fn damage(&self, key: &CheckoutKey, checkout: &Checkout) -> Option<String> {
        let marked = std::fs::read_to_string(self.layout.damage_mark(key)).ok();
        marked.or_else(|| checkout.damaged_file().map(|file| file.path.clone()))
    }

    /// Notes that the checkout is in use now.
    pub fn touch(&self, key: &CheckoutKey) -> Result<(), Error> {
        let path = self.layout.last_use(key);
        std::fs::File::create(&path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|e| Error::io("write", &path, e))
    }

    /// Who makes room for fetches that do not fit; to be called once. Without it they fail.
    pub fn set_room(&self, room: Weak<dyn Room>) {
        // A second one would be a mistake of ours, and changes nothing.
        let _ = self.room.set(room);
    }

    /// Runs `delete` with what it must leave alone in the store. No fetch that is not among that
    /// looks at the store, and no checkout is built, before `delete` ends. It must not block on
    /// the network.
    pub(crate) fn collecting<T>(&self, delete: impl FnOnce(&Kept) -> T) -> T {
        let _alone = self.collecting.write();
        delete(&self.wanted.kept())
    }

    /// What a collection must leave alone, for an estimate.
    pub(crate) fn kept(&self) -> Kept {
        self.wanted.kept()
    }

    /// As [`Self::remove_unused`], for a whole repository: nothing of it is in use or wanted.
    pub(crate) fn remove_unused_repository<T, E>(
        &self,
        repository: &str,
        remove: impl FnOnce() -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let leases = self.leases.lock();
        let leased = leases.keys().any(|key| key.repository() == repository);
        if leased || self.wanted.has_repository(repository) {
            Ok(None)
        } else {
            remove().map(Some)
        }
    }

    /// The checkout, fetched if need be, by the keys of `access` and of all others that ask for it.
    /// The fetch goes on when this returns
    /// [`Error::Fetching`] after `patience`, or is dropped.
    ///
    /// Hold a [`Lease`] on it before and for as long as it is used.
    pub async fn ensure(
        self: &Arc<Self>,
        key: &CheckoutKey,
        volume: &VolumeAttributes,
        access: &Access,
        patience: Duration,
    ) -> Result<Arc<Checkout>, Error> {
        let (progress, mut outcome) = self.join(key, volume, access);
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
        access: &Access,
    ) -> (Arc<Progress>, watch::Receiver<Outcome>) {
        self.wanted.ask(key);
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get_mut(key) {
            flight.asked = Instant::now();
            flight.progress.access.take_up(access);
            // One that is ending for want of callers is waited for; its caller then asks again.
            return (Arc::clone(&flight.progress), flight.outcome.clone());
        }
        let progress = Arc::new(Progress::default());
        progress.access.take_up(access);
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
            let outcome = flight.await.map_err(Arc::new);
            sender.send_replace(Some(outcome));
        });
        (progress, outcome)
    }

    async fn fly(
        self: Arc<Self>,
        key: CheckoutKey,
        volume: VolumeAttributes,
        progress: Arc<Progress>,
    ) -> Result<Arc<Checkout>, FetchError> {
        // Taken out of the list however this ends, so that the next caller begins anew.
        let _landed = Landed {
            checkouts: &self,
            key: &key,
        };
        let _lease = self.lease(&key);

        // Most stages find the checkout there: no slot is needed for them.
        let opened = Arc::clone(&self);
        let opened_key = key.clone();
        let work = tokio::task::spawn_blocking(move || opened.source.open(&opened_key));
        if let Some(checkout) = work.await.unwrap_or(Err(broken_off()))? {
            if let Some(path) = self.damage(&key, &checkout) {
                return Err(FetchError::Damaged { path });
            }
            refuse_pointers(&checkout)?;
            return Ok(Arc::new(checkout));
        }

        let plan = {
            let _slot = slot(&self.plans, &progress).await?;
            let (checkouts, key, volume, progress) = parts(&self, &key, &volume, &progress);
            self.watched(&key.clone(), &progress.clone(), move || {
                checkouts.source.plan(&key, &volume, &progress)
            })
            .await?
        };
        let slots = match plan.bytes() {
            bytes if bytes > LARGE_BYTES => &self.large,
            _ => &self.small,
        };
        let _slot = slot(slots, &progress).await?;
        let plan = Arc::new(plan);
        let mut admitted = self.admit(&key, &plan, &progress).await?;
        let checkout = {
            let (checkouts, key, volume, progress) = parts(&self, &key, &volume, &progress);
            self.watched(&key.clone(), &progress.clone(), move || {
                checkouts.source.bring(&volume, &plan, &progress)?;
                // Between its file in the store and its link a small file looks unused.
                let _hold = checkouts.collecting.read();
                checkouts.source.build(&key, &volume)
            })
            .await?
        };
        admitted.complete = true;
        refuse_pointers(&checkout)?;
        if let Err(error) = self.touch(&key) {
            tracing::warn!(%error, "the use of a checkout could not be noted");
        }
        Ok(Arc::new(checkout))
    }

    /// Promises the fetch the space for what it still has to write; room is made if need be.
    ///
    /// # Errors
    /// [`FetchError::DiskFull`] if it does not fit beside what is in use and what is promised.
    async fn admit(
        self: &Arc<Self>,
        key: &CheckoutKey,
        plan: &Arc<Plan>,
        progress: &Arc<Progress>,
    ) -> Result<Admitted, FetchError> {
        let _turn = self.admission.lock().await;
        let checkouts = Arc::clone(self);
        let (key, plan, progress) = (key.clone(), Arc::clone(plan), Arc::clone(progress));
        tokio::task::spawn_blocking(move || checkouts.admit_now(&key, &plan, &progress))
            .await
            .unwrap_or(Err(broken_off()))
    }

    fn admit_now(
        &self,
        key: &CheckoutKey,
        plan: &Plan,
        progress: &Arc<Progress>,
    ) -> Result<Admitted, FetchError> {
        {
            let _hold = self.collecting.read();
            let (objects, progress) = (Arc::clone(&plan.objects), Arc::clone(progress));
            self.wanted.begin(key, objects, progress);
        }
        let admitted = Admitted {
            key: key.clone(),
            wanted: Arc::clone(&self.wanted),
            complete: false,
        };
        let missing = self.source.missing(plan)?;
        let needed_bytes = missing.needed_bytes;
        if needed_bytes > 0 {
            let available_bytes = self
                .make_room(key, needed_bytes)
                .map_err(|e| FetchError::Internal { why: e.to_string() })?;
            if needed_bytes > available_bytes {
                return Err(FetchError::DiskFull {
                    path: self.layout.root().to_owned(),
                    needed_bytes,
                    available_bytes,
                });
            }
        }
        self.wanted.promise(key, missing);
        Ok(admitted)
    }

    /// Bytes that may be written beside what is promised to fetches other than `key`, after room
    /// for `needed_bytes` was made as far as it can be.
    fn make_room(&self, key: &CheckoutKey, needed_bytes: u64) -> Result<u64, Error> {
        let promised = self.wanted.promised_to_others(key);
        let free_bytes = match self.room.get().and_then(Weak::upgrade) {
            Some(room) => room.make_room(needed_bytes.saturating_add(promised)),
            None => self.layout.free_bytes(),
        };
        Ok(free_bytes?.saturating_sub(promised))
    }

    /// Runs `take`, which allocates `needed_bytes` at once, with the bytes that it may allocate
    /// beside what is promised to fetches other than `key`. Room is made if need be, and no fetch
    /// is admitted meanwhile. Blocks.
    pub(crate) fn allocating<T>(
        &self,
        key: &CheckoutKey,
        needed_bytes: u64,
        take: impl FnOnce(u64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _turn = self.admission.blocking_lock();
        take(self.make_room(key, needed_bytes)?)
    }

    /// What `work` returns, which is told to end when nobody has asked for the checkout for long.
    async fn watched<T: Send + 'static>(
        &self,
        key: &CheckoutKey,
        progress: &Progress,
        work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let mut work = tokio::task::spawn_blocking(work);
        let mut look = tokio::time::interval(self.abandoned_after / 40);
        loop {
            tokio::select! {
                done = &mut work => return done.unwrap_or(Err(broken_off())),
                _ = look.tick() => {
                    let asked = self.flights.lock().get(key).map(|flight| flight.asked);
                    if asked.is_none_or(|asked| asked.elapsed() > self.abandoned_after) {
                        progress.cancelled.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    }
}

/// Refuses a checkout that shows a pointer where weights should be.
fn refuse_pointers(checkout: &Checkout) -> Result<(), FetchError> {
    match checkout.pointer_file() {
        Some(file) => Err(FetchError::Refused {
            why: format!(
                "{:?} is a Git LFS pointer and not the weights that it stands for: upload the \
                 file itself, with `git lfs track` for it, and commit",
                file.path
            ),
        }),
        None => Ok(()),
    }
}

fn broken_off() -> FetchError {
    FetchError::Internal {
        why: "the fetch broke off".to_owned(),
    }
}

/// A place among the fetches that run at the same time.
async fn slot<'a>(
    slots: &'a Semaphore,
    progress: &Progress,
) -> Result<SemaphorePermit<'a>, FetchError> {
    progress.waiting.store(true, Ordering::Relaxed);
    let slot = slots.acquire().await;
    progress.waiting.store(false, Ordering::Relaxed);
    slot.map_err(|_| broken_off())
}

/// Copies for a thread of its own.
fn parts(
    checkouts: &Arc<Checkouts>,
    key: &CheckoutKey,
    volume: &VolumeAttributes,
    progress: &Arc<Progress>,
) -> (Arc<Checkouts>, CheckoutKey, VolumeAttributes, Arc<Progress>) {
    (
        Arc::clone(checkouts),
        key.clone(),
        volume.clone(),
        Arc::clone(progress),
    )
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
