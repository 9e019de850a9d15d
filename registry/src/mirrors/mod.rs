//! Commits of upstreams, brought here once.
//!
//! What is on the disk is the only state that counts: a job looks at what is there and fetches
//! the rest, so that one that was killed is continued by the next. The table in memory only keeps
//! one job from being done twice and remembers why one failed.

mod failure;
mod here;
mod identity;
mod job;
mod objects;
mod proof;
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
use hyprstream_git2db::{Cancel, CommitId, Digest, Include};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub(crate) use failure::Failure;
pub(crate) use objects::Claims;
use source::Source;

use crate::{
    names::Repository,
    state::{State, blocking},
};

/// The jobs and what they share.
pub(crate) struct Mirrors {
    jobs: Mutex<HashMap<Key, Arc<Job>>>,
    fetches: Arc<Semaphore>,
    resolves: Arc<Semaphore>,
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
    phase: Mutex<Phase>,
    asked: Mutex<Instant>,
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
/// After this time a commit that is asked for is looked at again: the disk may have lost some of it.
const LOOK_AGAIN_AFTER: Duration = Duration::from_mins(5);

impl Mirrors {
    pub(crate) fn new(max_fetches: usize) -> Self {
        Self {
            jobs: Mutex::default(),
            fetches: Arc::new(Semaphore::new(max_fetches)),
            resolves: Arc::new(Semaphore::new(max_fetches.saturating_mul(4))),
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
            let host = url.host().to_owned();
            let permit = Arc::clone(&state.mirrors.resolves).acquire_owned();
            let work = async move {
                // The permit is held by the thread, which goes on after the wait is over.
                let permit = permit.await;
                background(move || {
                    let _permit = permit;
                    hyprstream_git2db::remote::resolve(&url, &reference, &credentials)
                        .map_err(Failure::from)
                })
                .await
            };
            if let Ok(found) = tokio::time::timeout(RESOLVE_PATIENCE, work).await {
                found?
            } else {
                let message = format!("host {host:?} did not answer in time");
                return Err(Failure::passing(reason::HOST_UNREACHABLE, message));
            }
        }
    };
    let commit = found
        .as_str()
        .parse()
        .expect("both are 40 hexadecimal digits");
    Ok(ResolveResponse { commit })
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
    let id = identity::mirror_id(&url, &request.upstream, &state.auth);
    let repository = Repository::Mirror(id);
    let key = Key {
        repository: repository.clone(),
        commit: commit.clone(),
        include: include.digest(),
    };
    let (job, attempt) = claim(state, &key);
    if let Some(attempt) = attempt {
        let order = job::Order {
            repository,
            url,
            reference: source::reference(&request.reference),
            commit,
            include,
            credentials: source::credentials(request.upstream.credentials.as_ref()),
        };
        tokio::spawn(work(Arc::clone(state), Arc::clone(&job), order, attempt));
    }
    state.touch(&key.repository);
    Ok(job.status(&key.repository))
}

/// The job of `key`, and the number of the attempt that the caller is to make, if it is to.
fn claim(state: &State, key: &Key) -> (Arc<Job>, Option<u32>) {
    let mut jobs = state.mirrors.jobs.lock();
    if jobs.len() >= KEPT_JOBS {
        jobs.retain(|_, job| {
            job.asked.lock().elapsed() < FORGET_AFTER
                || matches!(*job.phase.lock(), Phase::Fetching)
        });
    }
    let mut is_new = false;
    let job = Arc::clone(jobs.entry(key.clone()).or_insert_with(|| {
        is_new = true;
        Arc::new(Job {
            phase: Mutex::new(Phase::Fetching),
            asked: Mutex::new(Instant::now()),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
        })
    }));
    drop(jobs);
    *job.asked.lock() = Instant::now();
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
        Phase::Failed { attempt, at, .. } => {
            let wait = backoff(state, *attempt);
            (at.elapsed() >= wait).then_some(attempt.saturating_add(1))
        }
    };
    if next.is_some() {
        *phase = Phase::Fetching;
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

async fn work(state: Arc<State>, job: Arc<Job>, order: job::Order, attempt: u32) {
    let (repository, commit) = (order.repository.to_string(), order.commit.to_string());
    let permit = Arc::clone(&state.mirrors.fetches).acquire_owned().await;
    let result = background({
        let (state, job) = (Arc::clone(&state), Arc::clone(&job));
        move || {
            let _permit = permit;
            job::run(&state, &job, &order)
        }
    })
    .await;
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

async fn background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match blocking(work).await {
        Ok(result) => result,
        Err(refusal) => Err(Failure::passing(reason::INTERNAL, refusal.message)),
    }
}
