//! The reconciliation of one Model.

pub mod apply;
pub mod build;
pub mod census;
pub mod decide;
pub mod events;
pub mod fetch;
pub mod prune;
pub mod status;
pub mod validate;

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyprstream_api::{FailedCommit, Model, ModelStatus};
use hyprstream_contract::label;
use k8s_openapi::{api::core::v1::PersistentVolumeClaim, jiff::Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;

use self::{
    apply::{Applier, ApplyError, Help},
    build::{NewVolume, Revision},
    census::{Census, census},
    decide::{Situation, decide},
    events::Recorder,
    fetch::Existing,
    status::Observed,
    validate::{Plan, validate},
};
use crate::{
    args::Images,
    cache::Caches,
    metrics::Metrics,
    source::{Findings, Sources},
};

/// How often everything is looked at again though nothing happened.
const RESYNC: Duration = Duration::from_secs(900);
/// Longest pause after failed requests.
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How often the kubelet's events about a mount are asked for.
const MOUNT_CHECK: Duration = Duration::from_secs(5);

/// What reconciliations share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What there is.
    pub caches: Caches,
    /// What is known of repositories.
    pub sources: Arc<Sources>,
    /// Writes objects.
    pub applier: Arc<Applier>,
    /// Writes events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: Metrics,
    /// Images of the workers.
    pub images: Images,
    /// What is remembered of Models, by UID.
    pub memory: Arc<Memory>,
}

/// What is remembered of Models between reconciliations. Nothing in it is needed to converge.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<String, Remembered>>);

#[derive(Default)]
struct Remembered {
    /// Failed reconciliations in a row.
    failures: u32,
    /// The status last written, and the version of the object with it.
    written: Option<(u64, ModelStatus)>,
    /// The pod whose mount was last asked after, when, and the answer.
    mount: Option<(String, Instant, Option<String>)>,
}

impl Memory {
    fn with<T>(&self, uid: &str, look: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(all.entry(uid.to_owned()).or_default())
    }

    /// Forgets Models that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|uid, _| keep(uid));
    }
}

/// Brings the cluster nearer to what a Model asks for and says in its status how far it is. Never
/// fails: an error is in the status, and in when to look again.
pub async fn reconcile(model: Arc<Model>, context: Arc<Context>) -> Result<Action, Infallible> {
    let started = Instant::now();
    context.caches.ready().await;
    let action = if model.metadata.deletion_timestamp.is_some() {
        // The garbage collector takes what the Model owns, and the sweep its volumes.
        context.sources.forget(&model.uid().unwrap_or_default());
        Action::await_change()
    } else {
        context.reconcile(&model).await
    };
    context
        .metrics
        .reconcile_seconds
        .observe(started.elapsed().as_secs_f64());
    Ok(action)
}

/// What a reconciliation came to.
#[derive(Default)]
struct Outcome {
    target: Option<Revision>,
    failed: Option<FailedCommit>,
    error: Option<ApplyError>,
}

impl Context {
    async fn reconcile(&self, model: &Model) -> Action {
        let uid = model.uid().unwrap_or_default();
        let before = self.newest_status(model, &uid);
        let plan = validate(model, &self.images);
        let reconcile_at = model
            .annotations()
            .get(label::RECONCILE_AT)
            .map(String::as_str);
        let handled = before.last_handled_reconcile_at.as_deref();
        let retry = !model.spec.suspend && reconcile_at.is_some() && reconcile_at != handled;
        let findings = match &plan {
            Ok(plan) if !model.spec.suspend => self.sources.observe(
                &uid,
                &ObjectRef::from_obj(model),
                &plan.source,
                reconcile_at,
            ),
            _ => {
                self.sources.forget(&uid);
                Findings::default()
            }
        };
        let existing = Existing::of(model, &self.caches);
        let now = Timestamp::now();

        let mut outcome = Outcome {
            target: existing.current(),
            failed: before.failed.clone(),
            error: None,
        };
        if let Ok(plan) = &plan
            && !model.spec.suspend
        {
            let new = findings
                .mirrored
                .as_ref()
                .map(|m| build::new_volume(plan, m));
            self.choose(
                &mut outcome,
                plan,
                new.as_ref(),
                &existing,
                &before,
                &findings,
                retry,
                now,
            );
            outcome.error = self
                .apply(plan, new.as_ref(), &outcome, &existing)
                .await
                .err();
            if let Some(error) = &outcome.error {
                tracing::warn!(error = error as &dyn std::error::Error, "cannot apply");
            }
        }

        let census = self.census(model, plan.as_ref().ok(), &outcome, &existing, now);
        let mount_problem = self.mount_problem(&uid, model, &census).await;
        let pods_refused = existing.pods_refused();
        let observed = Observed {
            model,
            before: &before,
            plan: plan.as_ref(),
            findings: &findings,
            is_bound: outcome
                .target
                .as_ref()
                .is_some_and(|t| existing.is_bound(&t.claim)),
            target: outcome.target.as_ref(),
            failed: outcome.failed.clone(),
            census: &census,
            mount_problem: mount_problem.as_deref(),
            pods_refused: pods_refused.as_deref(),
            apply_error: outcome.error.as_ref(),
            handled: if retry { reconcile_at } else { handled },
            now,
        };
        let after = status::status(&observed);
        let written = self.write_status(model, &uid, &before, &after).await;
        self.finish(&uid, &outcome, &census, written)
    }

