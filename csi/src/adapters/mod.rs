//! The adapters of Models, shown as folders whose content changes while pods have them mounted
//! (`docs/adr/0002-how-adapters-reach-pods.md`).
//!
//! While a volume of a Model's adapters is on the node, the Model is followed: one call for all
//! followed Models waits at the registry for the next list ([`Adapters::follow`]), and a task for
//! each makes its folder show the list (`settle`). A file is linked before `adapters.json` calls
//! it ready, and goes only long after no list has named it. All of it may be killed at any point:
//! what is on the disk is looked at first.

mod failure;
mod folder;
mod follow;
mod lists;
mod settle;
#[cfg(test)]
pub(crate) mod tests;
mod work;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyprstream_contract::adapters::{AdapterList, ModelName};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use lists::{Lists, RegistryLists, Said, Unsaid};

use self::folder::Folder;
use crate::{
    error::Error,
    fetch::{Access, Checkout, Checkouts, Key},
    gc,
    layout::{CheckoutKey, Layout},
    metrics::Metrics,
};

/// How long things last and how often they are tried.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long files stay after the last list that named them.
    pub linger: Duration,
    /// How often a folder is compared with its list although nothing happened.
    pub look_again: Duration,
    /// How long the registry may take to say the first list before one of a former life is shown.
    pub former_patience: Duration,
    /// First pause after a fetch or a write that failed; it doubles.
    pub min_pause: Duration,
    /// Longest pause after a failure that may pass by itself.
    pub max_pause: Duration,
    /// Longest pause after a failure that needs another commit or an upload.
    pub max_long_pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            linger: Duration::from_mins(10),
            look_again: Duration::from_mins(1),
            former_patience: Duration::from_secs(10),
            min_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            max_long_pause: Duration::from_mins(5),
        }
    }
}

/// The adapters of the Models that this node shows.
pub struct Adapters {
    /// Paths of the state.
    pub layout: Layout,
    /// Where files come from.
    pub checkouts: Arc<Checkouts>,
    /// Where lists come from.
    pub lists: Arc<dyn Lists>,
    /// Metrics.
    pub metrics: Metrics,
    /// How long things last.
    pub timing: Timing,
    /// Told when the disk turned out to be full.
    pub disk_full: Arc<Notify>,
    /// Told when a checkout turned out to be damaged.
    pub damaged: Arc<Notify>,
    /// What is followed.
    pub followed: Following,
}

/// Which Models are followed. Empty at first.
pub struct Following {
    state: Mutex<State>,
    /// Told when Models are followed or no longer are.
    woken: Notify,
    /// Counts what may let a failed fetch succeed.
    news: watch::Sender<u64>,
    /// Held while folders are written or removed; taken before `state`.
    writing: Mutex<()>,
}

#[derive(Default)]
struct State {
    staged: HashMap<ModelName, Vec<Key>>,
    leases: HashMap<ModelName, usize>,
    followed: BTreeMap<ModelName, Arc<Followed>>,
}

/// A Model that is followed.
struct Followed {
    model: ModelName,
    /// By what the registry is asked for the list and for what it names.
    access: Access,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Progress {
    /// What is to be shown.
    adopted: Option<Adopted>,
    /// Why the registry has not said it, if it was asked in vain.
    unsaid: Option<String>,
    /// Revision of the list that the folder tells of.
    shown: Option<String>,
    /// Why the folder could not be written.
    trouble: Option<String>,
    /// How many adapters are on the node, and how many are not.
    counts: (usize, usize),
}

#[derive(Clone)]
struct Adopted {
    list: Arc<AdapterList>,
    revision: String,
    /// Whether the registry said it since the Model is followed.
    confirmed: bool,
}

/// Keeps a Model followed while it lives.
pub struct Lease {
    adapters: Arc<Adapters>,
    model: ModelName,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.adapters.change(|state| {
            if let Some(count) = state.leases.get_mut(&self.model) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(&self.model);
                }
            }
        });
    }
}

impl Default for Following {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            woken: Notify::new(),
            news: watch::Sender::new(0),
            writing: Mutex::default(),
        }
    }
}

impl Adapters {
    /// Follows the Model at least until the lease ends.
    pub fn lease(self: &Arc<Self>, model: &ModelName) -> Lease {
        self.change(|state| *state.leases.entry(model.clone()).or_default() += 1);
        Lease {
            adapters: Arc::clone(self),
            model: model.clone(),
        }
    }

