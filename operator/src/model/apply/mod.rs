//! Makes the cluster what `build` says, and takes away what is old.

mod certificate;
pub mod prune;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt};

use super::{
    Context,
    build::{Desired, REVISION},
    fetch::Existing,
    validate::Plan,
};
use crate::{
    apply::ApplyError,
    volume::{self, shows_adapters},
};

impl Context {
    /// Makes the cluster what is desired, then prunes.
    ///
    /// # Errors
    /// See [`ApplyError`]. What was made before stays, and is built upon by the next attempt.
    pub(super) async fn apply(
        &self,
        plan: &Plan,
        desired: &Desired,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        // Invariant: without `..`, so that no child is forgotten here.
        let Desired {
            service,
            budget,
            worker_key,
            adapters,
            volume,
            deployment,
            kept_claims: _,
        } = desired;
        let owner = plan.owner();
        let (namespace, name) = (Some(plan.namespace.as_str()), plan.name.as_str());
        let cached = self.caches.services.get(namespace, name);
        self.applier
            .ensure(&owner, service, cached.as_deref())
            .await?;
        let cached = self.caches.budgets.get(namespace, name);
        self.applier
            .ensure(&owner, budget, cached.as_deref())
            .await?;
        if let Some(worker_key) = worker_key {
            self.applier.ensure(&owner, worker_key, None).await?;
        }
        self.certify(plan).await?;
        let (applier, caches, grants) = (&self.applier, &self.caches, &self.grants);
        volume::ensure(&self.client, applier, caches, grants, &owner, adapters).await?;
        if let Some(volume) = volume {
            volume::ensure(&self.client, applier, caches, grants, &owner, volume).await?;
        }
        if let Some(deployment) = deployment {
            let cached = self.caches.deployments.get(namespace, name);
            self.applier
                .ensure(&owner, deployment, cached.as_deref())
                .await?;
        }
        self.prune(plan, desired, existing).await
    }

    /// Deletes the claims of old commits; their volumes follow in the sweep.
    async fn prune(
        &self,
        plan: &Plan,
        desired: &Desired,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        // Invariant: without `..`, so that what is made more than once is thought of here.
        let Desired {
            // One of each, named after the Model: they go with it.
            service: _,
            budget: _,
            worker_key: _,
            // One, but for those before it that cannot be mounted any more, which go.
            adapters: _,
            // One for each content, of which those of old commits go.
            volume: _,
            deployment,
            kept_claims,
        } = desired;
        let Some(deployment) = deployment else {
            return Ok(());
        };
        // Not in the middle of a rollout, whose end decides what is old.
        let target = deployment.labels().get(REVISION).map(String::as_str);
        let pods = existing.pods.iter();
        let is_settled = existing.current_revision() == target
            && pods
                .clone()
                .all(|p| p.labels().get(REVISION).map(String::as_str) == target);
        if !is_settled {
            return Ok(());
        }
        let mut needed: BTreeSet<String> = pods
            .flat_map(|p| prune::claims_of(p).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        needed.extend(kept_claims.iter().cloned());
        let keep = usize::try_from(plan.spec.storage.keep_revisions).unwrap_or(1);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &plan.namespace);
        let superfluous = prune::superfluous(&existing.revisions(), &needed, keep);
        for claim in &existing.claims {
            let name = claim.name_any();
            let is_broken = !existing.is_usable(&name) && !needed.contains(&name);
            // That of an earlier release, once nothing is made of it any more.
            let is_former = shows_adapters(claim.as_ref()) && !needed.contains(&name);
            if is_broken || is_former || superfluous.contains(&name) {
                self.applier.delete(&api, claim.as_ref()).await?;
            }
        }
        Ok(())
    }
}
