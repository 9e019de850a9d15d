//! What is known of one Model's list and workers: pure.

use std::collections::HashMap;

use hyprstream_contract::worker_adapters::LoadState;

use super::{
    super::{
        build::{Candidate, Listed, rival},
        workers::{Report, Word, Words, WorkerPod},
    },
    Answer, Facts, Trouble,
};

/// How often in a row a worker is silent before that is said of it. Until then what it said last
/// counts, and one that was never heard is not asked yet.
const SILENCE: u32 = 3;

/// All that is known of one Model's list and workers.
#[derive(Default)]
pub(super) struct Known {
    pub(super) candidates: Vec<Candidate>,
    pub(super) listed: Listed,
    pub(super) problem: Option<Trouble>,
    pub(super) model: Option<i64>,
    pub(super) is_there: bool,
    reports: Option<Vec<Report>>,
    /// Something was known of every ready worker at once, since the start.
    is_whole: bool,
    /// Which files of an Adapter workers refused last, and why, by UID.
    refusals: HashMap<String, (String, Trouble)>,
    /// What each Adapter's last trigger told of.
    pub(super) told: HashMap<String, Facts>,
}

impl Known {
    /// What is known of the Adapter with that UID.
    pub(super) fn facts(&self, uid: &str) -> Option<Facts> {
        let candidate = self.candidates.iter().find(|c| c.uid == uid)?;
        let listed = self.listed.of(uid).cloned();
        let rival = rival(&self.candidates, uid).map(|rival| rival.name.clone());
        let workers = self.heard().map(|heard| {
            let answer = |(pod, words): (&WorkerPod, Result<&Words, &String>)| Answer {
                pod: pod.name.clone(),
                word: match words {
                    Ok(words) => Ok(words.get(&candidate.served_name).cloned()),
                    Err(why) => Err(why.clone()),
                },
            };
            heard.into_iter().map(answer).collect()
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

    /// What is known of the ready workers; `None` if it is not enough to tell anybody.
    ///
    /// One that was not heard yet is as one that is not ready yet: what the others say counts. Just
    /// after a start, or where there are no others, what was told before does.
    fn heard(&self) -> Option<Vec<(&WorkerPod, Result<&Words, &String>)>> {
        let reports = self.reports.as_ref()?;
        let heard: Vec<_> = reports
            .iter()
            .filter_map(|report| Some((&report.pod, report.words.as_ref()?.as_ref())))
            .collect();
        let is_enough = self.is_whole && (reports.is_empty() || !heard.is_empty());
        is_enough.then_some(heard)
    }

    /// Notes what the ready workers answered, or why they did not.
    pub(super) fn answered(&mut self, answers: Vec<(WorkerPod, Result<Words, String>)>) {
        let mut before = self.reports.take().unwrap_or_default();
        let reports = answers.into_iter().map(|(pod, answer)| {
            let known = before.iter().position(|known| known.pod == pod);
            let known = known.map(|index| before.swap_remove(index));
            match answer {
                Ok(words) => Report {
                    pod,
                    words: Some(Ok(words)),
                    silent: 0,
                },
                Err(why) => {
                    let silent = known.as_ref().map_or(0, |known| known.silent) + 1;
                    let words = if silent < SILENCE {
                        known.and_then(|known| known.words)
                    } else {
                        Some(Err(why))
                    };
                    Report { pod, words, silent }
                }
            }
        });
        let reports = reports.collect();
        self.hear(reports);
    }

    fn hear(&mut self, reports: Vec<Report>) {
        let mut refusals = HashMap::new();
        for (uid, entry) in &self.listed.0 {
            let Some(uid) = uid else { continue };
            let folder = entry.folder();
            let words = || {
                let words = reports
                    .iter()
                    .filter_map(|r| r.words.as_ref()?.as_ref().ok());
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
        self.is_whole |= reports.iter().all(|report| report.words.is_some());
        self.reports = Some(reports);
    }

    /// Whether every ready worker has, or refuses, each entry of the list.
    pub(super) fn is_settled(&self) -> bool {
        let reports = self.reports.as_deref().unwrap_or_default();
        reports.iter().all(|report| {
            let Some(Ok(words)) = &report.words else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::build::Claim;

    fn pod(name: &str) -> WorkerPod {
        WorkerPod {
            name: name.to_owned(),
            uid: name.to_owned(),
            restarts: 0,
            address: None,
            tls: false,
        }
    }

    fn known() -> Known {
        let candidate = Candidate {
            uid: "u".to_owned(),
            name: "sql".to_owned(),
            created: None,
            served_name: "sql".to_owned(),
            claim: Claim::Nothing,
        };
        Known {
            candidates: vec![candidate],
            ..Known::default()
        }
    }

    /// Asks once; `!` before a name is a worker that does not answer.
    fn ask(known: &mut Known, pods: &str) {
        let answers = pods
            .split_whitespace()
            .map(|name| match name.strip_prefix('!') {
                None => (pod(name), Ok(Words::new())),
                Some(silent) => (pod(silent), Err("no answer".to_owned())),
            });
        known.answered(answers.collect());
    }

    /// What stands in the facts: `-` for nothing, `!` before those that are unreachable.
    #[track_caller]
    fn check(known: &Known, expected: &str) {
        let facts = known.facts("u").unwrap();
        let told = facts.workers.map(|workers| {
            let names = workers.iter().map(|answer| match answer.word {
                Ok(_) => answer.pod.clone(),
                Err(_) => format!("!{}", answer.pod),
            });
            names.collect::<Vec<_>>().join(" ")
        });
        assert_eq!(told.as_deref().unwrap_or("-"), expected);
    }

    #[test]
    fn after_a_start_nothing_is_told_before_each_worker_was_heard_or_silent_thrice() {
        let mut known = known();
        check(&known, "-");
        for _ in 1..SILENCE {
            ask(&mut known, "a !b");
            check(&known, "-");
        }
        ask(&mut known, "a !b");
        check(&known, "a !b");
        ask(&mut known, "a b");
        check(&known, "a b");
    }

    #[test]
    fn one_question_that_is_not_answered_changes_nothing() {
        let mut known = known();
        ask(&mut known, "a b");
        ask(&mut known, "a !b");
        check(&known, "a b");
        // A new one counts when it is heard.
        ask(&mut known, "a b !c");
        check(&known, "a b");
        assert!(!known.is_settled(), "it is asked again soon");
        ask(&mut known, "a b c");
        check(&known, "a b c");
    }

    #[test]
    fn where_only_unheard_workers_are_left_what_was_told_counts() {
        let mut known = known();
        ask(&mut known, "a");
        ask(&mut known, "!b");
        check(&known, "-");
        ask(&mut known, "!b");
        ask(&mut known, "!b");
        check(&known, "!b");
        ask(&mut known, "");
        check(&known, "");
    }
}
