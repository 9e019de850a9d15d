//! LFS objects of a mirror: each downloaded once, and given only to those who may have it.
//!
//! An object that the store has may have come from somebody else's private upstream. Then the
//! mirror gets it without a download only if an upstream of the same origin offers it to these
//! credentials: an origin that never showed the bytes could promise anything. Otherwise the bytes
//! themselves have to come, which proves that the upstream has them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hyprstream_contract::registry::reason;
use hyprstream_git2db::{
    Digest, Observer, Progress, RemoteUrl,
    lfs::{Client, Options, Pointer, Transfer},
    store::ObjectStore,
};
use parking_lot::{Condvar, Mutex};
use sha2::Digest as _;

use super::{
    Job,
    failure::Failure,
    job::Order,
    proof,
    run::{Run, Stage},
};
use crate::{scrub, state::State};

const SLOW_DISK_BYTES_PER_SECOND: u64 = 32 << 20;

/// Who brings which object now, so that it is always known where an object came from.
#[derive(Default)]
pub(crate) struct Claims {
    book: Mutex<Book>,
    released: Condvar,
}

#[derive(Default)]
struct Book {
    /// Objects that a job works on; no other job touches them meanwhile.
    taken: HashMap<Digest, Taken>,
    /// Objects that clients upload, with the number of uploads.
    uploading: HashMap<Digest, usize>,
}

struct Taken {
    /// Number of the job.
    job: u64,
    /// A client was uploading the same object at some time since.
    uploaded: bool,
    /// Another job waits for it.
    awaited: bool,
}

struct Claim<'a> {
    claims: &'a Claims,
    oids: Vec<Digest>,
}

/// An upload of an object; it ends with the value.
pub(crate) struct Upload<'a> {
    claims: &'a Claims,
    oid: Digest,
}

