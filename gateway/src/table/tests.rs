//! The table against a model of it: a plain list of namespaces and names.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::endpoint::Lease;

fn facts(namespace: &str, name: &str) -> ModelFacts {
    ModelFacts {
        key: ModelKey::new(namespace, name),
        reference: Reference::Branch("main".to_owned()),
        commit: Some("0123456789abcdef0123456789abcdef01234567".parse().unwrap()),
        replicas: 1,
        suspended: false,
        hope: Hope::Good,
        reason: String::new(),
        message: String::new(),
        created: 0,
    }
}

fn entry(endpoints: Vec<Arc<Endpoint>>) -> ModelEntry {
    ModelEntry {
        facts: facts("a", "m"),
        endpoints,
    }
}

fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
    (0..count)
        .map(|i| Arc::new(Endpoint::new(([10, 0, 0, 1], i as u16).into())))
        .collect()
}

fn adapter(namespace: &str, model: &str, name: &str, served: &str, created: i64) -> AdapterFacts {
    AdapterFacts {
        model: ModelKey::new(namespace, model),
        served: served.into(),
        created,
        ..AdapterFacts::example(name)
    }
}

/// Namespace, Model, name, served name, time of making, and whether it was refused.
type Drawn = (String, String, String, String, i64, bool);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    let one = ("[ab]", "[mn]", "[xyz]", "[mst]", 0_i64..3, any::<bool>());
    proptest::collection::vec(one, 0..12).prop_map(|mut all| {
        all.sort_by(|a, b| (&a.0, &a.2).cmp(&(&b.0, &b.2)));
        all.dedup_by(|a, b| (&a.0, &a.2) == (&b.0, &b.2));
        all
    })
}

