//! The state of the cluster, event by event, without a client.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::SocketAddr,
    sync::Arc,
};

use hyprstream_contract::worker_tls;
use hyprstream_tls::Trust;

use kube::runtime::watcher::Event;
use tracing::warn;

use super::facts::{SliceFacts, SliceWorker};
use crate::{
    endpoint::Endpoint,
    table::{AdapterFacts, ModelFacts, ModelKey, Table},
};

/// One event of one of the watches. The number is that of the watched namespace.
#[derive(Debug)]
pub(super) enum Change {
    Models(usize, Event<ModelFacts>),
    Adapters(usize, Event<Arc<AdapterFacts>>),
    /// The API server does not know Adapters, or does not show them to us.
    NoAdapters(usize),
    Slices(usize, Event<SliceFacts>),
}

/// Namespace and name of an Adapter.
type AdapterKey = (Arc<str>, Arc<str>);

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    models: Vec<Mirror<ModelKey, ModelFacts>>,
    adapters: Vec<Mirror<AdapterKey, Arc<AdapterFacts>>>,
    /// The Adapters have not been listed yet and are not waited for any more.
    skip_adapters: bool,
    slices: Vec<Mirror<(Arc<str>, String), SliceFacts>>,
    /// The endpoints of the last table, so that a new one keeps their load and connections.
    endpoints: HashMap<Worker, Arc<Endpoint>>,
    /// By whom workers that speak TLS are known. Without it they are asked where they speak none.
    trust: Option<Trust>,
    /// That there are workers which speak nothing else was said.
    told_of_tls: bool,
}

/// A worker as it stands in the slices. Another pod at the same address is another worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Worker {
    model: ModelKey,
    uid: String,
    place: Place,
}

/// Where a worker is asked, and how. The better is the smaller: a pod whose ports have just changed
/// stands in two slices for a moment, and what speaks TLS is not asked in plain HTTP for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    plain: bool,
    address: SocketAddr,
}

impl Cluster {
    /// Nothing known yet of `sources` namespaces (or of all, as one). Workers that speak TLS are
    /// asked so if there is somebody to know them by.
    pub(super) fn new(sources: usize, trust: Option<Trust>) -> Self {
        Self {
            models: (0..sources).map(|_| Mirror::default()).collect(),
            adapters: (0..sources).map(|_| Mirror::default()).collect(),
            skip_adapters: false,
            slices: (0..sources).map(|_| Mirror::default()).collect(),
            endpoints: HashMap::new(),
            trust,
            told_of_tls: false,
        }
    }

