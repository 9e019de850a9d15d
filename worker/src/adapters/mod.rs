//! The adapters of a worker: those of the folder that it follows, those of the commit that it
//! serves, and those that were asked for at its load routes.

mod adopt;
mod args;
mod entry;
#[doc(hidden)]
pub mod fake;
mod follow;
mod list;
mod load;
mod model_packer;
mod options;
mod packer;
mod repository;
mod request;
mod room;
mod state;
mod store;
mod take;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use hyprstream_contract::{model_ref::MAX_STACK, worker_adapters::WorkerAdapters};
use hyprstream_engine::{Adapter, EngineHandle};
use hyprstream_models::adapter::AdapterDigest;
use prometheus::Histogram;

pub use args::AdapterArgs;
pub use model_packer::{BackendPacker, ModelPacker};
pub use options::{Limits, Options, Timing};
pub use packer::{PackError, PackLimits, Packed, Packer};
use store::Store;

/// All adapters of a worker. Cheap to clone. The default is that of a worker which has none and
/// takes none.
#[derive(Clone, Debug, Default)]
pub struct Adapters {
    store: Option<Arc<Store>>,
}

/// What a store does at the moment, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names and ranks of those that are ready to compute with, by name.
    pub resident: Vec<(String, usize)>,
    /// Most that may be.
    pub max_resident: usize,
    /// Requests that have an adapter, by its name; only those of which there are some.
    pub running: BTreeMap<String, usize>,
    /// Requests that wait until an adapter is brought back, by its name; only those of which there
    /// are some.
    pub waiting: BTreeMap<String, usize>,
}

/// An adapter that a request names.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its served name.
    pub name: String,
    /// The scale, or that of the adapter's own.
    pub scale: Option<f32>,
}

/// An adapter that a request has until it drops this: it stays what it is, whatever is loaded or
/// unloaded by its name meanwhile.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its served name.
    pub name: String,
    /// What the engine knows.
    pub adapter: Adapter,
    /// What it computes.
    pub digest: AdapterDigest,
    /// By what it is multiplied.
    pub scale: f32,
    /// Keeps its memory, and counts it.
    #[allow(dead_code, reason = "it is kept")]
    held: Arc<take::Use>,
}

/// A request's adapters cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// Nothing is served by these names. A 404.
    #[error("{}", missing(names, known))]
    Missing {
        /// Those that were asked for in vain.
        names: Vec<String>,
        /// All that there are.
        known: Vec<String>,
    },
    /// They take more together than there is for all adapters, so that no wait helps. A 400.
    #[error(
        "the {adapters} adapters of the request take {bytes} bytes of memory together, and the \
         worker keeps room for {max_adapters} adapters and {max_bytes} bytes: name fewer or smaller \
         ones, or have whoever runs the model give it more (spec.adapters.memory and \
         spec.adapters.maxResident, or --adapter-memory-bytes and --max-adapters)"
    )]
    TooLarge {
        /// How many it names, each once.
        adapters: usize,
        /// Memory that they take.
        bytes: u64,
        /// Most that are ready at once.
        max_adapters: usize,
        /// Memory that all may take.
        max_bytes: u64,
    },
    /// It was known, and its files are gone or no longer what they were, or others use the memory.
    /// A 503.
    #[error("the adapter {name:?} cannot be brought back: {why}")]
    Lost {
        /// Its served name.
        name: String,
        /// Why.
        why: String,
    },
}

/// Most names that a message lists.
const LISTED: usize = 20;

fn missing(names: &[String], known: &[String]) -> String {
    let listed = known.iter().take(LISTED).cloned().collect::<Vec<_>>();
    let known = match known.len() {
        0 => "there is none".to_owned(),
        count if count > LISTED => format!(
            "there are {}, and {} more",
            listed.join(", "),
            count - LISTED
        ),
        _ => format!("there are {}", listed.join(", ")),
    };
    match names {
        [name] => format!("the adapter {name:?} is not loaded here: {known}"),
        names => format!("the adapters {names:?} are not loaded here: {known}"),
    }
}

/// What a load route asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// The served name.
    pub name: String,
    /// The adapter: a folder or a file of tensors below the root for load routes, or relative to it.
    pub path: String,
    /// Replaces what is loaded by that name. Otherwise that is an error.
    pub in_place: bool,
    /// What has to come out, 64 hexadecimal digits.
    pub expected_digest: Option<String>,
}

