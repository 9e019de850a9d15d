//! Commits of upstreams, brought here once.
//!
//! What is on the disk is the only state that counts: a job looks at what is there and fetches
//! the rest, so that one that was killed is continued by the next. The table in memory only keeps
//! one job from being done twice and remembers why one failed.

mod accepted;
mod failure;
mod here;
mod identity;
mod job;
mod objects;
mod proof;
pub(crate) mod readers;
mod run;
mod source;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyprstream_contract::registry::{
    MirrorRequest, MirrorState, MirrorStatus, ResolveRequest, ResolveResponse, reason,
};
use hyprstream_git2db::{
    Cancel, CommitId, Digest, Include, Reference, RemoteError, RemoteUrl, remote,
};
use hyprstream_slots::{self as slots, Owners, Slots};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub(crate) use failure::Failure;
use identity::Identity;
pub(crate) use objects::Claims;
use run::{End, Run};
use source::Source;

use crate::{
    names::Repository,
    pins,
    state::{State, blocking},
};

/// The jobs and what they share.
pub(crate) struct Mirrors {
    jobs: Mutex<HashMap<Key, Arc<Job>>>,
    fetches: Slots,
    /// Questions to upstreams have places of their own: a download is long and a question short.
    resolves: Slots,
    /// Who brings which LFS object now.
    pub(crate) claims: Claims,
    /// Ends all jobs when set.
    pub(crate) cancel: Cancel,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    repository: Repository,
    commit: CommitId,
    include: Digest,
}

/// One commit on its way here.
struct Job {
    /// Different for every job.
    number: u64,
    phase: Mutex<Phase>,
    /// With which credentials it is fetched, or was last.
    shown: Mutex<Identity>,
    asked: Mutex<Instant>,
    /// The namespaces that ask for it.
    owners: Owners,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
}

#[derive(Clone, Debug)]
enum Phase {
    Fetching,
    Ready {
        seen: Instant,
    },
    Failed {
        failure: Failure,
        attempt: u32,
        at: Instant,
    },
}

/// Jobs that are kept in memory before those that nobody asks for any more are dropped.
const KEPT_JOBS: usize = 4096;
const FORGET_AFTER: Duration = Duration::from_hours(1);
/// Shorter than the operator waits, so that it hears why.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(50);
/// Waiting fetches of one namespace; others are told to come back later.
const MAX_WAITING: usize = 256;
/// Questions of one namespace that wait; those of others wait beside them.
const MAX_WAITING_RESOLVES: usize = 64;
/// Most questions to upstreams at the same time.
const MAX_RESOLVES: usize = 32;
/// A thread that does not end within this time keeps nobody but its own namespace from working.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// After this time a commit that is asked for is looked at again: the disk may have lost some of it.
const LOOK_AGAIN_AFTER: Duration = Duration::from_mins(5);

impl Mirrors {
    pub(crate) fn new(max_fetches: usize) -> Self {
        Self {
            jobs: Mutex::default(),
            fetches: Slots::new(max_fetches),
            resolves: Slots::new(MAX_RESOLVES),
            claims: Claims::default(),
            cancel: Cancel::new(),
        }
    }