    /// From now on these Models are followed, by the keys of their volumes, and those with a lease.
    pub fn set_staged(&self, models: HashMap<ModelName, Vec<Key>>) {
        self.change(|state| state.staged = models);
    }

    /// A volume of the Model brings a key, by which the registry is asked from now on. Nothing to do
    /// unless the Model is followed.
    pub fn offer(&self, model: &ModelName, key: Key) {
        let followed = self.followed.state.lock().followed.get(model).cloned();
        let Some(followed) = followed else {
            return;
        };
        let is_news = followed.access.is_refused() || followed.access.key() != Some(key.clone());
        followed.access.offer(key);
        if is_news {
            self.followed.woken.notify_one();
            self.tell_news();
        }
    }

    /// Whether the registry lets none of the Model's volumes read its list.
    pub(crate) fn is_refused(&self, model: &ModelName) -> bool {
        let state = self.followed.state.lock();
        let followed = state.followed.get(model);
        followed.is_some_and(|followed| followed.access.is_refused())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.followed.state.lock();
        let before = state.followed.len();
        change(&mut state);
        let State {
            staged,
            leases,
            followed,
        } = &mut *state;
        followed.retain(|model, _| staged.contains_key(model) || leases.contains_key(model));
        let kept = followed.len();
        for model in staged.keys().chain(leases.keys()) {
            let followed = followed
                .entry(model.clone())
                .or_insert_with(|| Arc::new(Followed::new(model)));
            for key in staged.get(model).into_iter().flatten() {
                followed.access.hold(key.clone());
            }
        }
        if before != kept || kept != followed.len() {
            self.followed.woken.notify_one();
        }
    }

    /// The folder of the Model's adapters, once it shows the Model's first list: that of the
    /// registry, or the last one of a former life if the registry does not say it. Hold a
    /// [`Lease`].
    ///
    /// # Errors
    /// [`Error::NoList`] after `patience`: call again.
    pub async fn first_list(
        &self,
        model: &ModelName,
        patience: Duration,
    ) -> Result<PathBuf, Error> {
        let followed = self.followed.state.lock().followed.get(model).cloned();
        let Some(followed) = followed else {
            return Err(Error::BrokenOff);
        };
        let mut progress = followed.progress.subscribe();
        let shown = progress.wait_for(Progress::is_shown);
        if let Ok(Ok(_)) = tokio::time::timeout(patience, shown).await {
            return Ok(self.layout.adapters_shown(model));
        }
        let why = followed.progress.borrow().why();
        Err(Error::NoList {
            model: model.clone(),
            why,
        })
    }

    /// The checkouts that lists on the node name. Blocks.
    pub(crate) fn named_checkouts(&self) -> Result<HashSet<CheckoutKey>, Error> {
        let followed: Vec<_> = {
            let state = self.followed.state.lock();
            state.followed.values().cloned().collect()
        };
        let mut lists: Vec<Arc<AdapterList>> = followed
            .iter()
            .filter_map(|followed| Some(followed.progress.borrow().adopted.as_ref()?.list.clone()))
            .collect();
        for path in gc::children(&self.layout.adapters())? {
            if let Some(model) = self.layout.adapters_owner(&path) {
                let list = Folder::new(&self.layout, &model).read_list();
                lists.extend(list.map(Arc::new));
            }
        }
        Ok(lists
            .iter()
            .flat_map(|list| work::named_checkouts(list))
            .collect())
    }