impl Claims {
    /// Notes that the object may appear in the store through an upload.
    pub(crate) fn upload(&self, oid: &Digest) -> Upload<'_> {
        let mut book = self.book.lock();
        *book.uploading.entry(oid.clone()).or_insert(0) += 1;
        if let Some(taken) = book.taken.get_mut(oid) {
            taken.uploaded = true;
        }
        Upload {
            claims: self,
            oid: oid.clone(),
        }
    }

    /// Objects that are on their way into a repository, and so not to be collected.
    pub(crate) fn in_flight(&self) -> HashSet<Digest> {
        let book = self.book.lock();
        book.taken
            .keys()
            .chain(book.uploading.keys())
            .cloned()
            .collect()
    }

    /// Whether other jobs wait for what the job with this number works on.
    pub(super) fn is_awaited(&self, job: u64) -> bool {
        let book = self.book.lock();
        book.taken
            .values()
            .any(|taken| taken.job == job && taken.awaited)
    }

    fn was_uploaded(&self, oid: &Digest) -> bool {
        let book = self.book.lock();
        book.taken.get(oid).is_none_or(|taken| taken.uploaded)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let mut book = self.claims.book.lock();
        if let Some(count) = book.uploading.get_mut(&self.oid) {
            *count -= 1;
            if *count == 0 {
                book.uploading.remove(&self.oid);
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut book = self.claims.book.lock();
        for oid in &self.oids {
            book.taken.remove(oid);
        }
        self.claims.released.notify_all();
    }
}

/// Gives the mirror those of `pointers` that it lacks.
pub(super) fn bring(
    state: &State,
    job: &Job,
    run: &Run,
    order: &Order,
    pointers: Vec<Pointer>,
) -> Result<(), Failure> {
    let mut lacking = Vec::new();
    let mut done = 0;
    for pointer in pointers {
        let size = state
            .layout
            .member_size(&order.repository, &pointer.oid)
            .map_err(|error| Failure::internal("looking for an object", &error))?;
        if size == Some(pointer.size) {
            done += pointer.size;
        } else {
            if size.is_some() {
                // The pointer is wrong, or the disk has lost the end: then it is not there now.
                scrub::is_good(state, &pointer.oid);
            }
            lacking.push(pointer);
        }
    }
    job.bytes_done.store(done, Ordering::Relaxed);
    // Counted before the first byte comes: better no mirror than a disk that is full for all.
    let missing: u64 = lacking
        .iter()
        .filter(|pointer| !state.layout.store().contains(&pointer.oid))
        .map(|pointer| pointer.size)
        .sum();
    if missing > 0 && state.require_space(missing).is_err() {
        return Err(Failure::disk_full());
    }
    while !lacking.is_empty() {
        lacking = round(state, job, run, order, lacking)?;
    }
    Ok(())
}

/// Does what can be done without waiting for other jobs; if there is nothing, waits. Returns what
/// is left. Never waits while it holds a claim, so that jobs cannot wait for each other.
fn round(
    state: &State,
    job: &Job,
    run: &Run,
    order: &Order,
    lacking: Vec<Pointer>,
) -> Result<Vec<Pointer>, Failure> {
    let claims = &state.mirrors.claims;
    let store = state.layout.store();
    let (mut absent, mut present, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    let claim = {
        let mut book = claims.book.lock();
        let mut oids = Vec::new();
        for pointer in lacking {
            if let Some(taken) = book.taken.get_mut(&pointer.oid) {
                taken.awaited = true;
                busy.push(pointer);
                continue;
            }
            let taken = Taken {
                job: job.number,
                uploaded: book.uploading.contains_key(&pointer.oid),
                awaited: false,
            };
            book.taken.insert(pointer.oid.clone(), taken);
            oids.push(pointer.oid.clone());
            if store.contains(&pointer.oid) {
                present.push(pointer);
            } else {
                absent.push(pointer);
            }
        }
        if oids.is_empty() {
            run.enter(Stage::Here);
            claims.released.wait_for(&mut book, Duration::from_secs(1));
        }
        Claim { claims, oids }
    };
    run.enter(Stage::Objects);
    let (proven, doubtful) = judge(state, order, present);
    give(state, job, order, &proven)?;
    if !doubtful.is_empty() {
        // A store of its own, since the shared one has the objects and would not load them.
        let aside = tempfile::Builder::new()
            .prefix("proof-")
            .tempdir_in(state.layout.tmp())
            .map_err(|error| Failure::disk("making a folder", &error))?;
        for pointer in &doubtful {
            let scratch = ObjectStore::open(aside.path()).map_err(Failure::from)?;
            download(
                state,
                job,
                run,
                order,
                std::slice::from_ref(pointer),
                &scratch,
            )?;
            give(state, job, order, std::slice::from_ref(pointer))?;
            let _ = fs::remove_file(scratch.path(&pointer.oid));
        }
    }
    if !absent.is_empty() {
        let result = download(state, job, run, order, &absent, store);
        // What came in before a failure is kept too, or the next attempt would load it again. An
        // object that a client uploaded meanwhile may not be the upstream's: it is judged next.
        absent.retain(|pointer| store.contains(&pointer.oid));
        let (uploaded, ours): (Vec<_>, Vec<_>) = absent
            .into_iter()
            .partition(|pointer| claims.was_uploaded(&pointer.oid));
        give(state, job, order, &ours)?;
        result?;
        busy.extend(uploaded);
    }
    drop(claim);
    if run.is_cancelled() {
        return Err(Failure::passing(
            reason::INTERNAL,
            "the registry is restarting",
        ));
    }
    Ok(busy)
}

/// Parts objects of the store into those that the mirror may have and those that it has to load.
fn judge(state: &State, order: &Order, present: Vec<Pointer>) -> (Vec<Pointer>, Vec<Pointer>) {
    let (known, mut doubtful): (Vec<_>, Vec<_>) = present
        .into_iter()
        .partition(|pointer| origin_mark(state, &order.url, &pointer.oid).exists());
    if known.is_empty() {
        return (known, doubtful);
    }
    let offered = proof::offered(&order.url, &order.credentials, &known, state.fence());
    let (proven, refused): (Vec<_>, Vec<_>) = known
        .into_iter()
        .partition(|pointer| offered.contains(&pointer.oid));
    doubtful.extend(refused);
    (proven, doubtful)
}

/// Loads objects from the upstream into a store, and counts what came.
fn download(
    state: &State,
    job: &Job,
    run: &Run,
    order: &Order,
    pointers: &[Pointer],
    store: &ObjectStore,
) -> Result<Transfer, Failure> {
    let defaults = Options::default();
    let options = Options {
        parallel: state.limits.parallel_downloads,
        stall_timeout: defaults.stall_timeout.min(state.limits.fetch.rate_window),
        ..defaults
    };
    let client = Client::new(&order.url, &order.credentials, options)?.guarded(state.fence());
    run.pardon(reading_time(store, pointers));
    let before = job.bytes_done.load(Ordering::Relaxed);
    let observer = Download {
        job,
        run,
        before,
        highest: AtomicU64::new(0),
    };
    let result = client.download(pointers, store, &observer);
    // From here on only what belongs to the mirror counts as done.
    job.bytes_done.store(before, Ordering::Relaxed);
    let transfer = result?;
    state
        .metrics
        .upstream_downloads
        .inc_by(transfer.objects_moved);
    state.metrics.upstream_bytes.inc_by(transfer.bytes_moved);
    Ok(transfer)
}

/// Counts the bytes of a download.
struct Download<'a> {
    job: &'a Job,
    run: &'a Run,
    before: u64,
    /// Most bytes that were there at once. What is thrown away and comes again is no progress.
    highest: AtomicU64,
}

impl Observer for Download<'_> {
    fn progress(&self, progress: Progress) {
        if let Progress::Objects { bytes_done, .. } = progress {
            let highest = self.highest.fetch_max(bytes_done, Ordering::Relaxed);
            self.run.moved(bytes_done.saturating_sub(highest));
            let done = self.before + bytes_done;
            self.job.bytes_done.store(done, Ordering::Relaxed);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.run.is_cancelled()
    }
}

/// How long a slow disk needs to read again what came of the objects earlier.
fn reading_time(store: &ObjectStore, pointers: &[Pointer]) -> Duration {
    let parts = store.root().join("parts");
    let size = |pointer: &Pointer| {
        let part = fs::metadata(parts.join(pointer.oid.as_str()));
        part.map_or(0, |part| part.len())
    };
    let bytes: u64 = pointers.iter().map(size).sum();
    Duration::from_secs(bytes / SLOW_DISK_BYTES_PER_SECOND)
}

/// Makes objects of the store the mirror's own, and notes that the upstream's origin has them.
fn give(state: &State, job: &Job, order: &Order, pointers: &[Pointer]) -> Result<(), Failure> {
    for pointer in pointers {
        let noted = note_origin(state, &order.url, &pointer.oid);
        noted
            .and_then(|()| state.layout.add_member(&order.repository, &pointer.oid))
            .map_err(|error| Failure::disk("keeping an object", &error))?;
        job.bytes_done.fetch_add(pointer.size, Ordering::Relaxed);
    }
    Ok(())
}

/// An empty file that says that this origin (scheme, host and port) has shown the bytes.
fn origin_mark(state: &State, url: &RemoteUrl, oid: &Digest) -> PathBuf {
    let origin = format!("{:?}\n{}\n{:?}", url.scheme(), url.host(), url.port());
    let origin = hex::encode(&sha2::Sha256::digest(origin)[..16]);
    let oid = oid.as_str();
    state
        .layout
        .root()
        .join("origins")
        .join(origin)
        .join(&oid[..2])
        .join(oid)
}

fn note_origin(state: &State, url: &RemoteUrl, oid: &Digest) -> io::Result<()> {
    let mark = origin_mark(state, url, oid);
    if mark.exists() {
        return Ok(());
    }
    if let Some(folder) = mark.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::File::create(mark).map(drop)
}
