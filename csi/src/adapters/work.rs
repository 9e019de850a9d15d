//! What of a list is on the node, and what is to be fetched next.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use hyprstream_contract::{
    CommitId, VolumeAttributes,
    adapters::{AdapterEntry, AdapterFolder, AdapterList, AdapterState, FolderEntry},
    volume::VolumeMode,
};
use hyprstream_git2db::Include;

use super::{Adopted, Timing, failure::Failure};
use crate::layout::CheckoutKey;

/// Repository and commit.
type Origin = (String, CommitId);

/// What is fetched together: adapters of one commit.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) key: CheckoutKey,
    pub(super) volume: VolumeAttributes,
    pub(super) entries: Vec<AdapterEntry>,
}

/// How far a list is shown.
#[derive(Default)]
pub(super) struct Work {
    pub(super) adopted: Option<Adopted>,
    /// Folders whose files are there.
    pub(super) linked: HashSet<String>,
    /// Units whose checkout is not there.
    pub(super) lacking: HashSet<CheckoutKey>,
    /// Why the files of a folder could not be had.
    failures: HashMap<String, Failure>,
    retries: HashMap<CheckoutKey, Retry>,
    /// Commits whose adapters are fetched one by one, for one of them keeps the others back.
    split: HashSet<Origin>,
    flying: HashSet<CheckoutKey>,
    /// Since when folders are not named by the list.
    pub(super) unnamed: HashMap<String, Instant>,
    /// Checkouts that the list before this one named, and this one does not.
    pub(super) left: HashSet<CheckoutKey>,
}

struct Retry {
    failures: u32,
    at: Instant,
}

impl Unit {
    fn new(origin: &Origin, entries: Vec<AdapterEntry>) -> Option<Self> {
        let paths = entries
            .iter()
            .flat_map(|entry| [&entry.weights, &entry.config]);
        let volume = VolumeAttributes {
            repository: origin.0.clone(),
            commit: origin.1.clone(),
            source: entries.first()?.source.clone(),
            reference: None,
            include: paths.map(|path| Include::literal(path)).collect(),
            mode: VolumeMode::ReadOnly,
        };
        let key = CheckoutKey::of(&volume)
            .inspect_err(|error| tracing::error!(%error, "adapters cannot be fetched"))
            .ok()?;
        Some(Self {
            key,
            volume,
            entries,
        })
    }

    fn origin(&self) -> Origin {
        (self.volume.repository.clone(), self.volume.commit.clone())
    }
}

/// The checkouts that a list names: one for each commit, and those of each adapter alone.
pub(super) fn named_checkouts(list: &AdapterList) -> HashSet<CheckoutKey> {
    let together = units(list, |_| false);
    let alone = units(list, |_| true);
    together.into_iter().chain(alone).map(|u| u.key).collect()
}

fn units(list: &AdapterList, is_split: impl Fn(&Origin) -> bool) -> Vec<Unit> {
    let mut by_origin: BTreeMap<(&str, &str), Vec<AdapterEntry>> = BTreeMap::new();
    for entry in &list.adapters {
        let origin = (entry.repository.as_str(), entry.commit.as_str());
        by_origin.entry(origin).or_default().push(entry.clone());
    }
    let mut units = Vec::new();
    for mut entries in by_origin.into_values() {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let origin = (entries[0].repository.clone(), entries[0].commit.clone());
        if is_split(&origin) {
            units.extend(
                entries
                    .into_iter()
                    .filter_map(|entry| Unit::new(&origin, vec![entry])),
            );
        } else {
            units.extend(Unit::new(&origin, entries));
        }
    }
    units
}

impl Work {
    /// Turns to another list, if it is another. Returns whether it is.
    pub(super) fn take(&mut self, adopted: &Adopted) -> bool {
        let before = self.adopted.replace(adopted.clone());
        let Some(before) = before else {
            return true;
        };
        if before.revision == adopted.revision {
            return false;
        }
        let named: HashSet<String> = self.folders().collect();
        self.failures.retain(|folder, _| named.contains(folder));
        let entries = &adopted.list.adapters;
        // Of a commit that still has a bad adapter, the others are still fetched one by one.
        let bad: HashSet<Origin> = entries
            .iter()
            .filter(|entry| self.failures.contains_key(&entry.folder()))
            .map(|entry| (entry.repository.clone(), entry.commit.clone()))
            .collect();
        self.split.retain(|origin| bad.contains(origin));
        let now = named_checkouts(&adopted.list);
        self.retries.retain(|key, _| now.contains(key));
        self.left.extend(named_checkouts(&before.list));
        self.left.retain(|key| !now.contains(key));
        true
    }

