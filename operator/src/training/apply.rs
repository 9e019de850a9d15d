//! Makes the cluster what `build` says, and lets go what a job held.

use hyprstream_api::{TrainingJob, TrainingJobStatus};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{PersistentVolumeClaim, Volume},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use super::{
    Context,
    build::{Account, Desired, TRUST},
    fetch::Existing,
    kueue, status,
    validate::Plan,
};
use crate::{
    apply::{ApplyError, request_error},
    volume,
};

/// Seconds that a Job may run which is to end now; the least that there may be.
const OVER: i64 = 1;

fn mounts_trust(batch: &Job) -> bool {
    volumes(batch).any(|volume| volume.name == TRUST)
}

fn mounts_claim(batch: &Job, name: &str) -> bool {
    let mut claims = volumes(batch).filter_map(|v| v.persistent_volume_claim.as_ref());
    claims.any(|claim| claim.claim_name == name)
}

fn volumes(batch: &Job) -> impl Iterator<Item = &Volume> {
    let spec = batch.spec.iter();
    let pods = spec.filter_map(|spec| spec.template.spec.as_ref());
    pods.flat_map(|pod| pod.volumes.iter().flatten())
}

impl Context {
    /// Makes the cluster what is desired. A Job that is there is not written again but for
    /// `suspend`, so that neither another release nor Kueue ([`kueue`]) is in each other's way.
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
            account,
            key,
            config,
            trust,
            workspace,
            dataset,
            batch,
        } = desired;
        let owner = plan.owner();
        let (applier, caches, grants) = (&self.applier, &self.caches, &self.grants);
        if let Some(Account {
            account,
            role,
            binding,
        }) = account
        {
            applier.ensure(&owner, account, None).await?;
            applier.ensure(&owner, role, None).await?;
            applier.ensure(&owner, binding, None).await?;
        }
        applier.ensure(&owner, key, None).await?;
        if existing.batch.is_none() {
            applier.ensure(&owner, config, None).await?;
        }
        // One that began before there was TLS goes on without.
        let wants_trust = existing
            .batch
            .as_ref()
            .is_none_or(|batch| mounts_trust(batch));
        if let Some(trust) = trust.as_ref().filter(|_| wants_trust) {
            applier.ensure(&owner, trust, None).await?;
        }
        for bound in [Some(workspace), dataset.as_ref()].into_iter().flatten() {
            // Another release may reckon with another size, and a Job keeps to what it mounts.
            let is_mounted = |batch| mounts_claim(batch, &bound.claim.name_any());
            if existing.batch.as_deref().is_none_or(is_mounted) {
                volume::ensure(&self.client, applier, caches, grants, &owner, bound).await?;
            }
        }
        match &existing.batch {
            // Kueue would start it, and then be told to stop it.
            None if plan.spec.suspend && plan.kueue.contains_key(kueue::QUEUE) => Ok(()),
            None => {
                let api: Api<Job> = Api::namespaced(self.client.clone(), &plan.namespace);
                applier.create(&api, batch, |job| owner.owns(job)).await
            }
            Some(batch) => self.set_suspend(batch, plan.spec.suspend).await,
        }
    }

    /// Only stops a Job or lets it go on.
    pub(super) async fn stop_or_go_on(
        &self,
        job: &TrainingJob,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        match &existing.batch {
            Some(batch) => self.set_suspend(batch, job.spec.suspend).await,
            None => Ok(()),
        }
    }

    async fn set_suspend(&self, batch: &Job, suspend: bool) -> Result<(), ApplyError> {
        let is = batch.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false);
        let is_ours = kueue::is_ours(batch);
        // What somebody else stopped is theirs to let go on.
        let is_as_wished = if suspend { is && is_ours } else { !is_ours };
        if is_as_wished {
            return Ok(());
        }
        let by = batch.owner_references().first().map(|owner| &*owner.uid);
        let by = by.filter(|_| suspend).unwrap_or_default();
        let mark = json!({"metadata": {"annotations": {kueue::SUSPENDED_BY: by}}});
        if kueue::queue(batch).is_some() {
            let is_known = kueue::set_active(&self.client, batch, !suspend).await?;
            // One that waits without a Workload begins stopped, and is looked at when it does not.
            if is_ours == suspend || is && !is_known && suspend {
                return Ok(());
            }
            if is_known || !suspend {
                return self.patch(batch, mark).await;
            }
        }
        let mut change = mark;
        change["spec"]["suspend"] = json!(suspend);
        self.patch(batch, change).await
    }

    async fn patch(&self, batch: &Job, change: serde_json::Value) -> Result<(), ApplyError> {
        let name = batch.name_any();
        let namespace = batch.namespace().unwrap_or_default();
        let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        api.patch(&name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .map(drop)
            .map_err(|source| request_error("patch", "Job", &name, source))
    }

    /// Has the Job of one that was given up here end too, with its pod: Kubernetes fails it for its
    /// deadline, and keeps what its pods wrote.
    pub(super) async fn end(&self, existing: &Existing) -> Result<(), ApplyError> {
        let Some(batch) = &existing.batch else {
            return Ok(());
        };
        let deadline = batch.spec.as_ref().and_then(|s| s.active_deadline_seconds);
        if status::is_over(batch) || deadline == Some(OVER) {
            return Ok(());
        }
        self.patch(batch, json!({"spec": {"activeDeadlineSeconds": OVER}}))
            .await
    }

    /// Ends the Job of a job that is over, deletes its claims, whose volumes the sweep takes, and the
    /// job when its time has come.
    pub(super) async fn let_go(
        &self,
        job: &TrainingJob,
        after: &TrainingJobStatus,
        existing: &Existing,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        self.end(existing).await?;
        let namespace = job.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        for claim in &existing.claims {
            self.applier.delete(&api, claim.as_ref()).await?;
        }
        if status::left_to_live(job, after, now).is_none_or(|left| !left.is_zero()) {
            return Ok(());
        }
        let api: Api<TrainingJob> = Api::namespaced(self.client.clone(), &namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: job.uid(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        let name = job.name_any();
        match api.delete(&name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(source) => Err(request_error("delete", "TrainingJob", &name, source)),
        }
    }
}
