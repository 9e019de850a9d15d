//! The routing table: which Models there are, which workers serve them, and which adapters they are
//! said to have.

mod adapters;
mod entry;
mod resolve;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use self::adapters::{Adapters, Named};
pub use adapters::AdapterFacts;
pub use entry::{Availability, Hope, ModelEntry, ModelFacts, Reference, Refusal};
pub use resolve::{Asked, ResolveError, Route};

use crate::endpoint::Endpoint;

/// Namespace and name of a Model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ModelKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Every Model of the watched namespaces. Never changed: a new state of the cluster is a new
/// table, which shares the entries' endpoints with the one before.
#[derive(Clone, Debug, Default)]
pub struct Table {
    models: BTreeMap<ModelKey, Arc<ModelEntry>>,
    // Invariant: holds every entry of `models` exactly once, ordered by namespace.
    by_name: HashMap<Arc<str>, Vec<Arc<ModelEntry>>>,
    adapters: Adapters,
    complete: bool,
    /// The list of models as clients get it, made when one first asks.
    listed: OnceLock<Bytes>,
}

impl Table {
    /// The table of these Models and endpoints. `complete` says that they are all that there are:
    /// until then an unknown name may still turn up. Endpoints of Models that do not exist are
    /// left out.
    pub fn new(
        models: impl IntoIterator<Item = ModelFacts>,
        mut endpoints: HashMap<ModelKey, Vec<Arc<Endpoint>>>,
        complete: bool,
    ) -> Self {
        let models: BTreeMap<_, _> = models
            .into_iter()
            .map(|facts| {
                let endpoints = endpoints.remove(&facts.key).unwrap_or_default();
                (facts.key.clone(), Arc::new(ModelEntry { facts, endpoints }))
            })
            .collect();
        let mut by_name: HashMap<Arc<str>, Vec<Arc<ModelEntry>>> = HashMap::new();
        for (key, entry) in &models {
            by_name
                .entry(Arc::clone(&key.name))
                .or_default()
                .push(Arc::clone(entry));
        }
        Self {
            models,
            by_name,
            adapters: Adapters::default(),
            complete,
            listed: OnceLock::new(),
        }
    }

    /// The same table with these adapters. Those of Models that do not exist are left out, and of
    /// two of one Model with one served name the younger.
    #[must_use]
    pub fn with_adapters(self, adapters: impl IntoIterator<Item = Arc<AdapterFacts>>) -> Self {
        let adapters = Adapters::new(adapters, |model| self.models.contains_key(model));
        Self {
            adapters,
            listed: OnceLock::new(),
            ..self
        }
    }

    /// Whether everything there is has been seen at least once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The Models, ordered by namespace and name.
    pub fn models(&self) -> impl ExactSizeIterator<Item = &Arc<ModelEntry>> {
        self.models.values()
    }

    /// The Model of a key.
    pub fn get(&self, key: &ModelKey) -> Option<&Arc<ModelEntry>> {
        self.models.get(key)
    }

    /// The shortest id by which clients can name this Model: `NAME`, or `NAMESPACE/NAME` where
    /// another namespace has that name too.
    pub fn id(&self, key: &ModelKey) -> String {
        match self.by_name.get(&key.name) {
            Some(entries) if entries.len() > 1 => key.to_string(),
            _ => key.name.to_string(),
        }
    }

    /// How many adapters there are.
    pub fn adapter_count(&self) -> usize {
        self.adapters.len()
    }

    /// The adapters of a Model, ordered by served name.
    pub fn adapters(&self, model: &ModelKey) -> impl Iterator<Item = &Arc<AdapterFacts>> {
        self.adapters.of(model)
    }

    /// The adapter that a Model has by this served name.
    pub fn adapter(&self, model: &ModelKey, served: &str) -> Option<&Arc<AdapterFacts>> {
        self.adapters.get(model, served)
    }

    /// The shortest id by which clients can name this adapter: its served name, or `MODEL+NAME`
    /// where a Model or another Model's adapter has that name too.
    pub fn adapter_id(&self, facts: &AdapterFacts) -> String {
        let is_alone = match self.adapters.named(None, &facts.served) {
            Named::One(named) => named.model == facts.model,
            Named::None | Named::Several(_) => false,
        };
        if is_alone && !self.by_name.contains_key(&facts.served) {
            facts.served.to_string()
        } else {
            format!("{}+{}", self.id(&facts.model), facts.served)
        }
    }

    /// The list of models as clients get it: what `make` makes of it the first time.
    pub(crate) fn listed(&self, make: impl FnOnce() -> Bytes) -> Bytes {
        self.listed.get_or_init(make).clone()
    }
}