    /// The status last written, which the cache may not show yet.
    fn newest_status(&self, model: &Model, uid: &str) -> ModelStatus {
        let cached = version(model);
        self.memory.with(uid, |known| match &known.written {
            Some((version, status)) if cached.is_some_and(|c| c < *version) => status.clone(),
            _ => {
                known.written = None;
                model.status.clone().unwrap_or_default()
            }
        })
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one situation")]
    fn choose(
        &self,
        outcome: &mut Outcome,
        plan: &Plan,
        new: Option<&NewVolume>,
        existing: &Existing,
        before: &ModelStatus,
        findings: &Findings,
        retry: bool,
        now: Timestamp,
    ) {
        let candidate = new.map(|n| &n.revision);
        let attempt = candidate
            .map(|c| build::attempt(plan, c))
            .unwrap_or_default();
        // Pods count against the commit only once the Deployment names it.
        let problem = candidate
            .map(|c| build::revision_of(plan, c))
            .filter(|revision| existing.current_revision() == Some(revision))
            .and_then(|revision| census(&existing.pods, &revision, deadline(plan), now).problem);
        let latest = findings.latest.as_ref().map(ToString::to_string);
        let decision = decide(&Situation {
            candidate,
            attempt: &attempt,
            current: existing.current().as_ref(),
            claims: &existing.revisions(),
            last_known_good: before.last_known_good.as_deref(),
            failed: before.failed.as_ref(),
            latest: latest.as_deref(),
            problem: problem.as_ref(),
            retry,
        });
        outcome.target = decision.target;
        outcome.failed = decision.failed;
    }

    async fn apply(
        &self,
        plan: &Plan,
        new: Option<&NewVolume>,
        outcome: &Outcome,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        let namespace = Some(plan.namespace.as_str());
        let service = self.caches.services.get(namespace, &plan.name);
        self.applier
            .ensure(plan, &build::service(plan), service.as_deref())
            .await?;
        let Some(target) = &outcome.target else {
            return Ok(());
        };
        if let Some(new) = new.filter(|n| n.revision == *target) {
            self.applier.ensure_volume(plan, new, &self.caches).await?;
        }
        let deployment = self.caches.deployments.get(namespace, &plan.name);
        let desired = build::deployment(plan, target);
        self.applier
            .ensure(plan, &desired, deployment.as_deref())
            .await?;
        self.prune(plan, target, existing).await
    }

    /// Deletes the claims of old commits; their volumes follow in the sweep.
    async fn prune(
        &self,
        plan: &Plan,
        target: &Revision,
        existing: &Existing,
    ) -> Result<(), ApplyError> {
        // Not in the middle of a rollout, whose end decides what is old.
        let revision = build::revision_of(plan, target);
        let pods = existing.pods.iter();
        let is_settled = existing.current_revision() == Some(&revision)
            && pods
                .clone()
                .all(|p| p.labels().get(build::REVISION) == Some(&revision));
        if !is_settled {
            return Ok(());
        }
        let mut needed: BTreeSet<String> = pods
            .flat_map(|p| prune::claims_of(p).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        needed.insert(target.claim.clone());
        let keep = usize::try_from(plan.spec.storage.keep_revisions).unwrap_or(1);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &plan.namespace);
        for claim in prune::superfluous(&existing.revisions(), &needed, keep) {
            if let Some(claim) = existing.claims.iter().find(|c| c.name_any() == claim) {
                self.applier.delete(&api, claim.as_ref()).await?;
            }
        }
        Ok(())
    }

    fn census(
        &self,
        model: &Model,
        plan: Option<&Plan>,
        outcome: &Outcome,
        existing: &Existing,
        now: Timestamp,
    ) -> Census {
        // A spec that does not count leaves the Deployment as it is.
        let revision = match (plan, &outcome.target) {
            (Some(plan), Some(target)) if !model.spec.suspend => build::revision_of(plan, target),
            _ => existing.current_revision().unwrap_or_default().to_owned(),
        };
        let seconds = u64::try_from(model.spec.rollout.progress_deadline_seconds).unwrap_or(0);
        census(&existing.pods, &revision, Duration::from_secs(seconds), now)
    }

    /// Asks for the kubelet's events about a pod that waits for its volume, now and then.
    async fn mount_problem(&self, uid: &str, model: &Model, census: &Census) -> Option<String> {
        let Some(pod) = &census.waiting_for_volume else {
            self.memory.with(uid, |known| known.mount = None);
            return None;
        };
        let known = self.memory.with(uid, |known| known.mount.clone());
        if let Some((of, at, answer)) = known
            && of == *pod
            && at.elapsed() < MOUNT_CHECK
        {
            return answer;
        }
        let namespace = model.namespace().unwrap_or_default();
        match fetch::mount_problem(&self.client, &namespace, pod).await {
            Ok(answer) => {
                self.memory.with(uid, |known| {
                    known.mount = Some((pod.clone(), Instant::now(), answer.clone()));
                });
                answer
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot list events"
                );
                None
            }
        }
    }