    /// The folders that the list names.
    pub(super) fn folders(&self) -> impl Iterator<Item = String> {
        let list = self.adopted.as_ref().map(|adopted| &adopted.list);
        let entries = list.into_iter().flat_map(|list| &list.adapters);
        entries.map(AdapterEntry::folder)
    }

    /// What is fetched together.
    pub(super) fn units(&self) -> Vec<Unit> {
        let list = self.adopted.as_ref().map(|adopted| &adopted.list);
        list.map_or_else(Vec::new, |list| {
            units(list, |origin| self.split.contains(origin))
        })
    }

    /// The units to be fetched now; they are under way from here on.
    pub(super) fn begin(&mut self) -> Vec<Unit> {
        let now = Instant::now();
        let mut due = self.units();
        due.retain(|unit| {
            let wanted = self.is_wanted(unit) && !self.flying.contains(&unit.key);
            wanted && self.retries.get(&unit.key).is_none_or(|r| r.at <= now)
        });
        self.flying.extend(due.iter().map(|unit| unit.key.clone()));
        due
    }

    fn is_wanted(&self, unit: &Unit) -> bool {
        self.lacking.contains(&unit.key)
            || unit
                .entries
                .iter()
                .any(|entry| !self.linked.contains(&entry.folder()))
    }

    /// The unit's checkout is there; of each of its adapters, whether its files could be shown.
    pub(super) fn came(
        &mut self,
        unit: &Unit,
        linked: Vec<(String, Result<(), Failure>)>,
        timing: &Timing,
    ) {
        self.flying.remove(&unit.key);
        self.lacking.remove(&unit.key);
        let mut failed = None;
        for (folder, done) in linked {
            match done {
                Ok(()) => {
                    self.failures.remove(&folder);
                    self.linked.insert(folder);
                }
                Err(failure) => {
                    failed = Some(failure.clone());
                    self.failures.insert(folder, failure);
                }
            }
        }
        match failed {
            Some(failure) => self.later(unit, &failure, timing),
            None => {
                self.retries.remove(&unit.key);
            }
        }
    }

    /// The unit could not be had.
    pub(super) fn failed(&mut self, unit: &Unit, failure: &Failure, timing: &Timing) {
        self.flying.remove(&unit.key);
        if failure.is_own && unit.entries.len() > 1 {
            // One of them may be to blame, and the others do not wait for it.
            self.split.insert(unit.origin());
            return;
        }
        for entry in &unit.entries {
            self.failures.insert(entry.folder(), failure.clone());
        }
        self.later(unit, failure, timing);
    }

    fn later(&mut self, unit: &Unit, failure: &Failure, timing: &Timing) {
        let failures = self.retries.get(&unit.key).map_or(0, |r| r.failures);
        let longest = if failure.lasts {
            timing.max_long_pause
        } else {
            timing.max_pause
        };
        let pause = timing.min_pause * 2_u32.pow(failures.min(16));
        let retry = Retry {
            failures: failures + 1,
            at: Instant::now() + pause.min(longest),
        };
        self.retries.insert(unit.key.clone(), retry);
    }

    /// Something happened that may let failed fetches succeed.
    pub(super) fn retry_now(&mut self) {
        self.retries.clear();
    }

    /// When something is to be done that nothing else tells of, `longest` from now at most.
    pub(super) fn next(&self, longest: Duration) -> Instant {
        let now = Instant::now();
        let next = self.retries.iter();
        let next = next.filter(|(key, _)| !self.flying.contains(key));
        let next = next.map(|(_, retry)| retry.at).filter(|at| *at > now).min();
        let latest = now + longest;
        next.map_or(latest, |at| at.min(latest))
    }

    /// What the folder shows.
    pub(super) fn content(&self) -> AdapterFolder {
        let Some(adopted) = &self.adopted else {
            return AdapterFolder::default();
        };
        let mut entries: Vec<&AdapterEntry> = adopted.list.adapters.iter().collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        AdapterFolder {
            revision: adopted.revision.clone(),
            adapters: entries.into_iter().map(|entry| self.told(entry)).collect(),
        }
    }

    fn told(&self, entry: &AdapterEntry) -> FolderEntry {
        let folder = entry.folder();
        let state = if self.linked.contains(&folder) {
            AdapterState::Ready
        } else if let Some(failure) = self.failures.get(&folder) {
            failure.state()
        } else {
            AdapterState::Pending
        };
        FolderEntry {
            name: entry.name.clone(),
            scale: entry.scale,
            folder,
            source: entry.source.clone(),
            commit: entry.commit.clone(),
            base_commit: entry.base_commit,
            state,
        }
    }