    /// Takes an event in. Returns whether the table is another one now.
    pub(super) fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Models(source, event) => {
                self.models[source].apply(event, |facts| facts.key.clone())
            }
            Change::Adapters(source, event) => self.adapters[source].apply(event, |facts| {
                (Arc::clone(&facts.model.namespace), Arc::clone(&facts.name))
            }),
            Change::NoAdapters(source) => {
                let adapters = &mut self.adapters[source];
                !std::mem::replace(&mut adapters.complete, true)
            }
            Change::Slices(source, event) => self.slices[source].apply(event, |facts| {
                (Arc::clone(&facts.model.namespace), facts.name.clone())
            }),
        }
    }

    /// Whether nothing but the Adapters has not been listed yet.
    pub(super) fn waits_for_adapters_only(&self) -> bool {
        self.knows_the_models() && !self.knows_the_adapters()
    }

    /// Waits for the Adapters no longer: what there is of them comes when it comes.
    pub(super) fn skip_adapters(&mut self) {
        self.skip_adapters = true;
    }

    fn knows_the_models(&self) -> bool {
        self.models.iter().all(|mirror| mirror.complete)
            && self.slices.iter().all(|mirror| mirror.complete)
    }

    fn knows_the_adapters(&self) -> bool {
        self.skip_adapters || self.adapters.iter().all(|mirror| mirror.complete)
    }

    /// The table of this state.
    pub(super) fn table(&mut self) -> Table {
        // A pod stands in a slice for each of its address families; one of them is enough.
        let mut workers: BTreeMap<(ModelKey, String), Place> = BTreeMap::new();
        let mut unreached = None;
        for slice in self.slices.iter().flat_map(|mirror| mirror.live.values()) {
            for worker in &slice.workers {
                let Some(place) = self.place(worker) else {
                    unreached = Some(&slice.model);
                    continue;
                };
                let identity = if worker.uid.is_empty() {
                    place.address.to_string()
                } else {
                    worker.uid.clone()
                };
                let chosen = workers
                    .entry((slice.model.clone(), identity))
                    .or_insert(place);
                *chosen = (*chosen).min(place);
            }
        }
        if let Some(model) = unreached
            && !std::mem::replace(&mut self.told_of_tls, true)
        {
            warn!(
                %model,
                "workers speak nothing but TLS, for which this gateway lacks --worker-ca-file: \
                 they get no requests"
            );
        }
        let mut known = HashMap::with_capacity(workers.len());
        let mut by_model: HashMap<ModelKey, Vec<Arc<Endpoint>>> = HashMap::new();
        for ((model, uid), place) in workers {
            let worker = Worker {
                model: model.clone(),
                uid,
                place,
            };
            let endpoint = match self.endpoints.remove(&worker) {
                Some(endpoint) => endpoint,
                None => Arc::new(self.endpoint(&model, place)),
            };
            known.insert(worker, Arc::clone(&endpoint));
            by_model.entry(model).or_default().push(endpoint);
        }
        self.endpoints = known;
        let models = self
            .models
            .iter()
            .flat_map(|mirror| mirror.live.values().cloned());
        let adapters = self
            .adapters
            .iter()
            .flat_map(|mirror| mirror.live.values().cloned());
        let complete = self.knows_the_models() && self.knows_the_adapters();
        Table::new(models, by_model, complete).with_adapters(adapters)
    }

    /// Where a worker is asked; `None` where that cannot be.
    fn place(&self, worker: &SliceWorker) -> Option<Place> {
        let tls = worker.tls.filter(|_| self.trust.is_some());
        Some(Place {
            address: SocketAddr::new(worker.address, tls.or(worker.plain)?),
            plain: tls.is_none(),
        })
    }

    fn endpoint(&self, model: &ModelKey, place: Place) -> Endpoint {
        match &self.trust {
            Some(trust) if !place.plain => {
                let name = worker_tls::name(&model.namespace, &model.name);
                Endpoint::secured(place.address, &name, trust)
            }
            _ => Endpoint::new(place.address),
        }
    }
}

/// The objects of one watch. A list that is coming in replaces them as a whole when it is
/// complete, so that a watch that starts anew never makes objects vanish for a moment.
#[derive(Debug)]
struct Mirror<K, T> {
    live: HashMap<K, T>,
    incoming: HashMap<K, T>,
    complete: bool,
}

impl<K, T> Default for Mirror<K, T> {
    fn default() -> Self {
        Self {
            live: HashMap::new(),
            incoming: HashMap::new(),
            complete: false,
        }
    }
}

impl<K: Eq + Hash, T: PartialEq> Mirror<K, T> {
    fn apply(&mut self, event: Event<T>, key: impl Fn(&T) -> K) -> bool {
        match event {
            Event::Init => {
                self.incoming.clear();
                false
            }
            Event::InitApply(object) => {
                self.incoming.insert(key(&object), object);
                false
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.incoming);
                let changed = !self.complete || self.live != listed;
                self.live = listed;
                self.complete = true;
                changed
            }
            Event::Apply(object) => {
                let key = key(&object);
                let changed = self.live.get(&key) != Some(&object);
                self.live.insert(key, object);
                changed
            }
            Event::Delete(object) => self.live.remove(&key(&object)).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Hope, Reference};

    fn facts(name: &str) -> ModelFacts {
        ModelFacts {
            key: ModelKey::new("a", name),
            reference: Reference::Head,
            commit: None,
            replicas: 1,
            suspended: false,
            hope: Hope::Good,
            reason: String::new(),
            message: String::new(),
            created: 0,
        }
    }

    fn worker(uid: &str, at: &str, plain: Option<u16>, tls: Option<u16>) -> SliceWorker {
        SliceWorker {
            uid: uid.to_owned(),
            address: at.parse().unwrap(),
            plain,
            tls,
        }
    }

