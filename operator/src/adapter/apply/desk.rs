//! Looks after the list and the workers of one Model.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use hyprstream_api::Adapter;
use hyprstream_contract::adapters::ModelName;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        build::{Candidate, Listed},
        fetch::View,
        workers::{Words, WorkerPod, words},
    },
    Facts, Rosters, Shared,
    keep::{Kept, ListError, Writing},
    known::Known,
    pace::Pace,
};
use crate::{
    chain,
    kind::{Kind, Subject},
};

/// First and last pause after the registry did not take a list.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Workers of one Model that are asked at once.
const AT_ONCE: usize = 16;
/// Longest that a desk sleeps.
const LOOK: Duration = Duration::from_mins(5);

/// What is known of one Model's list and workers.
#[derive(Default)]
pub(super) struct Desk {
    /// One writes at a time.
    pub(super) writing: tokio::sync::Mutex<Writing>,
    known: Mutex<Known>,
    wake: Notify,
    woken: AtomicU64,
}

impl Desk {
    pub(super) fn wake(&self) {
        self.woken.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// The registry may have another list than was written. Whoever writes just now is believed.
    pub(super) fn doubt(&self) {
        if let Ok(mut writing) = self.writing.try_lock() {
            writing.doubt();
        }
    }

    /// How often it was woken.
    pub(super) fn woken(&self) -> u64 {
        self.woken.load(Ordering::Relaxed)
    }

    /// Whether the Adapter with that UID is, or was last, the Model's.
    pub(super) fn knows(&self, uid: &str) -> bool {
        self.known().candidates.iter().any(|c| c.uid == uid)
    }

    /// What is known of the Adapter with that UID.
    pub(super) fn facts(&self, uid: &str) -> Option<Facts> {
        self.known().facts(uid)
    }

    /// Notes how the list is.
    pub(super) fn note(
        &self,
        model: &ModelName,
        view: &View,
        candidates: Vec<Candidate>,
        listed: Listed,
        error: Option<&ListError>,
    ) {
        let found = view.model(model);
        let mut known = self.known();
        known.candidates = candidates;
        known.listed = listed;
        known.problem = error.map(ListError::trouble);
        known.is_there = found.is_there();
        known.model = found.generation();
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the Adapters of which something else is known than their last triggers told.
    fn news(&self) -> Vec<String> {
        let mut known = self.known();
        let facts: Vec<(String, String, Facts)> = known
            .candidates
            .iter()
            .filter_map(|c| Some((c.uid.clone(), c.name.clone(), known.facts(&c.uid)?)))
            .collect();
        let is_news = |uid: &String, facts: &Facts| known.told.get(uid) != Some(facts);
        let news = facts
            .iter()
            .filter(|(uid, _, facts)| is_news(uid, facts))
            .map(|(_, name, _)| name.clone())
            .collect();
        known.told = facts.into_iter().map(|(uid, _, f)| (uid, f)).collect();
        news
    }
}

/// Looks after a Model until nothing is to be done for it.
pub(super) async fn work(
    rosters: Weak<Rosters>,
    shared: Arc<Shared>,
    model: ModelName,
    desk: Arc<Desk>,
) {
    shared.view.ready().await;
    let asking = shared.asker.asking;
    let spread = spread(&model);
    let mut pace = Pace::new(Instant::now());
    let mut pause = PAUSES.0;
    let mut asked: Vec<WorkerPod> = Vec::new();
    loop {
        let woken = desk.woken();
        let mut retry = None;
        let has_list = match shared.keep(&model, &desk).await {
            Ok(Kept::Closed) => return,
            Ok(Kept::Bare) => {
                let Some(rosters) = rosters.upgrade() else {
                    return;
                };
                if rosters.close(&model, &desk, woken).await {
                    return;
                }
                continue;
            }
            Ok(kept) => {
                pause = PAUSES.0;
                if kept == Kept::Written {
                    pace.change(Instant::now(), &asking);
                }
                true
            }
            Err(error) => {
                let error = chain(&error);
                if pause == PAUSES.0 {
                    tracing::warn!(error, "the list of adapters is not kept, trying again");
                } else {
                    tracing::debug!(error, "the list of adapters is not kept yet");
                }
                retry = Some(Instant::now() + pause);
                pause = (pause * 2).min(PAUSES.1);
                false
            }
        };
        let pods = shared.view.ready_workers(&model);
        if pods != asked {
            pace.change(Instant::now(), &asking);
        }
        let has_entries = !desk.known().listed.0.is_empty();
        if has_list && Instant::now() >= pace.next() {
            if has_entries || !asked.is_empty() {
                shared.ask(&model, &desk, &pods).await;
            }
            let is_settled = desk.known().is_settled();
            pace.asked(Instant::now(), is_settled, spread, &asking);
            asked = pods;
        }
        for name in desk.news() {
            let subject = Subject {
                kind: Adapter::LABELS.kind,
                namespace: model.namespace().to_owned(),
                name,
            };
            // The receiver is gone only when the controllers end.
            let _ = shared.trigger.send(subject).await;
        }
        let until = retry.unwrap_or_else(|| {
            let next = if has_entries { Some(pace.next()) } else { None };
            next.unwrap_or_else(|| Instant::now() + LOOK)
        });
        tokio::select! {
            () = sleep_until(until) => {}
            () = desk.wake.notified() => {}
        }
    }
}

impl Shared {
    /// Asks the ready workers of a Model, and notes what they say.
    async fn ask(&self, model: &ModelName, desk: &Desk, pods: &[WorkerPod]) {
        let answers = futures::stream::iter(pods.to_vec())
            .map(|pod| async move {
                let answer = self.asker.ask(model, &pod).await;
                (pod, answer)
            })
            .buffered(AT_ONCE);
        let answers: Vec<(WorkerPod, Result<Words, String>)> = answers
            .map(|(pod, answer)| match answer {
                Ok(answer) => (pod, Ok(words(answer))),
                Err(error) => {
                    tracing::debug!(pod = pod.name, error = chain(&error), "no answer");
                    (pod, Err(error.to_string()))
                }
            })
            .collect()
            .await;
        desk.known().answered(answers);
    }
}

/// A number from 0 to 1 that is the Model's own.
fn spread(model: &ModelName) -> f64 {
    let digest = crate::cache::digest(&model.to_string());
    let first = u8::from_str_radix(&digest[..2], 16).unwrap_or_default();
    f64::from(first) / 255.0
}