proptest! {
    #[test]
    fn every_adapter_is_found_by_its_ids_and_a_name_of_several_by_none(
        models in proptest::collection::btree_set(("[ab]", "[mn]"), 0..4),
        adapters in drawn(), asked_namespace in proptest::option::of("[ab]"),
        asked_name in "[mnst]",
    ) {
        let table = Table::new(models.iter().map(|(ns, n)| facts(ns, n)), HashMap::new(), true);
        let table = table.with_adapters(adapters.iter().map(|(ns, model, name, served, at, refused)| {
            let mut facts = adapter(ns, model, name, served, *at);
            if *refused {
                facts.hope = Hope::None;
            }
            Arc::new(facts)
        }));
        // The oldest of each Model and served name.
        let mut owners: BTreeMap<(&str, &str, &str), (i64, &str, bool)> = BTreeMap::new();
        for (ns, model, name, served, at, refused) in &adapters {
            if models.contains(&(ns.clone(), model.clone())) {
                let this = (*at, name.as_str(), *refused);
                let owner = owners.entry((ns, model, served)).or_insert(this);
                *owner = (*owner).min(this);
            }
        }
        prop_assert_eq!(table.adapter_count(), owners.len());
        for ((ns, model, served), (_, name, _)) in &owners {
            let key = ModelKey::new(ns, model);
            prop_assert_eq!(&*table.adapter(&key, served).unwrap().name, *name);
        }

        let mut ids: BTreeSet<String> = table.models().map(|entry| table.id(&entry.facts.key)).collect();
        let mut listed = 0;
        for facts in table.models().flat_map(|entry| table.adapters(&entry.facts.key)) {
            if facts.is_refused() {
                continue;
            }
            let id = table.adapter_id(facts);
            let asked: Asked = id.parse().unwrap();
            let route = table.route(&asked).unwrap();
            prop_assert_eq!(&route.entry.facts.key, &facts.model);
            let named = match asked.adapters().next() {
                Some(name) => table.adapter(&facts.model, name).unwrap(),
                None => route.adapter.unwrap(),
            };
            prop_assert_eq!(named, facts);
            ids.insert(id);
            listed += 1;
        }
        prop_assert_eq!(ids.len(), models.len() + listed, "ids are unique");

        let asked = match &asked_namespace {
            Some(namespace) => format!("{namespace}/{asked_name}"),
            None => asked_name.clone(),
        };
        let of_namespace = |ns: &str| asked_namespace.as_ref().is_none_or(|asked| asked == ns);
        let same_models = models.iter().filter(|(ns, n)| of_namespace(ns) && *n == asked_name).count();
        let same: Vec<_> = owners
            .iter()
            .filter(|((ns, _, served), _)| of_namespace(ns) && *served == asked_name)
            .map(|(_, (_, _, refused))| *refused)
            .collect();
        let good = same.iter().filter(|refused| !**refused).count();
        let same = if good > 0 { good } else { same.len() };
        match table.route(&asked.parse().unwrap()) {
            Ok(Route { adapter: None, .. }) => prop_assert_eq!(same_models, 1),
            Ok(Route { adapter: Some(_), .. }) => prop_assert_eq!((same_models, same), (0, 1)),
            Err(ResolveError::Unknown { .. }) => prop_assert_eq!((same_models, same), (0, 0)),
            Err(ResolveError::Ambiguous { .. }) => prop_assert!(same_models > 1),
            Err(ResolveError::AmbiguousAdapter { models, .. }) => {
                prop_assert!(same_models == 0 && same > 1);
                prop_assert_eq!(models.is_empty(), asked_namespace.is_none());
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn every_model_is_found_by_its_ids_and_nothing_else_is(
        models in proptest::collection::btree_set(("[ab]", "[mn]{1,2}"), 0..8),
        asked_namespace in proptest::option::of("[abc]"), asked_name in "[mno]{1,2}",
    ) {
        let table = Table::new(models.iter().map(|(ns, n)| facts(ns, n)), HashMap::new(), true);
        prop_assert_eq!(table.models().len(), models.len());
        for entry in table.models() {
            let key = &entry.facts.key;
            for id in [table.id(key), key.to_string()] {
                let found = table.resolve(&id.parse().unwrap()).unwrap();
                prop_assert_eq!(&found.facts.key, key);
            }
        }
        let ids: BTreeSet<_> = table.models().map(|entry| table.id(&entry.facts.key)).collect();
        prop_assert_eq!(ids.len(), models.len(), "ids are unique");

        let asked = match &asked_namespace {
            Some(namespace) => format!("{namespace}/{asked_name}"),
            None => asked_name.clone(),
        };
        let expected = models
            .iter()
            .filter(|(ns, n)| *n == asked_name && asked_namespace.as_ref().is_none_or(|a| a == ns))
            .count();
        match table.resolve(&asked.parse().unwrap()) {
            Ok(_) => prop_assert_eq!(expected, 1),
            Err(ResolveError::Unknown { .. }) => prop_assert_eq!(expected, 0),
            Err(ResolveError::Ambiguous { .. }) => prop_assert!(expected > 1),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn the_least_loaded_fit_endpoint_is_picked(
        loads in proptest::collection::vec((0_usize..4, any::<bool>(), any::<bool>()), 0..8),
    ) {
        let now = Instant::now();
        let endpoints = endpoints(loads.len());
        let mut leases = Vec::new();
        let mut excluded = Vec::new();
        for (endpoint, (load, unfit, out)) in endpoints.iter().zip(&loads) {
            leases.extend((0..*load).map(|_| Lease::new(Arc::clone(endpoint))));
            if *unfit {
                endpoint.failed(now, now);
            }
            if *out {
                excluded.push(Arc::clone(endpoint));
            }
        }
        let least = loads.iter().filter(|(_, unfit, out)| !unfit && !out).map(|l| l.0).min();
        let picked = entry(endpoints).pick(&excluded, &[], now);
        prop_assert_eq!(picked.as_ref().map(|lease| lease.endpoint().in_flight() - 1), least);
        if let Some(lease) = picked {
            prop_assert!(lease.endpoint().is_fit(now));
            prop_assert!(!excluded.iter().any(|e| Arc::ptr_eq(e, lease.endpoint())));
        }
    }

    #[test]
    fn loads_never_differ_by_more_than_one_when_nothing_ends(count in 1_usize..8, sent in 0_usize..60) {
        let endpoints = endpoints(count);
        let entry = entry(endpoints.clone());
        let _leases: Vec<_> = (0..sent).map(|_| entry.pick(&[], &[], Instant::now())).collect();
        let loads: Vec<_> = endpoints.iter().map(|e| e.in_flight()).collect();
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
        prop_assert_eq!(loads.iter().sum::<usize>(), sent);
    }
}

#[test]
fn equally_loaded_endpoints_are_picked_equally_often() {
    let endpoints = endpoints(4);
    let entry = entry(endpoints.clone());
    let mut counts = [0; 4];
    for _ in 0..4000 {
        let lease = entry.pick(&[], &[], Instant::now()).unwrap();
        counts[lease.endpoint().address().port() as usize] += 1;
    }
    // Six standard deviations of a binomial distribution.
    assert!(
        counts.iter().all(|count| (835..1165).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn the_next_try_is_when_the_first_endpoint_is_fit_again() {
    let now = Instant::now();
    let endpoints = endpoints(2);
    endpoints[0].drains(now);
    endpoints[1].failed(now, now);
    let entry = entry(endpoints.clone());
    assert!(entry.pick(&[], &[], now).is_none());
    let next = entry.next_fit(&[], &[]).unwrap();
    assert!(next > now && next < now + Duration::from_secs(1));
    assert!(Arc::ptr_eq(
        entry.pick(&[], &[], next).unwrap().endpoint(),
        &endpoints[1]
    ));
    assert!(entry.next_fit(&endpoints, &[]).is_none());
}

#[test]
fn one_that_fails_fast_draws_no_requests_and_the_last_one_is_never_given_up() {
    let now = Instant::now();
    let endpoints = endpoints(2);
    let entry = entry(endpoints.clone());
    endpoints[0].answered_badly(now, now);
    let _busy: Vec<_> = (0..50)
        .map(|_| Lease::new(Arc::clone(&endpoints[1])))
        .collect();
    for _ in 0..10 {
        let lease = entry.pick(&[], &[], now).unwrap();
        assert!(Arc::ptr_eq(lease.endpoint(), &endpoints[1]));
    }
    endpoints[1].answered_badly(now, now);
    let lease = entry.pick(&[], &[], now).unwrap();
    assert!(
        Arc::ptr_eq(lease.endpoint(), &endpoints[0]),
        "the less loaded one"
    );
}

#[test]
fn a_worker_that_lacks_an_adapter_takes_only_requests_without_it() {
    let now = Instant::now();
    let endpoints = endpoints(2);
    let entry = entry(endpoints.clone());
    let (sql, tone) = (
        adapter("a", "m", "x", "sql", 0),
        adapter("a", "m", "y", "tone", 0),
    );
    let (sql, tone) = (Arc::new(sql), Arc::new(tone));
    endpoints[0].lacks(&sql, now, now);
    for _ in 0..10 {
        let lease = entry.pick(&[], &[&tone, &sql], now).unwrap();
        assert!(Arc::ptr_eq(lease.endpoint(), &endpoints[1]));
    }
    let _busy: Vec<_> = (0..50)
        .map(|_| Lease::new(Arc::clone(&endpoints[1])))
        .collect();
    for adapters in [&[][..], &[&tone]] {
        let lease = entry.pick(&[], adapters, now).unwrap();
        assert!(Arc::ptr_eq(lease.endpoint(), &endpoints[0]));
    }
    endpoints[1].lacks(&sql, now, now);
    assert!(entry.pick(&[], &[&sql], now).is_none());
    assert_eq!(entry.lacking(&[], &[&tone, &sql], now), Some(&sql));
    assert_eq!(entry.lacking(&endpoints, &[&sql], now), None);
    let next = entry.next_fit(&[], &[&sql]).unwrap();
    assert!(next > now);
    let tried = entry.pick(&[], &[&sql], next).unwrap();
    assert!(
        entry.pick(&[], &[&sql], next).is_some(),
        "the other is tried too"
    );
    assert!(entry.pick(&[], &[&sql], next).is_none(), "each by one");
    tried.endpoint().has(&[&sql]);
    assert!(entry.pick(&[], &[&sql], next).is_some());
}

#[test]
fn a_message_lists_only_so_many_names_and_none_of_a_namespace_that_was_not_asked_for() {
    let models = (0..20).map(|index| facts("a", &format!("m{index:02}")));
    let table = Table::new(models, HashMap::new(), true);
    let adapters = (0..20).map(|index| {
        let model = format!("m{index:02}");
        Arc::new(adapter("a", &model, &model, "sql", 0))
    });
    let table = table.with_adapters(adapters);
    let message = |asked: &str| {
        table
            .route(&asked.parse().unwrap())
            .unwrap_err()
            .to_string()
    };
    let listed = message("a/sql");
    assert!(
        listed.contains("a/m07+sql") && listed.ends_with(", and others"),
        "{listed}"
    );
    assert!(!listed.contains("m08"), "{listed}");
    let bare = message("sql");
    assert!(!bare.contains("a/") && !bare.contains("m0"), "{bare}");
}
