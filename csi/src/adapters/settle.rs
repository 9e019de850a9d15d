//! Making the folder of a Model show its list.

use std::sync::Arc;

use tokio::{task::JoinSet, time::Instant};

use super::{
    Adapters, Followed,
    failure::Failure,
    folder::Folder,
    work::{Unit, Work},
};
use crate::{
    error::Error,
    volumes::{PATIENCE, blocking},
};

/// What came of a unit: of each of its adapters, by folder, whether its files could be shown.
type Brought = Result<Vec<(String, Result<(), Failure>)>, Failure>;

impl Adapters {
    /// Shows what the registry says of a Model, until this is dropped.
    pub(super) async fn settle(self: Arc<Self>, followed: Arc<Followed>) {
        self.adopt_former(&followed).await;
        let mut progress = followed.progress.subscribe();
        let mut news = self.followed.news.subscribe();
        let mut fetches: JoinSet<(Unit, Brought)> = JoinSet::new();
        let mut work = Work::default();
        // Whether the disk is to be looked at, and how often it could not be written to.
        let (mut look, mut failures) = (true, 0);
        loop {
            let adopted = progress.borrow_and_update().adopted.clone();
            let Some(adopted) = adopted else {
                if progress.changed().await.is_err() {
                    return;
                }
                continue;
            };
            look |= work.take(&adopted);
            let mut pause = self.timing.look_again;
            let shown;
            (work, shown) = self.show(&followed, work, look).await;
            match shown {
                Ok(()) => {
                    (look, failures) = (false, 0);
                    self.told(&followed, &work);
                    for unit in work.begin() {
                        let bring = Arc::clone(&self).bring(Arc::clone(&followed), unit);
                        fetches.spawn(bring);
                    }
                }
                Err(error) => {
                    tracing::warn!(model = %followed.model, %error, "adapters are not shown");
                    if error.needs_room() {
                        self.disk_full.notify_one();
                    }
                    let trouble = error.to_string();
                    followed.progress.send_if_modified(|progress| {
                        let new = progress.trouble.as_ref() != Some(&trouble);
                        progress.trouble = Some(trouble);
                        new
                    });
                    look = true;
                    pause = self.timing.min_pause * 2_u32.pow(failures);
                    pause = pause.min(self.timing.max_pause);
                    failures = (failures + 1).min(16);
                }
            }
            let wake = Instant::from_std(work.next(pause));
            tokio::select! {
                changed = progress.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = news.changed() => {
                    work.retry_now();
                    look = true;
                }
                Some(done) = fetches.join_next(), if !fetches.is_empty() => {
                    let more = std::iter::from_fn(|| fetches.try_join_next());
                    for (unit, brought) in std::iter::once(done).chain(more).flatten() {
                        self.note(&followed, &mut work, &unit, brought);
                    }
                }
                () = tokio::time::sleep_until(wake) => look = true,
            }
        }
    }

    /// Takes up the list of a former life if the registry does not say one soon.
    async fn adopt_former(&self, followed: &Followed) {
        let folder = Folder::new(&self.layout, &followed.model);
        let Ok(Some(former)) = blocking(move || Ok(folder.read_list())).await else {
            return;
        };
        let mut progress = followed.progress.subscribe();
        let answered = progress.wait_for(|p| p.adopted.is_some() || p.unsaid.is_some());
        let _ = tokio::time::timeout(self.timing.former_patience, answered).await;
        followed.adopt_former(former);
    }

    /// Writes the list and what is there of it to the disk, and removes what is not named any more.
    async fn show(
        self: &Arc<Self>,
        followed: &Arc<Followed>,
        work: Work,
        look: bool,
    ) -> (Work, Result<(), Error>) {
        let (adapters, followed) = (Arc::clone(self), Arc::clone(followed));
        let shown = blocking(move || {
            let mut work = work;
            let shown = adapters.show_now(&followed, &mut work, look);
            Ok((work, shown))
        });
        // Without what it knew it looks at the disk again.
        shown
            .await
            .unwrap_or_else(|error| (Work::default(), Err(error)))
    }

