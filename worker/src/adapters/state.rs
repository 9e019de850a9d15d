//! What a store knows: pure steps from what folders and loads say to what is served.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::worker_adapters::{LoadState, Origin};
use hyprstream_models::adapter::AdapterFiles;
use tokio::time::Instant;

use super::{
    Timing,
    entry::{Entry, Job, Record, Residence, failed},
    packer::{PackError, Stamps},
    repository::Listed,
    room::{Amount, Ledger, Room},
};

/// Served name and who asks for it. Of one name the first origin has it.
pub(super) type Key = (String, Origin);

/// All entries of a store.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<Key, Entry>,
    /// Of the list that is followed.
    pub(super) revision: Option<String>,
    /// Name of the model.
    pub(super) model: String,
    /// The commit that is served.
    pub(super) commit: Option<String>,
    /// Origins whose first list has not been seen yet.
    pub(super) unseen: BTreeSet<Origin>,
    /// Those of the first lists that are neither loaded nor refused.
    awaited: BTreeSet<Key>,
    /// When the first list of the folder that is followed was there.
    followed_since: Option<Instant>,
    /// Counts uses and records.
    clock: u64,
}

/// A load to be done now.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) key: Key,
    pub(super) attempt: u64,
    pub(super) files: AdapterFiles,
    /// Nothing is to be done if the files are still these.
    pub(super) unless: Option<Stamps>,
}

impl State {
    /// That of a worker which serves this commit of this model, and will hear of lists of these
    /// origins.
    pub(super) fn new(model: &str, commit: Option<&str>, unseen: BTreeSet<Origin>) -> Self {
        Self {
            model: model.to_owned(),
            commit: commit.map(str::to_owned),
            unseen,
            ..Self::default()
        }
    }

    /// A number greater than all before.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Adds what the model's own folder has.
    pub(super) fn add(&mut self, listed: Vec<Listed>) {
        for Listed { name, wish, error } in listed {
            let mut entry = Entry::new(wish);
            match error {
                None => entry.load(),
                Some(error) => entry.rest(failed(&error)),
            }
            self.entries.insert((name, Origin::Repository), entry);
        }
        self.saw(Origin::Repository);
    }

    /// The first list of `origin` is there.
    pub(super) fn saw(&mut self, origin: Origin) {
        if self.unseen.remove(&origin) {
            let keys = self.entries.keys().filter(|key| key.1 == origin);
            self.awaited.extend(keys.cloned());
            if origin == Origin::Followed {
                self.followed_since = Some(Instant::now());
            }
        }
        self.settle();
    }

    /// Lets every name mean one thing, and looks what is still waited for. To be called after
    /// each change.
    pub(super) fn settle(&mut self) {
        let mut before: Option<(&str, bool)> = None;
        for ((name, origin), entry) in &mut self.entries {
            let earlier = before.take_if(|(other, _)| other == name);
            // One that is refused or not there yet takes the name from nobody.
            let is_taken = earlier.is_some_and(|(_, served)| served);
            if *name == self.model {
                entry.give_way("it is the name of the model itself: give the adapter another one");
            } else if is_taken {
                entry.give_way(match origin {
                    Origin::Repository => {
                        "an Adapter resource has this name: give one of them another one"
                    }
                    _ => "an Adapter resource, or an adapter of the model's repository, has this name",
                });
            } else if entry.gave_way() {
                // Whoever had the name is gone, or has nothing to serve by it any more.
                entry.load();
            }
            before = Some((name, is_taken || entry.serving.is_some()));
        }
        let entries = &self.entries;
        self.awaited.retain(|key| {
            let entry = entries.get(key);
            entry.is_some_and(|entry| entry.state == LoadState::Loading || entry.is_hindered)
        });
    }

    /// Nothing, or what is waited for before the first request. What the node cannot have for
    /// something that may pass is waited for so long, counted from the first list.
    pub(super) fn ready(&mut self, hindered_patience: Duration) -> Result<(), String> {
        if self.unseen.contains(&Origin::Followed) {
            return Err("the list of adapters is not there yet".to_owned());
        }
        if !self.unseen.is_empty() {
            return Err("the adapters of the model's repository are not listed yet".to_owned());
        }
        let waited = self.followed_since.map(|since| since.elapsed());
        if waited.is_some_and(|waited| waited >= hindered_patience) {
            self.give_hindered_up();
        }
        let Some(key) = self.awaited.first() else {
            return Ok(());
        };
        let (name, count) = (&key.0, self.awaited.len());
        match self.entries.get(key).map(|entry| &entry.state) {
            Some(LoadState::Failed { reason, message }) => Err(format!(
                "adapters cannot be had for now: {name:?} is the first of {count} ({reason}: \
                 {message})"
            )),
            _ => Err(format!(
                "adapters are being loaded: {name:?} is the first of {count}"
            )),
        }
    }

