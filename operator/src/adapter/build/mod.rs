//! What a Model's list should be: pure, and never fails.

use std::collections::{BTreeMap, BTreeSet};

use hyprstream_contract::{
    CommitId,
    adapters::{AdapterEntry, AdapterList, CONFIG_FILE, MAX_ADAPTERS, WEIGHTS_FILE},
};
use k8s_openapi::jiff::Timestamp;

use super::validate::Plan;
use crate::source::Mirrored;

/// The files of an adapter in its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The tensors.
    pub weights: String,
    /// The configuration.
    pub config: String,
}

impl Files {
    /// Those that `spec.source.path` names: a file `X.safetensors` with `X.config.json` beside it,
    /// or a folder, of which PEFT's own names are read.
    pub fn of(path: &str) -> Self {
        let below = |folder: &str, file: &str| match folder {
            "" | "." => file.to_owned(),
            folder => format!("{folder}/{file}"),
        };
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        if file == WEIGHTS_FILE {
            return Self {
                weights: path.to_owned(),
                config: below(folder, CONFIG_FILE),
            };
        }
        match path.strip_suffix(".safetensors") {
            Some(stem) => Self {
                weights: path.to_owned(),
                config: format!("{stem}.config.json"),
            },
            None => Self {
                weights: below(path, WEIGHTS_FILE),
                config: below(path, CONFIG_FILE),
            },
        }
    }

    /// Globs that match these files and no others.
    pub fn include(&self) -> Vec<String> {
        vec![literal(&self.weights), literal(&self.config)]
    }
}

/// The glob that matches one path.
pub fn literal(path: &str) -> String {
    path.chars().fold(String::new(), |mut glob, c| {
        if matches!(c, '?' | '*' | '[' | ']' | '{' | '}') {
            glob.extend(['[', c, ']']);
        } else {
            glob.push(c);
        }
        glob
    })
}

/// The entry of an Adapter whose files lie on the registry.
pub fn entry(plan: &Plan, mirrored: &Mirrored) -> AdapterEntry {
    entry_of(plan, &mirrored.repository, mirrored.commit.clone())
}

pub(super) fn entry_of(plan: &Plan, repository: &str, commit: CommitId) -> AdapterEntry {
    AdapterEntry {
        name: plan.served_name.clone(),
        scale: plan.scale,
        repository: repository.to_owned(),
        commit,
        weights: plan.files.weights.clone(),
        config: plan.files.config.clone(),
        source: format!("{} {}", plan.source.url, plan.path),
        base_commit: plan.base_commit,
    }
}

/// An Adapter of a Model, as far as the Model's list depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// UID of the Adapter.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Since when it is there.
    pub created: Option<Timestamp>,
    /// Name by which clients call it.
    pub served_name: String,
    /// What it asks for.
    pub claim: Claim,
}

/// What an Adapter asks for in its Model's list.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// This.
    Entry(AdapterEntry),
    /// Where its files lie now is not known (yet): what the list has of it stays.
    Stays(Box<Plan>),
    /// It cannot be read: what the list has of it stays.
    Unreadable,
    /// Nothing: it cannot be served.
    Nothing,
}

impl Claim {
    /// Whether something of the list as it is may have to stay.
    pub fn needs_list(&self) -> bool {
        matches!(self, Self::Stays(_) | Self::Unreadable)
    }
}

/// The entries of a Model's list, with the UIDs of their Adapters as far as they are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed(pub Vec<(Option<String>, AdapterEntry)>);

impl Listed {
    /// What is told to the registry.
    pub fn list(&self) -> AdapterList {
        let adapters = self.0.iter().map(|(_, entry)| entry.clone()).collect();
        AdapterList { adapters }
    }

    /// A list of which nothing else is known.
    pub fn found(list: AdapterList) -> Self {
        Self(list.adapters.into_iter().map(|e| (None, e)).collect())
    }

    /// Whether it has room for no more.
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_ADAPTERS
    }

    /// The entry of the Adapter with that UID.
    pub fn of(&self, uid: &str) -> Option<&AdapterEntry> {
        let own = |(known, _): &&(Option<String>, AdapterEntry)| known.as_deref() == Some(uid);
        self.0.iter().find(own).map(|(_, entry)| entry)
    }

    /// What stays of it for an Adapter: its own entry, or one that nobody is known to own and that
    /// is the same but for what is not known.
    fn staying(&self, candidate: &Candidate) -> Option<AdapterEntry> {
        if let Some(own) = self.of(&candidate.uid) {
            let name = candidate.served_name.clone();
            return Some(AdapterEntry {
                name,
                ..own.clone()
            });
        }
        let is_same = |entry: &AdapterEntry| match &candidate.claim {
            Claim::Stays(plan) => {
                let wanted = entry_of(plan, &entry.repository, entry.commit.clone());
                (&wanted.weights, &wanted.config, &wanted.source)
                    == (&entry.weights, &entry.config, &entry.source)
            }
            _ => true,
        };
        let mut free = self.0.iter().filter(|(uid, _)| uid.is_none());
        let found = free.find(|(_, e)| e.name == candidate.served_name && is_same(e));
        found.map(|(_, entry)| entry.clone())
    }
}

/// The list that a Model should have, of all its Adapters and the list that it has. Of two Adapters
/// with the same name the older one has it; beyond [`MAX_ADAPTERS`], the older ones are listed.
pub fn listed(candidates: &[Candidate], before: &Listed) -> Listed {
    let mut ordered: Vec<&Candidate> = candidates.iter().collect();
    ordered.sort_by_key(|c| age(c));
    let mut names = BTreeSet::new();
    let mut entries = BTreeMap::new();
    for candidate in ordered {
        if !names.insert(candidate.served_name.as_str()) || entries.len() >= MAX_ADAPTERS {
            continue;
        }
        let entry = match &candidate.claim {
            Claim::Entry(entry) => Some(entry.clone()),
            Claim::Stays(_) | Claim::Unreadable => before.staying(candidate),
            Claim::Nothing => None,
        };
        if let Some(entry) = entry {
            let uid = Some(candidate.uid.clone());
            entries.insert(candidate.served_name.clone(), (uid, entry));
        }
    }
    Listed(entries.into_values().collect())
}

/// The Adapter that has the name of the one with that UID, if that is another.
pub fn rival<'a>(candidates: &'a [Candidate], uid: &str) -> Option<&'a Candidate> {
    let own = candidates.iter().find(|c| c.uid == uid)?;
    let named = candidates
        .iter()
        .filter(|c| c.served_name == own.served_name);
    named
        .min_by_key(|c| age(c))
        .filter(|first| first.uid != uid)
}

fn age(candidate: &Candidate) -> (Option<Timestamp>, &str) {
    (candidate.created, &candidate.name)
}

#[cfg(test)]
mod tests;
