//! Loading what folders list, one after the other.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use hyprstream_contract::worker_adapters::Origin;
use tokio::time::{Instant, sleep_until};

use super::{
    entry::{Record, base_commit},
    packer::{PackError, aside, stamps},
    room::Amount,
    state::Task,
    store::{From, Store},
};

/// Loads whatever is due, until the store is gone.
pub(super) async fn run(weak: Weak<Store>) {
    loop {
        let Some(store) = weak.upgrade() else { return };
        let next = store.state().next(Instant::now());
        match next {
            Ok(task) => load(&store, task).await,
            Err(at) => {
                let work = Arc::clone(&store.work);
                drop(store);
                match at {
                    None => work.notified().await,
                    Some(at) => tokio::select! {
                        () = work.notified() => {}
                        () = sleep_until(at) => {}
                    },
                }
            }
        }
    }
}

async fn load(store: &Store, task: Task) {
    let start = Instant::now();
    let files = task.files.clone();
    let before = aside(move || stamps(&files)).await.unwrap_or_default();
    if task.unless == Some(before) {
        let pause = store.options.timing.max_retry;
        store.change(|state| {
            if let Some(entry) = state.entry_of(&task) {
                entry.not_yet(before, pause);
            }
        });
        return;
    }
    let loaded = record(store, &task).await;
    store.change(|state| {
        let commit = state.commit.clone();
        // Otherwise something else is wanted by now.
        let Some(entry) = state.entry_of(&task) else {
            return;
        };
        let policy = entry.wish.base_commit;
        let loaded = loaded.and_then(|record| {
            let warning = base_commit(policy, record.revision.as_deref(), commit.as_deref())?;
            Ok((record, warning))
        });
        let name = &task.key.0;
        match loaded {
            Ok((mut record, warning)) => {
                store.loaded(name, &record.digest, start);
                // Only that may have changed meanwhile.
                record.scale = entry.wish.scale;
                entry.serve(record, warning);
            }
            Err(mut error) => {
                tracing::warn!(adapter = name, reason = error.reason, %error, "adapter refused");
                // Whoever is told of it knows no folders of a node.
                if let (Some(_), Some(folder)) = (&entry.wish.folder, task.files.tensors.parent()) {
                    let folder = format!("{}/", folder.display());
                    error.message = error.message.replace(&folder, "");
                }
                entry.fail(&error, before, &store.options.timing);
            }
        }
    });
}

async fn record(store: &Store, task: &Task) -> Result<Record, PackError> {
    let unpacked = store.read(task.files.clone()).await?;
    let (from, credit, keep) = {
        let mut state = store.state();
        let gone = || PackError::new("Superseded", "something else is wanted by now", false);
        let entry = state.entry_of(task).ok_or_else(gone)?;
        let from = From {
            files: task.files.clone(),
            folder: entry.wish.folder.clone(),
            scale: entry.wish.scale,
        };
        let old = entry.serving.as_ref();
        // What it replaces answers until then, and goes at once.
        let resident = old.filter(|record| record.resident().is_some());
        let credit = Amount::of(resident.map(|record| record.bytes));
        let keep: BTreeSet<u64> = old.map(|record| record.id).into_iter().collect();
        (from, credit, keep)
    };
    store.place(unpacked, from, credit, &keep).await
}

impl Store {
    /// Puts the adapters of the model's own folder on the list.
    pub(super) async fn list_repository(&self) {
        let Some(dir) = self.options.repository.clone() else {
            return;
        };
        let listed = aside(move || super::repository::list(&dir)).await;
        match listed.and_then(|listed| listed) {
            Ok(listed) => self.change(|state| state.add(listed)),
            Err(error) => {
                tracing::error!(%error, "the model's own adapters cannot be listed");
                self.change(|state| {
                    state.unseen.remove(&Origin::Repository);
                });
            }
        }
    }
}