    /// Waits no longer for those that cannot be had for now.
    fn give_hindered_up(&mut self) {
        let entries = &self.entries;
        self.awaited.retain(|key| {
            let Some(entry) = entries.get(key).filter(|entry| entry.is_hindered) else {
                return true;
            };
            tracing::warn!(
                adapter = key.0,
                state = ?entry.state,
                "turning ready without an adapter that cannot be had for now; it is loaded when it can"
            );
            false
        });
    }

    /// The next load to be done, which is under way from here on; or when to ask again.
    pub(super) fn next(&mut self, now: Instant) -> Result<Task, Option<Instant>> {
        let mut earliest: Option<Instant> = None;
        for (key, entry) in &mut self.entries {
            let unless = match &entry.job {
                Job::Due => None,
                Job::Later { at, unless } if *at <= now => *unless,
                Job::Later { at, .. } => {
                    earliest = Some(earliest.map_or(*at, |earliest| earliest.min(*at)));
                    continue;
                }
                Job::Nothing | Job::Running => continue,
            };
            entry.job = Job::Running;
            return Ok(Task {
                key: key.clone(),
                attempt: entry.attempt,
                files: entry.wish.files.clone(),
                unless,
            });
        }
        Err(earliest)
    }

    /// The entry that this task is for, unless something else is wanted of it by now.
    pub(super) fn entry_of(&mut self, task: &Task) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&task.key)?;
        (entry.attempt == task.attempt && entry.job == Job::Running).then_some(entry)
    }

    /// Entries of this name, that which has the name first.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = (&Key, &Entry)> {
        let key = |origin| (name.to_owned(), origin);
        self.entries
            .range(key(Origin::Followed)..=key(Origin::Request))
    }

    /// What answers by this name.
    pub(super) fn serving(&mut self, name: &str) -> Option<(&Key, &mut Record)> {
        let key = |origin| (name.to_owned(), origin);
        let range = key(Origin::Followed)..=key(Origin::Request);
        let mut entries = self.entries.range_mut(range);
        entries.find_map(|(key, entry)| Some((key, entry.serving.as_mut()?)))
    }

    /// What is served of the entry `key`, if it is still this record.
    pub(super) fn record_of(&mut self, key: &Key, id: u64) -> Option<&mut Record> {
        let record = self.entries.get_mut(key)?.serving.as_mut()?;
        (record.id == id).then_some(record)
    }

    /// What is served of the entry `key` can not be brought back.
    pub(super) fn lose(&mut self, key: &Key, error: &PackError, now: Stamps, timing: &Timing) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.serving = None;
        entry.warning = None;
        entry.fail(error, now, timing);
        if key.1 == Origin::Request {
            // Only who loaded it knows what it should be.
            entry.rest(failed(error));
        }
    }

    /// Room for adapters of so many bytes each, from which the least recently used make way that
    /// no request has and `keep` does not name; `credit` will be given back by who asks. `None`,
    /// and nothing has changed, if there cannot be as much.
    pub(super) fn make_room(
        &mut self,
        ledger: &Arc<Ledger>,
        needed: &[u64],
        keep: &BTreeSet<u64>,
        credit: Amount,
    ) -> Option<Vec<Room>> {
        let wanted = Amount::of(needed.iter().copied());
        let mut free = ledger.free(credit);
        if !wanted.fits(free) {
            let records = self.entries.values_mut().filter_map(|e| e.serving.as_mut());
            let mut idle: Vec<&mut Record> = records
                .filter(|record| {
                    let resident = record.resident();
                    let is_idle = resident.is_some_and(|r| Arc::strong_count(r) == 1);
                    is_idle && !keep.contains(&record.id)
                })
                .collect();
            idle.sort_by_key(|record| record.used);
            let enough = idle.iter().position(|record| {
                free = free.and(record.bytes);
                wanted.fits(free)
            })?;
            for record in &mut idle[..=enough] {
                record.residence = Residence::Files;
            }
        }
        Some(needed.iter().map(|bytes| ledger.take(*bytes)).collect())
    }
}