/// A load route's request was not carried out. What was loaded before still is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No root folder for load routes was given to this worker.
    #[error("this worker loads no adapters on request: start it with --adapter-root DIR")]
    NoRoot,
    /// The name cannot be: empty, other characters, or that of the model.
    #[error("{name:?} cannot be the name of an adapter: {why}")]
    Name {
        /// What was asked for.
        name: String,
        /// Why not.
        why: String,
    },
    /// Something is loaded by that name, and it was not asked to be replaced.
    #[error("the adapter {0:?} is already loaded: set load_inplace to replace it")]
    AlreadyLoaded(String),
    /// It is not there to be unloaded.
    #[error("the adapter {0:?} is not loaded")]
    NotLoaded(String),
    /// It came with the model or from an Adapter resource, which load routes do not change.
    #[error("the adapter {name:?} belongs to {owner}: change it there")]
    NotOurs {
        /// Its name.
        name: String,
        /// Who it belongs to, in words.
        owner: &'static str,
    },
    /// The path leads out of the root, or to nothing.
    #[error("{0}")]
    NotFound(String),
    /// The file computes something else.
    #[error("the adapter has the digest {found}, but {expected} was expected")]
    OtherDigest {
        /// What was asked for.
        expected: String,
        /// What the files are.
        found: String,
    },
    /// The files are refused.
    #[error("{message}")]
    Refused {
        /// CamelCase.
        reason: String,
        /// In words.
        message: String,
    },
}

impl Adapters {
    /// The adapters of the model that `engine` runs, made ready by `packer`. Those of folders are
    /// loaded from now on, in tasks of the runtime that this is called in, which end when the last
    /// clone is dropped.
    pub fn new(engine: EngineHandle, packer: Arc<dyn Packer>, options: Options) -> Self {
        let store = Arc::new(Store::new(engine, packer, options));
        tokio::spawn(load::run(Arc::downgrade(&store)));
        if let Some(dir) = store.options.follow.clone() {
            tokio::spawn(follow::run(Arc::downgrade(&store), dir));
        }
        if store.options.repository.is_some() {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.list_repository().await });
        }
        Self { store: Some(store) }
    }

    /// Nothing once all that the folders listed at first was loaded or refused. What the node cannot
    /// have for something that may pass is waited for as long as [`Timing::hindered`].
    ///
    /// # Errors
    /// What is waited for, in words.
    pub fn ready(&self) -> Result<(), String> {
        let store = self.store.as_ref();
        store.map_or(Ok(()), |store| {
            store.state().ready(store.options.timing.hindered)
        })
    }

    /// Most adapters that one request may name.
    pub fn max_stacked(&self) -> usize {
        let store = self.store.as_ref();
        store.map_or(MAX_STACK, |store| store.options.limits.stacked)
    }

    /// What it does at the moment.
    pub fn facts(&self) -> Facts {
        let store = self.store.as_ref();
        store.map(|store| store.facts()).unwrap_or_default()
    }

    /// How long loads took, in seconds, from files to ready; `vllm:lora_adapter_load_seconds`, to be
    /// registered. `None` for a worker that takes none.
    pub fn load_seconds(&self) -> Option<Histogram> {
        let store = self.store.as_ref();
        store.map(|store| store.load_seconds.clone())
    }

    /// Loads what a load route asks for, ready to compute with when this returns, unless running
    /// requests have all the memory: then the next request that asks for it waits for some.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn load(&self, request: LoadRequest) -> Result<(), RequestError> {
        match &self.store {
            Some(store) => store.load(request).await,
            None => Err(RequestError::NoRoot),
        }
    }

    /// Unloads what a load route loaded; requests that have it keep it until they end.
    ///
    /// # Errors
    /// [`RequestError::NotLoaded`], [`RequestError::NotOurs`].
    #[allow(clippy::unused_async, reason = "whoever calls it need not know")]
    pub async fn unload(&self, name: &str) -> Result<(), RequestError> {
        match &self.store {
            Some(store) => store.unload(name),
            None => Err(RequestError::NotLoaded(name.to_owned())),
        }
    }

    /// Those that a request names, in its order, ready to compute with. One that lies only on disk
    /// is brought back first, for which others do not wait.
    ///
    /// # Errors
    /// [`TakeError`]: no request is answered without an adapter that it asked for.
    pub async fn take(&self, wanted: &[Wanted]) -> Result<Vec<Taken>, TakeError> {
        match &self.store {
            _ if wanted.is_empty() => Ok(Vec::new()),
            Some(store) => take::take(store, wanted).await,
            None => Err(TakeError::Missing {
                names: wanted.iter().map(|wanted| wanted.name.clone()).collect(),
                known: Vec::new(),
            }),
        }
    }

    /// All of them, by name.
    pub fn list(&self) -> WorkerAdapters {
        let none = || WorkerAdapters {
            object: "list".to_owned(),
            ..WorkerAdapters::default()
        };
        let store = self.store.as_ref();
        store.map_or_else(none, |store| store.state().list())
    }

    /// Whether something is served by this name.
    pub fn serves(&self, name: &str) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|store| store.state().serving(name).is_some())
    }
}
