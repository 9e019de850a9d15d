use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Secret, Service},
    policy::v1::PodDisruptionBudget,
};

use super::{
    Notes, Plan, Workers, adapters_volume, bound_volume, deployment, disruption_budget, new_volume,
    service, worker_key,
};
use crate::volume::BoundVolume;

/// Everything that there should be for a Model. Whoever acts on it takes it apart without `..`, so
/// that a child that is added here cannot be forgotten there.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Where workers answer.
    pub service: Service,
    /// How many of them may be taken away at once.
    pub budget: PodDisruptionBudget,
    /// What they ask for.
    pub worker_key: Option<Secret>,
    /// What shows them the Model's adapters.
    pub adapters: BoundVolume,
    /// What they mount, if it can be made (again).
    pub volume: Option<BoundVolume>,
    /// What makes them, if there is something to run.
    pub deployment: Option<Deployment>,
    /// Claims that stay, whether pods mount them or not.
    pub kept_claims: BTreeSet<String>,
}

/// What there should be so that `target` runs.
pub fn desired(plan: &Plan, target: Option<&Workers>, notes: &Notes) -> Desired {
    let good = notes.good.as_ref();
    let volume = target.and_then(|target| {
        let new = new_volume(plan, target.content.as_ref()?, &target.revision.claim);
        Some(bound_volume(plan, &new))
    });
    // Invariant: what was last good stays until something else is, even if no pod has it now.
    let kept = [target, good].into_iter().flatten();
    Desired {
        service: service(plan, good),
        budget: disruption_budget(plan),
        worker_key: worker_key(plan),
        adapters: adapters_volume(plan),
        volume,
        deployment: target.map(|target| deployment(plan, target, notes)),
        kept_claims: kept
            .flat_map(|w| [Some(w.revision.claim.as_str()), w.adapters_claim()])
            .flatten()
            .chain([plan.adapters_claim.as_str()])
            .map(str::to_owned)
            .collect(),
    }
}