    /// The list.
    pub(super) fn list(&self) -> Arc<AdapterList> {
        let list = self.adopted.as_ref().map(|adopted| adopted.list.clone());
        list.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::tests::entry;

    fn adopted(entries: &[AdapterEntry]) -> Adopted {
        let list = AdapterList {
            adapters: entries.to_vec(),
        };
        Adopted {
            revision: list.revision(),
            list: Arc::new(list),
            confirmed: true,
        }
    }

    fn failure(is_own: bool) -> Failure {
        Failure {
            reason: "Refused",
            message: "m".into(),
            is_own,
            lasts: is_own,
        }
    }

    fn names(units: &[Unit]) -> Vec<Vec<&str>> {
        let entries = units.iter().map(|unit| unit.entries.iter());
        entries
            .map(|entries| entries.map(|e| e.name.as_str()).collect())
            .collect()
    }

    fn came(work: &mut Work, unit: &Unit) {
        let linked = unit.entries.iter().map(|e| (e.folder(), Ok(()))).collect();
        work.came(unit, linked, &Timing::default());
    }

    #[test]
    fn a_commit_is_fetched_once_and_a_bad_adapter_keeps_no_other_back() {
        let timing = Timing::default();
        let mut work = Work::default();
        let list = adopted(&[entry("b", '1'), entry("a", '1'), entry("c", '2')]);
        assert!(work.take(&list));
        assert!(!work.take(&list), "it is no other list");
        let units = work.begin();
        assert_eq!(names(&units), [vec!["a", "b"], vec!["c"]]);
        assert!(work.begin().is_empty(), "they are under way");

        work.failed(&units[0], &failure(true), &timing);
        assert!(matches!(
            work.content().adapters[0].state,
            AdapterState::Pending
        ));
        let alone = work.begin();
        assert_eq!(names(&alone), [vec!["a"], vec!["b"]]);
        came(&mut work, &alone[0]);
        came(&mut work, &units[1]);
        work.failed(&alone[1], &failure(true), &timing);
        let states: Vec<_> = work
            .content()
            .adapters
            .into_iter()
            .map(|a| a.state)
            .collect();
        let bad = failure(true).state();
        assert_eq!(
            states,
            [AdapterState::Ready, bad.clone(), AdapterState::Ready]
        );
        assert!(work.begin().is_empty(), "it waits for its turn");
        assert!(work.next(Duration::from_mins(1)) < Instant::now() + Duration::from_secs(2));
        work.retry_now();
        assert_eq!(names(&work.begin()), [vec!["b"]]);

        // Another adapter of the commit is fetched alone while the bad one is listed.
        let list = [entry("a", '1'), entry("b", '1'), entry("d", '1')];
        assert!(work.take(&adopted(&list)));
        assert_eq!(work.content().adapters[1].state, bad);
        assert_eq!(names(&work.begin()), [vec!["d"]]);
        assert!(work.take(&adopted(&[entry("a", '1'), entry("d", '1')])));
        assert_eq!(names(&work.begin()), [vec!["a", "d"]]);
        assert!(!work.left.is_empty());
    }

    #[test]
    fn what_may_pass_is_tried_for_the_whole_commit_again() {
        let mut work = Work::default();
        work.take(&adopted(&[entry("a", '1'), entry("b", '1')]));
        let units = work.begin();
        work.failed(&units[0], &failure(false), &Timing::default());
        assert_eq!(work.content().adapters[1].state, failure(false).state());
        work.retry_now();
        assert_eq!(names(&work.begin()), [vec!["a", "b"]]);
    }

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let timing = Timing {
            max_pause: Duration::from_secs(4),
            ..Timing::default()
        };
        let mut work = Work::default();
        work.take(&adopted(&[entry("a", '1')]));
        let unit = work.begin().remove(0);
        for seconds in [1, 2, 4, 4, 4] {
            work.failed(&unit, &failure(false), &timing);
            let at = work.retries[&unit.key].at - Instant::now();
            let expected = Duration::from_secs(seconds);
            assert!(at <= expected && at + Duration::from_millis(500) > expected);
        }
    }

    #[test]
    fn a_linked_adapter_without_its_checkout_is_fetched_and_stays_ready() {
        let mut work = Work::default();
        work.take(&adopted(&[entry("a", '1')]));
        let unit = work.begin().remove(0);
        came(&mut work, &unit);
        assert!(work.begin().is_empty());
        work.lacking.insert(unit.key.clone());
        assert_eq!(work.begin().len(), 1);
        work.failed(&unit, &failure(false), &Timing::default());
        assert_eq!(work.content().adapters[0].state, AdapterState::Ready);
    }

    #[test]
    fn paths_are_no_patterns() {
        let mut star = entry("a", '1');
        star.weights = "a*.safetensors".into();
        let mut work = Work::default();
        work.take(&adopted(&[star]));
        assert_eq!(
            work.begin()[0].volume.include,
            ["a[*].safetensors", "a.json"]
        );
    }
}