    /// Deletes the folders of Models that are not followed, are not among the `mounted` folders and
    /// were not for `keep_unused`. Returns how many. Blocks.
    pub(crate) fn collect(
        &self,
        keep_unused: Duration,
        mounted: &HashSet<PathBuf>,
    ) -> Result<usize, Error> {
        let mut removed = 0;
        for path in gc::children(&self.layout.adapters())? {
            let Some(model) = self.layout.adapters_owner(&path) else {
                continue;
            };
            let in_use = mounted.contains(&self.layout.adapters_shown(&model));
            if in_use || gc::age(gc::modified(&path)) < keep_unused {
                continue;
            }
            let _writing = self.followed.writing.lock();
            // Held until it is out of sight: whoever asks for it then makes another.
            let state = self.followed.state.lock();
            if !state.followed.contains_key(&model) {
                gc::to_trash(&self.layout, &path)?;
                tracing::info!(%model, "folder of adapters deleted");
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Takes the links to damaged files of a checkout away, so that they are fetched anew: to the
    /// `damaged` one and those of another size. Blocks.
    pub(crate) fn forget(&self, checkout: &Checkout, damaged: &str) -> Result<(), Error> {
        let files = checkout.files.iter();
        let bad: HashSet<(u64, u64)> = files
            .map(|file| (file, checkout.path.join(&file.path)))
            .filter(|(file, path)| {
                let size = std::fs::metadata(path).map(|found| found.len());
                file.path == damaged || size.is_ok_and(|size| size != file.size_bytes)
            })
            .filter_map(|(_, path)| folder::inode(&path))
            .collect();
        let mut removed = 0;
        {
            let _writing = self.followed.writing.lock();
            for path in gc::children(&self.layout.adapters())? {
                if let Some(model) = self.layout.adapters_owner(&path) {
                    removed += Folder::new(&self.layout, &model).unlink(&bad)?;
                }
            }
        }
        if removed > 0 {
            self.tell_news();
        }
        Ok(())
    }

    /// Notes that the Model's folder is in use now.
    pub(crate) fn touch(&self, model: &ModelName) {
        let path = self.layout.adapters_of(model);
        let touched =
            std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::warn!(%model, %error, "the use of a folder of adapters could not be noted");
        }
    }

    /// What failed is tried again.
    fn tell_news(&self) {
        self.followed.news.send_modify(|count| *count += 1);
    }

    fn is_followed(&self, followed: &Arc<Followed>) -> bool {
        let state = self.followed.state.lock();
        let now = state.followed.get(&followed.model);
        now.is_some_and(|now| Arc::ptr_eq(now, followed))
    }

    fn count(&self) {
        let state = self.followed.state.lock();
        let (mut there, mut missing) = (0, 0);
        for followed in state.followed.values() {
            let counts = followed.progress.borrow().counts;
            there += counts.0;
            missing += counts.1;
        }
        self.metrics.adapters.set(there as i64);
        self.metrics.adapters_missing.set(missing as i64);
    }
}

impl Followed {
    fn new(model: &ModelName) -> Self {
        Self {
            model: model.clone(),
            access: Access::default(),
            progress: watch::Sender::default(),
        }
    }

    /// The registry said it.
    fn adopt(&self, list: AdapterList) {
        let adopted = Adopted {
            revision: list.revision(),
            list: Arc::new(list),
            confirmed: true,
        };
        tracing::info!(
            model = %self.model,
            revision = adopted.revision,
            adapters = adopted.list.adapters.len(),
            "list of adapters"
        );
        self.progress.send_modify(|progress| {
            progress.adopted = Some(adopted);
            progress.unsaid = None;
        });
    }

    /// The registry has not said it, and this is what it said in a former life.
    fn adopt_former(&self, list: AdapterList) {
        self.progress.send_if_modified(|progress| {
            let adopt = progress.adopted.is_none();
            if adopt {
                progress.adopted = Some(Adopted {
                    revision: list.revision(),
                    list: Arc::new(list),
                    confirmed: false,
                });
            }
            adopt
        });
    }

    /// The registry was asked in vain.
    fn unsaid(&self, why: &str) {
        self.progress.send_if_modified(|progress| {
            let first = progress.unsaid.is_none();
            progress.unsaid = Some(why.to_owned());
            first
        });
    }

    /// Revision of what the registry said; empty if it said nothing yet.
    fn known(&self) -> String {
        let progress = self.progress.borrow();
        let adopted = progress.adopted.as_ref().filter(|a| a.confirmed);
        adopted.map_or_else(String::new, |adopted| adopted.revision.clone())
    }
}

impl Progress {
    fn is_shown(&self) -> bool {
        let adopted = self.adopted.as_ref().map(|adopted| &adopted.revision);
        adopted.is_some() && adopted == self.shown.as_ref()
    }

    fn why(&self) -> String {
        let why = self.trouble.as_ref().or(self.unsaid.as_ref());
        why.cloned()
            .unwrap_or_else(|| "the registry has not answered yet".to_owned())
    }
}