    /// How many jobs are in each state.
    pub(crate) fn count(&self) -> [(&'static str, usize); 3] {
        let mut counts = [("fetching", 0), ("ready", 0), ("failed", 0)];
        for job in self.jobs.lock().values() {
            let index = match *job.phase.lock() {
                Phase::Fetching => 0,
                Phase::Ready { .. } => 1,
                Phase::Failed { .. } => 2,
            };
            counts[index].1 += 1;
        }
        counts
    }

    /// Forgets what is known of a repository that is removed.
    pub(crate) fn forget(&self, repository: &Repository) {
        self.jobs
            .lock()
            .retain(|key, _| key.repository != *repository);
    }

    /// Forgets the jobs of a repository that have ended, so that the next request looks at the
    /// disk.
    pub(crate) fn forget_finished(&self, repository: &Repository) {
        self.jobs.lock().retain(|key, job| {
            key.repository != *repository || matches!(*job.phase.lock(), Phase::Fetching)
        });
    }

    /// Whether a job is under way, or failed so short a time ago that it is not tried again yet.
    fn is_settled(&self, state: &State, key: &Key) -> bool {
        let jobs = self.jobs.lock();
        jobs.get(key).is_some_and(|job| match &*job.phase.lock() {
            Phase::Fetching => true,
            Phase::Ready { .. } => false,
            Phase::Failed { attempt, at, .. } => at.elapsed() < backoff(state, *attempt),
        })
    }

    /// Whether work on the repository is under way.
    pub(crate) fn is_busy(&self, repository: &Repository) -> bool {
        self.jobs.lock().iter().any(|(key, job)| {
            key.repository == *repository && matches!(*job.phase.lock(), Phase::Fetching)
        })
    }
}

/// Which commit a reference names now.
pub(crate) async fn resolve(
    state: &Arc<State>,
    request: ResolveRequest,
) -> Result<ResolveResponse, Failure> {
    let reference = source::reference(&request.reference);
    let found = match source::parse(&request.upstream)? {
        Source::Here(repository) => {
            let state = Arc::clone(state);
            background(move || here::resolve(&state, &repository, &reference)).await?
        }
        Source::There(url) => {
            let credentials = source::credentials(request.upstream.credentials.as_ref());
            let namespace = &request.upstream.namespace;
            let asks = !matches!(reference, Reference::Commit(_));
            let asked = url.clone();
            let found = ask_upstream(state, namespace, &url, move || {
                remote::resolve(&asked, &reference, &credentials)
            })
            .await?;
            if asks {
                accepted::accepted(state, &url, &request.upstream).await;
            }
            found
        }
    };
    let commit = found
        .as_str()
        .parse()
        .expect("both are 40 hexadecimal digits");
    Ok(ResolveResponse { commit })
}

/// Asks an upstream something, on a thread of its own: one that does not end in time is left
/// behind, at the expense of its own namespace.
async fn ask_upstream<T: Send + 'static>(
    state: &Arc<State>,
    namespace: &str,
    url: &RemoteUrl,
    question: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, Failure> {
    if state.mirrors.resolves.waiting(namespace) >= MAX_WAITING_RESOLVES {
        return Err(busy());
    }
    let until = tokio::time::Instant::now() + RESOLVE_PATIENCE;
    let owners = slots::owner(namespace);
    let slot = state.mirrors.resolves.acquire(&owners, false);
    let Ok(mut slot) = tokio::time::timeout_at(until, slot).await else {
        return Err(busy());
    };
    let late = Failure::unreachable(url.host());
    let (asking, url) = (Arc::clone(state), url.clone());
    let mut done = on_thread(move || source::ask(&asking, &url, question))?;
    if let Ok(found) = tokio::time::timeout_at(until, &mut done).await {
        return found.unwrap_or_else(|_| Err(Failure::died()));
    }
    slot.set_aside();
    tokio::spawn(async move {
        let _ = done.await;
        drop(slot);
    });
    Err(late)
}

fn busy() -> Failure {
    let message = "too much of this namespace waits for upstreams that are slow; it is tried again";
    Failure::passing(reason::BUSY, message)
}

/// How far a commit is; begins or continues the work if it is not here.
pub(crate) async fn mirror(
    state: &Arc<State>,
    request: MirrorRequest,
) -> Result<MirrorStatus, Failure> {
    let include = Include::new(&request.include)?;
    let commit = source::commit_id(&request.commit);
    let url = match source::parse(&request.upstream)? {
        Source::Here(repository) => {
            let state = Arc::clone(state);
            return background(move || Ok(here::status(&state, &repository, &commit, &include)))
                .await;
        }
        Source::There(url) => url,
    };
    let upstream = &request.upstream;
    let credentials = source::credentials(upstream.credentials.as_ref());
    let key = |repository: &Repository| Key {
        repository: repository.clone(),
        commit: commit.clone(),
        include: include.digest(),
    };
    let shown = Identity::of(&url, upstream, &state.auth);
    let is_settled = |repository: &_| state.mirrors.is_settled(state, &key(repository));
    let identity = shown.clone();
    let repository =
        accepted::repository(state, &url, upstream, &credentials, identity, is_settled).await;
    let key = key(&repository);
    let (job, attempt) = claim(state, &key, &upstream.namespace, &shown)?;
    if let Some(attempt) = attempt {
        let order = job::Order {
            repository,
            url,
            reference: source::reference(&request.reference),
            commit,
            include,
            credentials,
        };
        tokio::spawn(work(
            Arc::clone(state),
            Arc::clone(&job),
            key.clone(),
            order,
            attempt,
        ));
    }
    state.touch(&key.repository);
    pins::touch(&state.layout.repository(&key.repository), &key.commit);
    if let Err(error) = readers::note(&state.layout, &key.repository, &request.upstream) {
        tracing::warn!(%error, "who may read a mirror could not be noted");
    }
    Ok(job.status(&key.repository))
}

/// The job of `key`, and the number of the attempt that the caller is to make, if it is to.
fn claim(
    state: &State,
    key: &Key,
    namespace: &str,
    shown: &Identity,
) -> Result<(Arc<Job>, Option<u32>), Failure> {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let mut jobs = state.mirrors.jobs.lock();
    if jobs.len() >= KEPT_JOBS {
        jobs.retain(|_, job| {
            job.asked.lock().elapsed() < FORGET_AFTER
                || matches!(*job.phase.lock(), Phase::Fetching)
        });
    }
    let is_new = !jobs.contains_key(key);
    if is_new && state.mirrors.fetches.waiting(namespace) >= MAX_WAITING {
        return Err(busy());
    }
    let job = Arc::clone(jobs.entry(key.clone()).or_insert_with(|| {
        Arc::new(Job {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            phase: Mutex::new(Phase::Fetching),
            shown: Mutex::new(shown.clone()),
            asked: Mutex::new(Instant::now()),
            owners: slots::owner(namespace),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
        })
    }));
    drop(jobs);
    *job.asked.lock() = Instant::now();
    let joins = job.owners.lock().insert(namespace.to_owned());
    if joins {
        state.mirrors.fetches.joined();
    }
    Ok(due(state, key, job, is_new, shown))
}

/// The job, and the number of the attempt that is due.
fn due(
    state: &State,
    key: &Key,
    job: Arc<Job>,
    is_new: bool,
    shown: &Identity,
) -> (Arc<Job>, Option<u32>) {
    if is_new {
        return (job, Some(1));
    }
    let mut phase = job.phase.lock();
    let next = match &*phase {
        Phase::Fetching => None,
        Phase::Ready { seen } => {
            if state.layout.exists(&key.repository) {
                // It stays ready while it is looked at.
                let look = seen.elapsed() >= LOOK_AGAIN_AFTER;
                if look {
                    *phase = Phase::Ready {
                        seen: Instant::now(),
                    };
                }
                return (Arc::clone(&job), look.then_some(1));
            }
            Some(1)
        }
        // Other credentials may be the cure.
        Phase::Failed { .. } if *job.shown.lock() != *shown => Some(1),
        Phase::Failed { attempt, at, .. } => {
            let wait = backoff(state, *attempt);
            (at.elapsed() >= wait).then_some(attempt.saturating_add(1))
        }
    };
    if next.is_some() {
        *phase = Phase::Fetching;
        *job.shown.lock() = shown.clone();
    }
    drop(phase);
    (job, next)
}

fn backoff(state: &State, attempt: u32) -> Duration {
    let doubled = 2u32.saturating_pow(attempt.saturating_sub(1).min(16));
    state
        .limits
        .min_backoff
        .saturating_mul(doubled)
        .min(state.limits.max_backoff)
}

async fn work(state: Arc<State>, job: Arc<Job>, key: Key, order: job::Order, attempt: u32) {
    let (repository, commit) = (order.repository.to_string(), order.commit.to_string());
    let Some(result) = attempt_until_done(&state, &job, order, attempt > 1).await else {
        tracing::info!(
            repository,
            commit,
            "ended a fetch that nobody asks for any more"
        );
        let mut jobs = state.mirrors.jobs.lock();
        let ours = jobs.get(&key).is_some_and(|there| Arc::ptr_eq(there, &job));
        // What was ready before it was looked at again stays so.
        if ours && matches!(*job.phase.lock(), Phase::Fetching) {
            jobs.remove(&key);
        }
        return;
    };
    let mut phase = job.phase.lock();
    *phase = match result {
        Ok(()) => {
            if matches!(*phase, Phase::Fetching) {
                tracing::info!(repository, commit, "mirrored");
            }
            Phase::Ready {
                seen: Instant::now(),
            }
        }
        Err(failure) => {
            tracing::warn!(
                repository,
                commit,
                attempt,
                reason = failure.reason,
                message = failure.message,
                "a commit could not be mirrored"
            );
            Phase::Failed {
                failure,
                attempt,
                at: Instant::now(),
            }
        }
    };
}

/// Works on the job, in turns with others, until it is done or has failed. `None`: nobody asks
/// for it any more.
async fn attempt_until_done(
    state: &Arc<State>,
    job: &Arc<Job>,
    order: job::Order,
    mut again: bool,
) -> Option<Result<(), Failure>> {
    let order = Arc::new(order);
    let fetches = &state.mirrors.fetches;
    loop {
        let mut slot = tokio::select! {
            slot = fetches.acquire(&job.owners, again) => slot,
            () = abandoned(state, job) => return None,
        };
        let run = Arc::new(Run::new(&state.mirrors.cancel));
        let started = on_thread({
            let (state, job) = (Arc::clone(state), Arc::clone(job));
            let (run, order) = (Arc::clone(&run), Arc::clone(&order));
            move || job::run(&state, &job, &run, &order)
        });
        let mut done = match started {
            Ok(done) => done,
            Err(failure) => return Some(Err(failure)),
        };
        let end = tokio::select! {
            result = &mut done => return Some(result.unwrap_or_else(|_| Err(Failure::died()))),
            end = run.watch(state, job, &slot, fetches) => end,
        };
        tracing::debug!(repository = %order.repository, ?end, "a fetch is ended");
        run.cancel();
        match tokio::time::timeout(END_PATIENCE, &mut done).await {
            Ok(Ok(Ok(()))) => return Some(Ok(())),
            Ok(_) => drop(slot),
            Err(_) => {
                slot.set_aside();
                tokio::spawn(async move {
                    let _ = done.await;
                    drop(slot);
                });
            }
        }
        match end {
            End::Abandoned => return None,
            End::Turn => again = true,
            End::Slow | End::Late | End::Crowded => {
                return end.failure(&state.limits.fetch).map(Err);
            }
        }
    }
}

/// Returns when nobody has asked for the job for too long.
async fn abandoned(state: &State, job: &Job) {
    let limits = &state.limits.fetch;
    while job.asked.lock().elapsed() < limits.lease {
        tokio::time::sleep(limits.tick()).await;
    }
}

impl Job {
    fn status(&self, repository: &Repository) -> MirrorStatus {
        let (state, error) = match &*self.phase.lock() {
            Phase::Fetching => (MirrorState::Fetching, None),
            Phase::Ready { .. } => (MirrorState::Ready, None),
            Phase::Failed { failure, .. } => (MirrorState::Failed, Some(failure.api_error())),
        };
        MirrorStatus {
            repository: repository.to_string(),
            state,
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            error,
        }
    }
}

/// Runs work with an upstream on a thread of its own: it may hang for long, and must not take a
/// thread from what looks at the disk.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Failure>>, Failure> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("upstream".to_owned())
        .spawn(move || {
            let _ = sender.send(work());
        })
        .map_err(|error| Failure::internal("starting a thread", &error))?;
    Ok(receiver)
}

async fn background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match blocking(work).await {
        Ok(result) => result,
        Err(refusal) => Err(Failure::passing(reason::INTERNAL, refusal.message)),
    }
}
