//! Keeps each Model's list on the registry, and hears from its workers what they have of it.
//!
//! # Expected flow
//! Whatever changes, an Adapter, its Model, what is known of a repository, a worker, [`Rosters::wake`]
//! has the [`desk`] of the Model look again: it works the list out of all that is known, tells the
//! registry, asks the workers, and triggers the Adapters for which that made a difference. Their
//! reconciliations read it as [`Facts`].
//!
//! # Guarantees
//! - One desk per Model writes its list, each time all of it, so that no older list follows a newer
//!   one, however many Adapters change at once.
//! - A list follows from what there is, never from what happened: after a start every list is written
//!   anew, and now and then again.
//! - What is not known yet takes nothing off a list.
//! - A Model's workers are asked once for all its Adapters, and a slow one holds up nothing else.

mod desk;
mod keep;
mod known;
mod pace;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use hyprstream_api::{Adapter, Checked, Model};
use hyprstream_contract::adapters::{AdapterEntry, ModelName};
use kube::{Resource, runtime::watcher};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::desk::Desk;
pub use self::keep::ListError;
use super::{
    fetch::{View, model_of},
    workers::{Asker, Word},
};
use crate::{kind::Trigger, registry::Registry};

/// Lists that are read and written at once.
const CALLS: usize = 16;

/// What is known of one Adapter beside its spec and its source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Its entry on the Model's list, as the registry has it.
    pub listed: Option<AdapterEntry>,
    /// The list has no room for it.
    pub is_beyond: bool,
    /// Name of the Adapter that has its name.
    pub rival: Option<String>,
    /// Why the registry could not be told.
    pub list_problem: Option<Trouble>,
    /// Why workers refuse what is listed; it stands until one of them has it.
    pub refusal: Option<Trouble>,
    /// What the ready workers say, by name; `None` until each was heard, or was silent too often.
    pub workers: Option<Vec<Answer>>,
    /// How often the Model was edited, if it is there: what it says of its source and workers counts.
    pub model: Option<i64>,
}

/// Why a list is not on the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase reason.
    pub reason: String,
    /// For the user of the Adapter.
    pub message: String,
}

/// What a ready worker says of an Adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Name of its pod.
    pub pod: String,
    /// `None` if it does not know it; an error if nothing is known of the worker.
    pub word: Result<Option<Word>, String>,
}

/// The desks of a scope's Models.
pub struct Rosters {
    shared: Arc<Shared>,
    open: Mutex<Open>,
}

/// What desks share.
struct Shared {
    view: View,
    registry: Registry,
    asker: Arc<Asker>,
    trigger: Trigger,
    /// Places for calls to the registry: after a start every Model's list is written.
    calls: Semaphore,
    /// Ends them.
    end: CancellationToken,
}

#[derive(Default)]
struct Open {
    desks: HashMap<ModelName, Arc<Desk>>,
    /// Models without Adapters that have no list: nothing is to be done for them.
    bare: HashSet<ModelName>,
}