    fn slice(name: &str, workers: &[(&str, &str)]) -> SliceFacts {
        let workers = workers
            .iter()
            .map(|(uid, at)| worker(uid, at, Some(8000), None));
        SliceFacts {
            name: name.to_owned(),
            model: ModelKey::new("a", "m"),
            workers: workers.collect(),
        }
    }

    fn started() -> Cluster {
        started_with(None)
    }

    fn started_with(trust: Option<Trust>) -> Cluster {
        let mut cluster = Cluster::new(1, trust);
        for change in [
            Change::Models(0, Event::Init),
            Change::Models(0, Event::InitApply(facts("m"))),
            Change::Models(0, Event::InitDone),
            Change::Adapters(0, Event::Init),
            Change::Adapters(0, Event::InitDone),
            Change::Slices(0, Event::Init),
            Change::Slices(0, Event::InitApply(slice("s", &[("u", "10.0.0.1")]))),
        ] {
            cluster.apply(change);
            assert!(!cluster.table().is_complete());
        }
        cluster.apply(Change::Slices(0, Event::InitDone));
        assert!(cluster.table().is_complete());
        cluster
    }

    fn endpoints(cluster: &mut Cluster) -> Vec<Arc<Endpoint>> {
        let table = cluster.table();
        table
            .models()
            .next()
            .map_or(Vec::new(), |entry| entry.endpoints.clone())
    }

    #[test]
    fn an_endpoint_stays_the_same_as_long_as_its_pod_does() {
        let mut cluster = started();
        let before = endpoints(&mut cluster);
        let more = slice("s", &[("u", "10.0.0.1"), ("v", "10.0.0.2")]);
        assert!(cluster.apply(Change::Slices(0, Event::Apply(more.clone()))));
        assert!(
            !cluster.apply(Change::Slices(0, Event::Apply(more))),
            "nothing new"
        );
        let after = endpoints(&mut cluster);
        assert_eq!(after.len(), 2);
        assert!(Arc::ptr_eq(&before[0], &after[0]));
        let replaced = slice("s", &[("w", "10.0.0.1")]);
        cluster.apply(Change::Slices(0, Event::Apply(replaced)));
        let last = endpoints(&mut cluster);
        assert_eq!(last.len(), 1);
        assert!(
            !Arc::ptr_eq(&last[0], &after[0]),
            "another pod took the address over"
        );
    }

    #[test]
    fn slices_are_joined_and_a_pod_with_two_addresses_counts_once() {
        let mut cluster = started();
        let v6 = slice("s6", &[("u", "fd00::1"), ("v", "fd00::2")]);
        cluster.apply(Change::Slices(0, Event::Apply(v6)));
        let found: Vec<_> = endpoints(&mut cluster)
            .iter()
            .map(|e| e.address().to_string())
            .collect();
        assert_eq!(found, ["10.0.0.1:8000", "[fd00::2]:8000"]);
    }

    #[test]
    fn workers_that_speak_tls_are_asked_so_by_a_gateway_that_knows_them_by_something() {
        let slices = |cluster: &mut Cluster| {
            let of = |name: &str, workers: Vec<SliceWorker>| SliceFacts {
                workers,
                ..slice(name, &[])
            };
            let plain = [
                worker("u", "10.0.0.1", Some(8000), None),
                worker("v", "10.0.0.2", Some(8000), None),
            ];
            let both = [worker("u", "10.0.0.1", Some(8000), Some(8443))];
            let only = [worker("w", "10.0.0.3", None, Some(8443))];
            for (name, workers) in [
                ("s", plain.to_vec()),
                ("t", both.into()),
                ("w", only.into()),
            ] {
                cluster.apply(Change::Slices(0, Event::Apply(of(name, workers))));
            }
            let found = endpoints(cluster);
            let mut found: Vec<_> = found.iter().map(|e| e.address().to_string()).collect();
            found.sort();
            found
        };
        let mut plain = started();
        let expected = ["10.0.0.1:8000", "10.0.0.2:8000"];
        assert_eq!(slices(&mut plain), expected, "one that knows nobody");
        let mut secure = started_with(Some(Trust::shared()));
        let before = endpoints(&mut secure);
        let expected = ["10.0.0.1:8443", "10.0.0.2:8000", "10.0.0.3:8443"];
        assert_eq!(slices(&mut secure), expected);
        // The pod of the first has begun to name another port; a request on it ends where it is.
        assert!(
            !endpoints(&mut secure)
                .iter()
                .any(|e| Arc::ptr_eq(e, &before[0]))
        );
    }