    /// Writes the status if it says something new, and events of what happened.
    async fn write_status(
        &self,
        model: &Model,
        uid: &str,
        before: &ModelStatus,
        after: &ModelStatus,
    ) -> Result<(), kube::Error> {
        if before == after {
            return Ok(());
        }
        let name = model.name_any();
        let namespace = model.namespace().unwrap_or_default();
        let api: Api<Model> = Api::namespaced(self.client.clone(), &namespace);
        let body = json!({
            "apiVersion": Model::api_version(&()),
            "kind": Model::kind(&()),
            "metadata": {"name": name, "uid": uid},
            "status": after,
        });
        self.metrics.writes.with_label_values(&["Model"]).inc();
        let params = PatchParams::apply(label::MANAGER).force();
        let written = match api.patch_status(&name, &params, &Patch::Apply(&body)).await {
            Ok(written) => written,
            // Deleted, or deleted and made again: its successor has a reconciliation of its own.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot write the status"
                );
                return Err(error);
            }
        };
        if let Some(version) = version(&written) {
            self.memory
                .with(uid, |known| known.written = Some((version, after.clone())));
        }
        for event in events::events(before, after) {
            tracing::info!(reason = event.reason, note = event.note, "event");
            self.metrics.writes.with_label_values(&["Event"]).inc();
            if let Err(error) = self.recorder.publish(model, &event).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot write an event"
                );
            }
        }
        Ok(())
    }

    /// When to look again.
    fn finish(
        &self,
        uid: &str,
        outcome: &Outcome,
        census: &Census,
        written: Result<(), kube::Error>,
    ) -> Action {
        let result = match (&outcome.error, &written) {
            (Some(error), _) => error.reason(),
            (None, Err(_)) => hyprstream_api::condition::reason::API_ERROR,
            (None, Ok(())) => "ok",
        };
        self.metrics.reconciles.with_label_values(&[result]).inc();
        let failures = self.memory.with(uid, |known| {
            known.failures = if result == "ok" {
                0
            } else {
                known.failures.saturating_add(1)
            };
            known.failures
        });
        let again = census.look_again.map_or(RESYNC, |again| again.min(RESYNC));
        if failures == 0 {
            return Action::requeue(again);
        }
        let first = match &outcome.error {
            Some(error) if error.action() == Help::Edit => Duration::from_secs(10),
            _ => Duration::from_secs(1),
        };
        let pause = first
            .saturating_mul(1 << (failures - 1).min(9))
            .min(LAST_PAUSE);
        Action::requeue(pause.min(again))
    }
}

fn deadline(plan: &Plan) -> Duration {
    let seconds = u64::try_from(plan.spec.rollout.progress_deadline_seconds).unwrap_or(0);
    Duration::from_secs(seconds)
}

fn version(model: &Model) -> Option<u64> {
    model.metadata.resource_version.as_ref()?.parse().ok()
}