impl Drop for Rosters {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

impl Rosters {
    /// No desks yet.
    pub fn new(view: View, registry: Registry, asker: Arc<Asker>, trigger: Trigger) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                view,
                registry,
                asker,
                trigger,
                calls: Semaphore::new(CALLS),
                end: CancellationToken::new(),
            }),
            open: Mutex::default(),
        })
    }

    /// What is known.
    pub fn view(&self) -> &View {
        &self.shared.view
    }

    /// Has the Model's list and workers looked at.
    pub fn wake(self: &Arc<Self>, model: &ModelName) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.bare.remove(model);
        self.desk(&mut open, model).wake();
    }

    /// The same, and the list is written whatever is known of it.
    pub fn doubt(self: &Arc<Self>, model: &ModelName) {
        let desk = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.bare.remove(model);
            self.desk(&mut open, model)
        };
        desk.doubt();
        desk.wake();
    }

    /// Has the Model's list and workers looked at, if the Model has Adapters, or a list of which
    /// nobody knows.
    pub fn touch(self: &Arc<Self>, model: &ModelName) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !open.bare.contains(model) {
            self.desk(&mut open, model).wake();
        }
    }

    /// Has them looked at if the Model is looked after already: its workers may be others.
    pub fn nudge(&self, namespace: &str, model: &str) {
        self.wake_which(|name, _| name.namespace() == namespace && name.model() == model);
    }

    /// An Adapter came, changed or went.
    pub fn seen_adapter(self: &Arc<Self>, event: &watcher::Event<Checked<Adapter>>) {
        let adapter = match event {
            watcher::Event::Apply(adapter)
            | watcher::Event::InitApply(adapter)
            | watcher::Event::Delete(adapter) => adapter,
            watcher::Event::InitDone => return self.wake_which(|_, _| true),
            watcher::Event::Init => return,
        };
        let uid = adapter.meta().uid.clone().unwrap_or_default();
        // It may have been another Model's before.
        self.wake_which(|_, desk| desk.knows(&uid));
        if let Some(model) = model_of(adapter) {
            self.wake(&model);
        }
    }

    /// A Model came, changed or went.
    pub fn seen_model(self: &Arc<Self>, event: &watcher::Event<Checked<Model>>) {
        let (model, is_gone) = match event {
            watcher::Event::Apply(model) | watcher::Event::InitApply(model) => (model, false),
            watcher::Event::Delete(model) => (model, true),
            watcher::Event::InitDone => return self.wake_which(|_, _| true),
            watcher::Event::Init => return,
        };
        let meta = model.meta();
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else {
            return;
        };
        match format!("{namespace}/{name}").parse() {
            Ok(name) if is_gone => self.wake(&name),
            Ok(name) => self.touch(&name),
            // No list can be kept for it.
            Err(_) => {}
        }
    }

    /// What is known of the Adapter with that UID.
    pub fn facts(&self, model: &ModelName, uid: &str) -> Option<Facts> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.desks.get(model)?.facts(uid)
    }

    /// Has the registry hold the Model's list as it should be now.
    ///
    /// # Errors
    /// The registry did not take it.
    pub async fn settle(self: &Arc<Self>, model: &ModelName) -> Result<(), ListError> {
        self.shared.view.ready().await;
        loop {
            let desk = {
                let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
                self.desk(&mut open, model)
            };
            match self.shared.keep(model, &desk).await {
                Ok(keep::Kept::Closed) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn wake_which(&self, which: impl Fn(&ModelName, &Desk) -> bool) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, desk) in open.desks.iter().filter(|(name, desk)| which(name, desk)) {
            desk.wake();
        }
    }

    fn desk(self: &Arc<Self>, open: &mut Open, model: &ModelName) -> Arc<Desk> {
        if let Some(desk) = open.desks.get(model) {
            return desk.clone();
        }
        let desk = Arc::new(Desk::default());
        open.desks.insert(model.clone(), desk.clone());
        let span = tracing::info_span!(
            parent: None,
            "roster",
            namespace = model.namespace(),
            model = model.model(),
        );
        let (rosters, shared) = (Arc::downgrade(self), self.shared.clone());
        let end = self.shared.end.clone();
        let work = desk::work(rosters, shared, model.clone(), desk.clone());
        tokio::spawn(
            async move {
                end.run_until_cancelled(work).await;
            }
            .instrument(span),
        );
        desk
    }

    /// Closes the desk of a Model that has neither Adapters nor a list, unless somebody woke it since
    /// it was woken so often.
    async fn close(&self, model: &ModelName, desk: &Arc<Desk>, woken: u64) -> bool {
        let mut writing = desk.writing.lock().await;
        let is_there = self.shared.view.model(model).is_there();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if desk.woken() != woken {
            return false;
        }
        writing.is_closed = true;
        open.desks.remove(model);
        if is_there {
            open.bare.insert(model.clone());
        }
        true
    }
}
