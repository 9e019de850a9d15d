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

proptest! {
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
        let picked = entry(endpoints).pick(&excluded, now);
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
        let _leases: Vec<_> = (0..sent).map(|_| entry.pick(&[], Instant::now())).collect();
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
        let lease = entry.pick(&[], Instant::now()).unwrap();
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
    assert!(entry.pick(&[], now).is_none());
    let next = entry.next_fit(&[]).unwrap();
    assert!(next > now && next < now + Duration::from_secs(1));
    assert!(Arc::ptr_eq(
        entry.pick(&[], next).unwrap().endpoint(),
        &endpoints[1]
    ));
    assert!(entry.next_fit(&endpoints).is_none());
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
        let lease = entry.pick(&[], now).unwrap();
        assert!(Arc::ptr_eq(lease.endpoint(), &endpoints[1]));
    }
    endpoints[1].answered_badly(now, now);
    let lease = entry.pick(&[], now).unwrap();
    assert!(
        Arc::ptr_eq(lease.endpoint(), &endpoints[0]),
        "the less loaded one"
    );
}