    #[test]
    fn a_watch_that_starts_anew_takes_nothing_away_until_its_list_is_complete() {
        let mut cluster = started();
        for event in [Event::Init, Event::InitApply(facts("n"))] {
            assert!(!cluster.apply(Change::Models(0, event)));
        }
        assert_eq!(endpoints(&mut cluster).len(), 1);
        assert!(cluster.apply(Change::Models(0, Event::InitDone)));
        let table = cluster.table();
        let names: Vec<_> = table
            .models()
            .map(|entry| entry.facts.key.to_string())
            .collect();
        assert_eq!(names, ["a/n"]);
        assert!(cluster.apply(Change::Models(0, Event::Delete(facts("n")))));
        assert!(!cluster.apply(Change::Models(0, Event::Delete(facts("n")))));
        assert!(cluster.apply(Change::Slices(0, Event::Delete(slice("s", &[])))));
    }

    fn adapter(name: &str, loaded: u32) -> Arc<AdapterFacts> {
        Arc::new(AdapterFacts {
            served: "sql".into(),
            loaded,
            ..AdapterFacts::example(name)
        })
    }

    #[test]
    fn adapters_come_change_and_go_with_their_resources() {
        let mut cluster = started();
        let loaded = |cluster: &mut Cluster| {
            let table = cluster.table();
            let found = table.adapter(&ModelKey::new("a", "m"), "sql").cloned();
            found.map(|facts| (facts.name.to_string(), facts.loaded))
        };
        let apply = |cluster: &mut Cluster, event| cluster.apply(Change::Adapters(0, event));
        assert!(apply(&mut cluster, Event::Apply(adapter("y", 0))));
        assert!(!apply(&mut cluster, Event::Apply(adapter("y", 0))));
        assert!(apply(&mut cluster, Event::Apply(adapter("y", 1))));
        assert_eq!(loaded(&mut cluster), Some(("y".to_owned(), 1)));
        assert!(apply(&mut cluster, Event::Apply(adapter("x", 0))));
        assert_eq!(loaded(&mut cluster), Some(("x".to_owned(), 0)));
        assert!(apply(&mut cluster, Event::Delete(adapter("x", 0))));
        assert_eq!(loaded(&mut cluster), Some(("y".to_owned(), 1)));
        for event in [Event::Init, Event::InitDone] {
            apply(&mut cluster, event);
        }
        assert_eq!(loaded(&mut cluster), None);
    }

    #[test]
    fn a_cluster_that_shows_no_adapters_is_known_without_them() {
        let mut cluster = Cluster::new(1, None);
        assert!(!cluster.waits_for_adapters_only());
        for change in [
            Change::Models(0, Event::Init),
            Change::Models(0, Event::InitApply(facts("m"))),
            Change::Models(0, Event::InitDone),
            Change::Slices(0, Event::InitDone),
        ] {
            cluster.apply(change);
        }
        assert!(cluster.waits_for_adapters_only());
        assert!(!cluster.table().is_complete());
        assert!(cluster.apply(Change::NoAdapters(0)));
        assert!(!cluster.apply(Change::NoAdapters(0)));
        assert!(!cluster.waits_for_adapters_only());
        assert!(cluster.table().is_complete());
        for event in [Event::InitApply(adapter("x", 0)), Event::InitDone] {
            cluster.apply(Change::Adapters(0, event));
        }
        assert_eq!(cluster.table().adapter_count(), 1);
        assert!(!cluster.apply(Change::NoAdapters(0)), "they are kept");
        assert_eq!(cluster.table().adapter_count(), 1);
    }

    #[test]
    fn adapters_that_do_not_come_are_not_waited_for() {
        let mut cluster = Cluster::new(1, None);
        cluster.apply(Change::Models(0, Event::InitDone));
        cluster.apply(Change::Slices(0, Event::InitDone));
        assert!(cluster.waits_for_adapters_only());
        cluster.skip_adapters();
        assert!(!cluster.waits_for_adapters_only() && cluster.table().is_complete());
    }
}