    fn show_now(&self, followed: &Arc<Followed>, work: &mut Work, look: bool) -> Result<(), Error> {
        let _writing = self.followed.writing.lock();
        // Another task may be at it, or nobody.
        if !self.is_followed(followed) {
            return Ok(());
        }
        let folder = Folder::new(&self.layout, &followed.model);
        if look {
            // First, so that no collection takes what is named.
            folder.keep_list(&work.list())?;
            work.linked = work.folders().filter(|name| folder.has(name)).collect();
            work.lacking.clear();
            for unit in work.units() {
                if self.checkouts.open(&unit.key)?.is_none() {
                    work.lacking.insert(unit.key);
                }
            }
        }
        folder.tell(&work.content())?;
        if look {
            for key in work.left.drain() {
                if self.layout.checkout(&key).exists()
                    && let Err(error) = self.checkouts.touch(&key)
                {
                    tracing::warn!(%error, "the use of a checkout could not be noted");
                }
            }
            let named = work.folders().collect();
            folder.sweep(&named, &mut work.unnamed, self.timing.linger)?;
        }
        Ok(())
    }

    /// The folder shows the list.
    fn told(&self, followed: &Followed, work: &Work) {
        let revision = work.adopted.as_ref().map(|adopted| &adopted.revision);
        let there = work.folders().filter(|f| work.linked.contains(f)).count();
        let counts = (there, work.list().adapters.len() - there);
        let changed = followed.progress.send_if_modified(|progress| {
            let new = progress.shown.as_ref() != revision || progress.counts != counts;
            progress.shown = revision.cloned();
            progress.trouble = None;
            progress.counts = counts;
            new
        });
        if changed {
            self.count();
        }
    }

    /// Fetches a unit and shows its files.
    async fn bring(self: Arc<Self>, followed: Arc<Followed>, unit: Unit) -> (Unit, Brought) {
        let brought = self.bring_unit(&followed, &unit).await;
        let brought = brought.map_err(|error| {
            if error.needs_room() {
                self.disk_full.notify_one();
            }
            let failure = Failure::from(&error);
            if failure.reason == Failure::DAMAGED {
                self.damaged.notify_one();
            }
            failure
        });
        (unit, brought)
    }

    async fn bring_unit(
        self: &Arc<Self>,
        followed: &Arc<Followed>,
        unit: &Unit,
    ) -> Result<Vec<(String, Result<(), Failure>)>, Error> {
        let lease = self.checkouts.lease(&unit.key);
        let checkout = loop {
            let asked = self
                .checkouts
                .ensure(&unit.key, &unit.volume, &followed.access, PATIENCE);
            match asked.await {
                Err(Error::Fetching(progress)) => {
                    tracing::info!(model = %followed.model, progress, "adapters are still coming");
                }
                done => break done?,
            }
        };
        let (adapters, followed) = (Arc::clone(self), Arc::clone(followed));
        let entries = unit.entries.clone();
        blocking(move || {
            let _lease = lease;
            let _writing = adapters.followed.writing.lock();
            if !adapters.is_followed(&followed) {
                return Err(Error::BrokenOff);
            }
            let folder = Folder::new(&adapters.layout, &followed.model);
            let link = |entry| folder.link(entry, &checkout);
            Ok(entries
                .iter()
                .map(|entry| (entry.folder(), link(entry)))
                .collect())
        })
        .await
    }

    fn note(&self, followed: &Followed, work: &mut Work, unit: &Unit, brought: Brought) {
        let model = &followed.model;
        match brought {
            Ok(linked) => {
                for (folder, done) in &linked {
                    match done {
                        Ok(()) => tracing::info!(%model, folder, "adapter is there"),
                        Err(failure) => {
                            tracing::warn!(%model, folder, failure.message, "adapter is not there");
                        }
                    }
                }
                work.came(unit, linked, &self.timing);
            }
            Err(failure) => {
                let names: Vec<&str> = unit.entries.iter().map(|e| e.name.as_str()).collect();
                tracing::warn!(%model, ?names, failure.message, "adapters could not be fetched");
                work.failed(unit, &failure, &self.timing);
            }
        }
    }
}
