//! How ready workers stand to an Adapter.

use hyprstream_contract::{adapters::AdapterEntry, worker_adapters::LoadState};

use super::super::{
    apply::Answer,
    workers::{Served, Word},
};

/// How a ready worker stands to what it should have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing<'a> {
    /// It answers with it.
    Loaded(&'a Served),
    /// It refuses it, and will the next time.
    Refused,
    /// It cannot have it for now.
    Hindered(&'a str, &'a str),
    /// It is about to.
    Loading,
    /// Nothing is known of it.
    Silent(&'a str),
}

/// How all ready workers stand to it.
#[derive(Clone, Debug)]
pub(super) struct Tally<'a> {
    /// By pods, in order of names.
    pub(super) standings: Vec<(&'a str, Standing<'a>)>,
    /// All of them answer by the name, with whatever it is, and there is one.
    pub(super) all_serve: bool,
    /// What users of one that is served should know.
    pub(super) warning: Option<&'a str>,
}

impl<'a> Tally<'a> {
    pub(super) fn of(answers: &'a [Answer], target: Option<&AdapterEntry>) -> Self {
        let standings: Vec<(&str, Standing<'_>)> = answers
            .iter()
            .map(|answer| (answer.pod.as_str(), standing(answer, target)))
            .collect();
        let words = || {
            answers
                .iter()
                .filter_map(|a| a.word.as_ref().ok()?.as_ref())
        };
        let serving = words().filter(|word| word.serving.is_some()).count();
        Self {
            all_serve: serving == answers.len() && serving > 0,
            warning: words().find_map(|word| word.warning.as_deref()),
            standings,
        }
    }

    /// All ready workers answer with it, and there is one.
    pub(super) fn is_complete(&self) -> bool {
        let mut all = self.standings.iter();
        !self.standings.is_empty() && all.all(|(_, s)| matches!(s, Standing::Loaded(_)))
    }

    /// What those that have it answer with.
    pub(super) fn loaded(&self) -> Option<&'a Served> {
        self.standings.iter().find_map(|(_, s)| match s {
            Standing::Loaded(served) => Some(*served),
            _ => None,
        })
    }

    /// What is in the way of the first worker that cannot have it for now.
    pub(super) fn hindrance(&self) -> Option<(&'a str, &'a str)> {
        self.standings.iter().find_map(|(_, s)| match s {
            Standing::Hindered(reason, message) => Some((*reason, *message)),
            _ => None,
        })
    }

    /// The first worker of which nothing is known, and why.
    pub(super) fn silent(&self) -> Option<(&'a str, &'a str)> {
        self.standings.iter().find_map(|(pod, s)| match s {
            Standing::Silent(why) => Some((*pod, *why)),
            _ => None,
        })
    }
}

fn standing<'a>(answer: &'a Answer, target: Option<&AdapterEntry>) -> Standing<'a> {
    let word: &'a Word = match &answer.word {
        Err(why) => return Standing::Silent(why),
        Ok(None) => return Standing::Loading,
        Ok(Some(word)) => word,
    };
    // Whatever else it says is of other files.
    let is_of_it = |entry: &&AdapterEntry| entry.folder() == word.folder;
    let Some(entry) = target.filter(is_of_it) else {
        return Standing::Loading;
    };
    match (&word.state, &word.serving) {
        (LoadState::Loaded, Some(served)) if word.scale.to_bits() == entry.scale.to_bits() => {
            Standing::Loaded(served)
        }
        (LoadState::Loaded | LoadState::Loading, _) => Standing::Loading,
        (LoadState::Failed { reason, message }, _) if Word::is_refusal(reason) => Standing::Refused,
        (LoadState::Failed { reason, message }, _) => Standing::Hindered(reason, message),
    }
}
