//! What is told of all adapters.

use hyprstream_contract::worker_adapters::{WorkerAdapter, WorkerAdapters};

use super::{
    Facts,
    entry::Entry,
    state::{Key, State},
    store::Store,
};

impl State {
    /// Names by which something is served.
    pub(super) fn served_names(&self) -> Vec<String> {
        let entries = self.entries.iter();
        let served = entries.filter(|(_, entry)| entry.serving.is_some());
        let mut names: Vec<String> = served.map(|((name, _), _)| name.clone()).collect();
        names.dedup();
        names
    }

    pub(super) fn list(&self) -> WorkerAdapters {
        WorkerAdapters {
            object: "list".to_owned(),
            revision: self.revision.clone(),
            data: self.entries.iter().map(told).collect(),
        }
    }
}

fn told(((name, origin), entry): (&Key, &Entry)) -> WorkerAdapter {
    let (wish, serving) = (&entry.wish, entry.serving.as_ref());
    WorkerAdapter {
        name: name.clone(),
        origin: *origin,
        scale: serving.map_or(wish.scale, |record| record.scale),
        source: wish.source.clone(),
        commit: wish.commit.clone(),
        folder: wish.folder.clone(),
        state: entry.state.clone(),
        serving: serving.map(super::entry::Record::serving),
        warning: entry.warning.clone(),
    }
}

impl Store {
    pub(super) fn facts(&self) -> Facts {
        let state = self.state();
        let resident = state.entries.iter().filter_map(|((name, _), entry)| {
            let record = entry.serving.as_ref()?;
            record.resident()?;
            Some((name.clone(), record.rank))
        });
        Facts {
            resident: resident.collect(),
            max_resident: self.options.limits.resident,
            running: self.running.counts(),
            waiting: self.waiting.counts(),
        }
    }
}
