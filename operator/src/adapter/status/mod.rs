//! What is told of an Adapter: pure, but for the time of transitions, which comes in.

mod events;
mod standing;
mod states;

use hyprstream_api::{
    Adapter, AdapterReplicas, AdapterStatus,
    condition::{ACCEPTED, LOADED, READY, SOURCE_RESOLVED, STALLED},
};
use hyprstream_contract::adapters::AdapterEntry;
use k8s_openapi::jiff::Timestamp;

pub use self::events::events;
use self::standing::{Standing, Tally};
use super::{
    apply::Facts,
    validate::{Invalid, Plan},
};
use crate::{reporting::conditions::condition, source::Findings};

/// Everything that the status follows from.
pub struct Observed<'a> {
    /// The Adapter with its newest known status.
    pub adapter: &'a Adapter,
    /// The status before.
    pub before: &'a AdapterStatus,
    /// The spec, if it can work.
    pub plan: Result<&'a Plan, &'a Invalid>,
    /// What is known of the source.
    pub findings: &'a Findings,
    /// The entry that it should have, once its files lie on the registry.
    pub wanted: Option<&'a AdapterEntry>,
    /// What is known of list and workers, once anything is.
    pub facts: Option<&'a Facts>,
    /// How many workers the Model wants.
    pub replicas: i32,
    /// The annotation that asked for this reconciliation, or for an earlier one.
    pub handled: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

impl Observed<'_> {
    /// What workers should have: the latest, or what is known of it, as after a start.
    fn target(&self) -> Option<&AdapterEntry> {
        self.wanted
            .or_else(|| self.facts.and_then(|facts| facts.listed.as_ref()))
    }

    /// What is known, if the Adapter is one that may be served.
    fn accepted(&self) -> Option<&Facts> {
        let facts = self.facts.filter(|_| self.plan.is_ok())?;
        facts.rival.is_none().then_some(facts)
    }

    /// How the ready workers stand to it; `None` if they were not asked yet.
    fn tally(&self) -> Option<Tally<'_>> {
        let facts = self.accepted()?;
        Some(Tally::of(facts.workers.as_deref()?, self.target()))
    }

    /// No worker is wanted, and none runs.
    fn is_idle(&self) -> bool {
        self.replicas == 0 && self.tally().is_none_or(|tally| tally.standings.is_empty())
    }

    /// The registry has the entry that workers should have.
    fn is_listed(&self) -> bool {
        let listed = self.facts.and_then(|facts| facts.listed.as_ref());
        listed.is_some() && listed == self.target()
    }

    /// Whether the workers were asked about what is listed. If nothing is known of the list, as after
    /// a start of the operator, it may be that they have it all the same.
    fn is_asked(&self) -> bool {
        self.facts
            .is_some_and(|facts| facts.workers.is_some() || facts.listed.is_none())
    }

    /// What was told before of the same spec counts while nothing else is known.
    fn is_same_spec(&self) -> bool {
        self.before.observed_generation == self.adapter.metadata.generation
    }
}

/// The status.
pub fn status(observed: &Observed<'_>) -> AdapterStatus {
    let Observed {
        adapter, before, ..
    } = observed;
    let tally = observed.tally();
    let source = states::source(observed);
    let accepted = states::accepted(observed);
    let loaded = states::loaded(observed, tally.as_ref(), &accepted);
    let ready = states::ready(observed, tally.as_ref(), [&source, &accepted, &loaded]);
    let stalled = states::stalled(observed, &accepted);
    let states = [
        (READY, ready),
        (SOURCE_RESOLVED, source),
        (ACCEPTED, accepted),
        (LOADED, loaded),
        (STALLED, stalled),
    ];
    let generation = adapter.metadata.generation;
    let conditions = states
        .into_iter()
        .map(|(kind, state)| {
            let known = before.condition(kind);
            condition(known, kind, state, generation, observed.now)
        })
        .collect();
    AdapterStatus {
        observed_generation: generation,
        served_name: Some(adapter.served_name().to_owned()),
        replicas: replicas(observed, tally.as_ref()),
        last_handled_reconcile_at: observed.handled.map(str::to_owned),
        conditions,
        ..content(observed, tally.as_ref())
    }
}

fn replicas(observed: &Observed<'_>, tally: Option<&Tally<'_>>) -> Option<AdapterReplicas> {
    let Some(tally) = tally else {
        // Nobody was asked yet, as after a start of the operator.
        let is_refused =
            observed.plan.is_err() || observed.facts.is_some_and(|f| f.rival.is_some());
        return observed.before.replicas.filter(|_| !is_refused);
    };
    let count = |is: &dyn Fn(&Standing<'_>) -> bool| {
        let count = tally.standings.iter().filter(|(_, s)| is(s)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    };
    Some(AdapterReplicas {
        desired: count(&|_| true),
        loaded: count(&|s| matches!(s, Standing::Loaded(_))),
        failed: count(&|s| matches!(s, Standing::Refused | Standing::Hindered(..))),
    })
}

/// Commit, digest, hash, rank and size: what answers, and with the first of its kind what is about
/// to.
fn content(observed: &Observed<'_>, tally: Option<&Tally<'_>>) -> AdapterStatus {
    let before = observed.before;
    let kept = || AdapterStatus {
        commit: before.commit.clone(),
        digest: before.digest.clone(),
        sha256: before.sha256.clone(),
        rank: before.rank,
        size: before.size,
        ..AdapterStatus::default()
    };
    let is_refused = observed.plan.is_err() || observed.facts.is_some_and(|f| f.rival.is_some());
    if is_refused {
        return AdapterStatus::default();
    }
    let (Some(tally), Some(target)) = (tally, observed.target()) else {
        return kept();
    };
    let commit = Some(target.commit.to_string());
    if observed.is_idle() {
        return if before.commit == commit {
            kept()
        } else {
            AdapterStatus {
                commit,
                ..AdapterStatus::default()
            }
        };
    }
    match tally.loaded() {
        Some(served) if tally.is_complete() || before.digest.is_none() => AdapterStatus {
            commit,
            digest: Some(served.digest.clone()),
            sha256: Some(served.sha256.clone()),
            rank: i32::try_from(served.rank).ok(),
            size: i64::try_from(served.size).ok(),
            ..AdapterStatus::default()
        },
        _ => kept(),
    }
}

#[cfg(test)]
mod tests;
