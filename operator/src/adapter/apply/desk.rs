//! Looks after the list and the workers of one Model.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use hyprstream_api::Adapter;
use hyprstream_contract::{adapters::ModelName, worker_adapters::LoadState};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        build::{Candidate, Listed, rival},
        fetch::View,
        workers::{Report, Word, WorkerPod, words},
    },
    Answer, Facts, Rosters, Shared, Trouble,
    keep::{Kept, ListError, Writing},
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
/// How often in a row a worker may be silent before what it said last does not count any more.
const SILENCE: u32 = 3;
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

#[derive(Default)]
struct Known {
    candidates: Vec<Candidate>,
    listed: Listed,
    problem: Option<Trouble>,
    model: Option<i64>,
    is_there: bool,
    reports: Option<Vec<Report>>,
    /// Which files of an Adapter workers refused last, and why, by UID.
    refusals: HashMap<String, (String, Trouble)>,
    /// What each Adapter's last trigger told of.
    told: HashMap<String, Facts>,
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

impl Known {
    fn facts(&self, uid: &str) -> Option<Facts> {
        let candidate = self.candidates.iter().find(|c| c.uid == uid)?;
        let listed = self.listed.of(uid).cloned();
        let rival = rival(&self.candidates, uid).map(|rival| rival.name.clone());
        let workers = self.reports.as_ref().map(|reports| {
            let answer = |report: &Report| Answer {
                pod: report.pod.name.clone(),
                word: match &report.words {
                    Ok(words) => Ok(words.get(&candidate.served_name).cloned()),
                    Err(why) => Err(why.clone()),
                },
            };
            reports.iter().map(answer).collect()
        });
        Some(Facts {
            is_beyond: listed.is_none() && rival.is_none() && self.listed.is_full(),
            rival,
            refusal: listed.as_ref().and_then(|entry| {
                let (folder, trouble) = self.refusals.get(uid)?;
                (*folder == entry.folder()).then(|| trouble.clone())
            }),
            list_problem: self.problem.clone(),
            listed,
            workers,
            model: self.is_there.then_some(self.model.unwrap_or_default()),
        })
    }

    fn hear(&mut self, reports: Vec<Report>) {
        let mut refusals = HashMap::new();
        for (uid, entry) in &self.listed.0 {
            let Some(uid) = uid else { continue };
            let folder = entry.folder();
            let words = || {
                let words = reports.iter().filter_map(|r| r.words.as_ref().ok());
                let own = words.filter_map(|words| words.get(&entry.name));
                own.filter(|word| word.folder == folder)
            };
            let refusal = words().find_map(|word| match &word.state {
                LoadState::Failed { reason, message } if Word::is_refusal(reason) => {
                    Some(Trouble {
                        reason: reason.clone(),
                        message: message.clone(),
                    })
                }
                _ => None,
            });
            let is_had = words().any(|word| word.state == LoadState::Loaded);
            let refusal = refusal.or_else(|| {
                let (known, trouble) = self.refusals.remove(uid)?;
                (known == folder && !is_had).then_some(trouble)
            });
            if let Some(refusal) = refusal {
                refusals.insert(uid.clone(), (folder, refusal));
            }
        }
        self.refusals = refusals;
        self.reports = Some(reports);
    }

    /// Whether every ready worker has, or refuses, each entry of the list.
    fn is_settled(&self) -> bool {
        let reports = self.reports.as_deref().unwrap_or_default();
        reports.iter().all(|report| {
            let Ok(words) = &report.words else {
                return false;
            };
            report.silent == 0
                && self.listed.0.iter().all(|(_, entry)| {
                    words.get(&entry.name).is_some_and(|word| {
                        word.folder == entry.folder() && is_settled(word, entry.scale)
                    })
                })
                && words
                    .keys()
                    .all(|name| self.listed.0.iter().any(|(_, entry)| entry.name == *name))
        })
    }
}

fn is_settled(word: &Word, scale: f32) -> bool {
    match &word.state {
        LoadState::Loaded => word.scale.to_bits() == scale.to_bits(),
        LoadState::Failed { reason, .. } => Word::is_refusal(reason),
        LoadState::Loading => false,
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
        let before: BTreeMap<String, Report> = desk
            .known()
            .reports
            .clone()
            .into_iter()
            .flatten()
            .map(|report| (report.pod.uid.clone(), report))
            .collect();
        let answers = futures::stream::iter(pods.to_vec())
            .map(|pod| async move {
                let answer = self.asker.ask(model, &pod).await;
                (pod, answer)
            })
            .buffered(AT_ONCE);
        let reports: Vec<Report> = answers
            .map(|(pod, answer)| {
                let known = before.get(&pod.uid).filter(|known| known.pod == pod);
                let silent = known.map_or(0, |known| known.silent) + 1;
                let (words, silent) = match answer {
                    Ok(answer) => (Ok(words(answer)), 0),
                    Err(error) => {
                        tracing::debug!(pod = pod.name, error = chain(&error), "no answer");
                        match known.map(|known| &known.words) {
                            Some(Ok(words)) if silent < SILENCE => (Ok(words.clone()), silent),
                            _ => (Err(error.to_string()), silent),
                        }
                    }
                };
                Report { pod, words, silent }
            })
            .collect()
            .await;
        desk.known().hear(reports);
    }
}

/// A number from 0 to 1 that is the Model's own.
fn spread(model: &ModelName) -> f64 {
    let digest = crate::cache::digest(&model.to_string());
    let first = u8::from_str_radix(&digest[..2], 16).unwrap_or_default();
    f64::from(first) / 255.0
}
