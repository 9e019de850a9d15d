//! The adapters that resources of kind Adapter tell of. Those that lie in a Model's own repository
//! are known to its workers alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use hyprstream_contract::CommitId;

use super::{Hope, ModelKey};

/// What the gateway needs to know of an Adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFacts {
    /// The Model that it adapts. Its namespace is the Adapter's.
    pub model: ModelKey,
    /// Name of the resource.
    pub name: Arc<str>,
    /// Name by which clients call it.
    pub served: Arc<str>,
    /// The commit that its status names.
    pub commit: Option<CommitId>,
    /// What it computes, as its status says.
    pub digest: Option<String>,
    /// How many workers have it, as its status says.
    pub loaded: u32,
    /// Whether workers that lack it can be expected to have it: they cannot if it was refused.
    pub hope: Hope,
    /// CamelCase reason for not being ready.
    pub reason: String,
    /// A sentence on that reason.
    pub message: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

impl AdapterFacts {
    /// Whether nobody will have it until somebody changes it.
    pub fn is_refused(&self) -> bool {
        self.hope == Hope::None
    }

    /// For tests: a sound one of `a/m` by its own name, which no worker has yet.
    #[cfg(test)]
    pub(crate) fn example(name: &str) -> Self {
        Self {
            model: ModelKey::new("a", "m"),
            name: name.into(),
            served: name.into(),
            commit: None,
            digest: None,
            loaded: 0,
            hope: Hope::Good,
            reason: String::new(),
            message: String::new(),
            created: 0,
        }
    }
}

/// The adapters of all Models of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Adapters {
    /// By served name.
    by_model: HashMap<ModelKey, BTreeMap<Arc<str>, Arc<AdapterFacts>>>,
    // Invariant: holds every adapter of `by_model` exactly once, ordered by Model.
    by_name: HashMap<Arc<str>, Vec<Arc<AdapterFacts>>>,
}

/// Which adapter a served name means.
pub(super) enum Named<'t> {
    None,
    One(&'t Arc<AdapterFacts>),
    /// Ordered by Model.
    Several(Vec<&'t Arc<AdapterFacts>>),
}

impl Adapters {
    /// Those of Models that there are. Of two of one Model with one served name the older has it.
    pub(super) fn new(
        adapters: impl IntoIterator<Item = Arc<AdapterFacts>>,
        is_model: impl Fn(&ModelKey) -> bool,
    ) -> Self {
        let mut by_model: HashMap<ModelKey, BTreeMap<Arc<str>, Arc<AdapterFacts>>> = HashMap::new();
        for facts in adapters {
            if !is_model(&facts.model) {
                continue;
            }
            let of_model = by_model.entry(facts.model.clone()).or_default();
            let age = |facts: &AdapterFacts| (facts.created, Arc::clone(&facts.name));
            match of_model.get_mut(&facts.served) {
                Some(other) if age(other) <= age(&facts) => {}
                Some(other) => *other = facts,
                None => {
                    of_model.insert(Arc::clone(&facts.served), facts);
                }
            }
        }
        let mut by_name: HashMap<Arc<str>, Vec<Arc<AdapterFacts>>> = HashMap::new();
        for facts in by_model.values().flat_map(BTreeMap::values) {
            let of_name = by_name.entry(Arc::clone(&facts.served)).or_default();
            of_name.push(Arc::clone(facts));
        }
        for of_name in by_name.values_mut() {
            of_name.sort_by(|a, b| a.model.cmp(&b.model));
        }
        Self { by_model, by_name }
    }

    pub(super) fn len(&self) -> usize {
        self.by_model.values().map(BTreeMap::len).sum()
    }

    /// Those of a Model, ordered by served name.
    pub(super) fn of(&self, model: &ModelKey) -> impl Iterator<Item = &Arc<AdapterFacts>> {
        self.by_model
            .get(model)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    pub(super) fn get(&self, model: &ModelKey, served: &str) -> Option<&Arc<AdapterFacts>> {
        self.by_model.get(model)?.get(served)
    }

    /// What a served name means, in a namespace or in all. One that was refused takes the name from
    /// no other.
    pub(super) fn named(&self, namespace: Option<&str>, served: &str) -> Named<'_> {
        let of_name = self.by_name.get(served).map_or(&[][..], Vec::as_slice);
        let asked = of_name
            .iter()
            .filter(|facts| namespace.is_none_or(|namespace| *facts.model.namespace == *namespace));
        let mut found: Vec<_> = asked.clone().filter(|facts| !facts.is_refused()).collect();
        if found.is_empty() {
            found = asked.collect();
        }
        match found[..] {
            [] => Named::None,
            [one] => Named::One(one),
            _ => Named::Several(found),
        }
    }
}
