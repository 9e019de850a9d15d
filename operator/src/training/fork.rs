//! Repositories that get the commits of jobs: made out of the Model's, once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyprstream_contract::repositories::ForkRequest;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    chain,
    kind::{Subject, Trigger},
    registry::{Registry, RegistryError},
};

/// Between the first two attempts.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Between later ones.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Has the registry make the repositories of jobs. What it knows is not needed to converge: the
/// registry is asked once for each job and process.
pub struct Forks {
    registry: Registry,
    trigger: Trigger,
    jobs: Mutex<HashMap<String, Entry>>,
}

/// How far the repository of a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forked {
    /// Nobody has been asked yet, or the registry is at it.
    Pending,
    /// It is there, with the commit.
    There,
    /// Why not yet, or why never.
    Failed {
        /// CamelCase.
        reason: String,
        /// For people.
        message: String,
    },
}

struct Entry {
    request: ForkRequest,
    state: Arc<Mutex<Forked>>,
    _task: AbortOnDropHandle<()>,
}

impl Forks {
    /// Has asked for nothing yet.
    pub fn new(registry: Registry, trigger: Trigger) -> Self {
        Self {
            registry,
            trigger,
            jobs: Mutex::default(),
        }
    }

    /// How far the repository is that `request` asks for; asks for it if nobody did.
    pub fn ensure(&self, uid: &str, subject: &Subject, request: &ForkRequest) -> Forked {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = jobs.get(uid).filter(|entry| entry.request == *request) {
            let state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
            return state.clone();
        }
        let state = Arc::new(Mutex::new(Forked::Pending));
        let task = ask(
            self.registry.clone(),
            request.clone(),
            state.clone(),
            self.trigger.clone(),
            subject.clone(),
        );
        let entry = Entry {
            request: request.clone(),
            state,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        };
        jobs.insert(uid.to_owned(), entry);
        Forked::Pending
    }

    /// Asks no more for a job.
    pub fn forget(&self, uid: &str) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.remove(uid);
    }

    /// Forgets all jobs that `keep` does not name.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|uid, _| keep(uid));
    }
}

async fn ask(
    registry: Registry,
    request: ForkRequest,
    state: Arc<Mutex<Forked>>,
    trigger: Trigger,
    subject: Subject,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let found = match registry.fork(&request).await {
            Ok(()) => Forked::There,
            Err(RegistryError::Refused(error)) => Forked::Failed {
                reason: error.reason,
                message: error.message,
            },
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot make a job's repository yet");
                Forked::Failed {
                    reason: hyprstream_api::condition::reason::REGISTRY_UNREACHABLE.to_owned(),
                    message: "the registry does not answer; it is asked again".to_owned(),
                }
            }
        };
        let is_there = found == Forked::There;
        let is_other = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *state, found.clone()) != found
        };
        // The receiver is gone only when the controllers end.
        if is_other && trigger.send(subject.clone()).await.is_err() || is_there {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
