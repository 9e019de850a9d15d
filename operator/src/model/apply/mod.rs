//! Makes the cluster what `build` says, and takes away what is old.

pub mod prune;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt};

use super::{
    Context,
    build::{self, Notes, Workers},
    fetch::Existing,
    validate::Plan,
};
use crate::{apply::ApplyError, volume};

impl Context {
    pub(super) async fn apply(
        &self,
        plan: &Plan,
        target: Option<&Workers>,
        notes: &Notes,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        let owner = plan.owner();
        let namespace = Some(plan.namespace.as_str());
        let service = self.caches.services.get(namespace, &plan.name);
        self.applier
            .ensure(
                &owner,
                &build::service(plan, notes.good.as_ref()),
                service.as_deref(),
            )
            .await?;
        let budget = self.caches.budgets.get(namespace, &plan.name);
        self.applier
            .ensure(&owner, &build::disruption_budget(plan), budget.as_deref())
            .await?;
        if let Some(secret) = build::worker_key(plan) {
            self.applier.ensure(&owner, &secret, None).await?;
        }
        let Some(target) = target else {
            return Ok(());
        };
        if let Some(content) = &target.content {
            let new = build::new_volume(plan, content, &target.revision.claim);
            let bound = Box::new(build::bound_volume(plan, &new));
            volume::ensure(&self.client, &self.applier, &self.caches, &owner, &bound).await?;
        }
        let deployment = self.caches.deployments.get(namespace, &plan.name);
        let desired = Box::new(build::deployment(plan, target, notes));
        self.applier
            .ensure(&owner, &*desired, deployment.as_deref())
            .await?;
        self.prune(plan, target, notes.good.as_ref(), existing)
            .await
    }

    /// Deletes the claims of old commits; their volumes follow in the sweep.
    async fn prune(
        &self,
        plan: &Plan,
        target: &Workers,
        good: Option<&Workers>,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        // Not in the middle of a rollout, whose end decides what is old.
        let is_target = |revision: Option<&str>| revision == Some(target.digest());
        let pods = existing.pods.iter();
        let is_settled = is_target(existing.current_revision())
            && pods
                .clone()
                .all(|p| is_target(p.labels().get(build::REVISION).map(String::as_str)));
        if !is_settled {
            return Ok(());
        }
        let mut needed: BTreeSet<String> = pods
            .flat_map(|p| prune::claims_of(p).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        needed.insert(target.revision.claim.clone());
        // Invariant: what was last good stays until something else is, even if no pod has it now.
        needed.extend(good.map(|g| g.revision.claim.clone()));
        let keep = usize::try_from(plan.spec.storage.keep_revisions).unwrap_or(1);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &plan.namespace);
        let superfluous = prune::superfluous(&existing.revisions(), &needed, keep);
        for claim in &existing.claims {
            let name = claim.name_any();
            let is_broken = !existing.is_usable(&name) && !needed.contains(&name);
            if is_broken || superfluous.contains(&name) {
                self.applier.delete(&api, claim.as_ref()).await?;
            }
        }
        Ok(())
    }
}
