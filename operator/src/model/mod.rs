//! The reconciliation of one Model.

pub mod apply;
pub mod build;
pub mod fetch;
mod memory;
pub mod status;
mod turns;
pub mod validate;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyprstream_api::{
    Checked, Model, ModelStatus,
    condition::{READY, reason::MALFORMED},
};
use hyprstream_contract::label;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};
use prometheus::IntGaugeVec;

use self::{
    build::target::Scene,
    fetch::{Existing, mount::Mounts, pods::Census},
    status::Observed,
    validate::validate,
};
pub use self::{memory::Memory, turns::Turns};
use crate::{
    apply::{Applier, ApplyError, Help},
    args::Images,
    cache::Caches,
    chain,
    kind::{Kind, OwnerLabels},
    metrics::Metrics,
    policy::Policy,
    reporting::{Statuses, Told},
    source::{Findings, Sources},
};

impl Kind for Model {
    type Status = ModelStatus;

    const LABELS: OwnerLabels = OwnerLabels {
        kind: "Model",
        name: label::MODEL,
        namespace: label::MODEL_NAMESPACE,
        uid: label::MODEL_UID,
    };

    fn status(&self) -> Option<&ModelStatus> {
        self.status.as_ref()
    }

    fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|s| s.is_true(READY))
    }

    fn gauge(metrics: &Metrics) -> &IntGaugeVec {
        &metrics.models
    }
}

/// How often everything is looked at again though nothing happened.
const RESYNC: Duration = Duration::from_mins(15);
/// Longest pause after failed requests.
const LAST_PAUSE: Duration = Duration::from_mins(5);

/// Number of the next reconciliation, by which the lines of its log belong together.
static NEXT: AtomicU64 = AtomicU64::new(1);

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
    /// Writes statuses and events.
    pub statuses: Arc<Statuses<Model>>,
    /// Asks why volumes are not mounted.
    pub mounts: Arc<Mounts>,
    /// Counts.
    pub metrics: Metrics,
    /// Images of the workers.
    pub images: Images,
    /// What the installation forbids and adds.
    pub policy: Arc<Policy>,
    /// How often in a row reconciliations failed, by UID.
    pub memory: Arc<Memory>,
    /// Whose workers a release may change.
    pub turns: Arc<Turns>,
}

/// Brings the cluster nearer to what a Model asks for and says in its status how far it is. Never
/// fails: an error is in the status, and in when to look again.
#[tracing::instrument(
    skip_all,
    fields(
        kind = "Model",
        namespace = model.namespace(),
        name = model.name_any(),
        reconcile = NEXT.fetch_add(1, Ordering::Relaxed),
    )
)]
pub async fn reconcile(
    model: Arc<Checked<Model>>,
    context: Arc<Context>,
) -> Result<Action, Infallible> {
    let started = Instant::now();
    context.caches.ready().await;
    let action = if model.meta().deletion_timestamp.is_some() {
        // The garbage collector takes what the Model owns, and the sweep its volumes.
        context.sources.forget(&model.uid().unwrap_or_default());
        Action::await_change()
    } else {
        match model.get() {
            Ok(model) => context.reconcile(model).await,
            Err(error) => {
                context.sources.forget(&model.uid().unwrap_or_default());
                context
                    .metrics
                    .reconciles
                    .with_label_values(&[MALFORMED])
                    .inc();
                match context.statuses.tell_malformed(&model, error).await {
                    Ok(Told::There) => Action::requeue(RESYNC),
                    Ok(Told::Gone) => Action::await_change(),
                    Err(_) => Action::requeue(LAST_PAUSE),
                }
            }
        }
    };
    context
        .metrics
        .reconcile_seconds
        .observe(started.elapsed().as_secs_f64());
    Ok(action)
}

impl Context {
    async fn reconcile(&self, model: &Model) -> Action {
        let uid = model.uid().unwrap_or_default();
        let before = self.statuses.newest(model);
        let plan = validate(model, &self.images).and_then(|plan| self.policy.admit(plan));
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
        let scene = Scene {
            model,
            before: &before,
            plan: plan.as_ref(),
            findings: &findings,
            existing: &existing,
            retry,
            now: Timestamp::now(),
        };
        let who = (model.namespace().unwrap_or_default(), model.name_any());
        let course = Box::new(scene.course(&who, &self.turns));
        let target = course.target.as_ref();
        let error = match scene.active() {
            Some(plan) => {
                let desired = Box::new(build::desired(plan, target, &course.notes));
                self.apply(plan, &desired, &existing).await.err()
            }
            None => None,
        };
        match &error {
            None => {}
            Some(ApplyError::NamespaceEnds) => {
                // The Model follows; there is nobody to tell.
                self.sources.forget(&uid);
                return Action::requeue(RESYNC);
            }
            Some(error @ ApplyError::Leaving { .. }) => {
                tracing::debug!(error = chain(error), "cannot apply yet");
            }
            Some(error) => tracing::warn!(error = chain(error), "cannot apply"),
        }
        let mut census = scene.census(target);
        census.look_again = census.look_again.into_iter().chain(course.waits).min();
        let waiting = census.waiting_for_volume.as_deref();
        let mount_problem = self.mounts.problem(&uid, &who.0, waiting).await;
        let pods_refused = existing.pods_refused();
        let observed = Observed {
            model,
            before: &before,
            plan: plan.as_ref(),
            findings: &findings,
            is_bound: target.is_some_and(|t| existing.is_bound(&t.revision.claim)),
            target: target.map(|t| &t.revision),
            failed: course.failed.clone(),
            is_rolled_back: course.is_rolled_back,
            is_waiting: course.waits.is_some(),
            census: &census,
            mount_problem: mount_problem.as_deref(),
            pods_refused: pods_refused.as_deref(),
            apply_error: error.as_ref(),
            handled: if retry { reconcile_at } else { handled },
            now: scene.now,
        };
        let after = status::status(&observed);
        let events = status::events(&before, &after);
        let written = self.statuses.write(model, &before, &after, &events).await;
        self.finish(&uid, error.as_ref(), &census, &written)
    }

    /// When to look again.
    fn finish(
        &self,
        uid: &str,
        error: Option<&ApplyError>,
        census: &Census,
        written: &Result<Told, kube::Error>,
    ) -> Action {
        let result = match (error, written) {
            (Some(error), _) => error.reason(),
            (None, Err(_)) => hyprstream_api::condition::reason::API_ERROR,
            (None, Ok(_)) => "ok",
        };
        self.metrics.reconciles.with_label_values(&[result]).inc();
        let failures = self.memory.failures(uid, result != "ok");
        let again = census.look_again.map_or(RESYNC, |again| again.min(RESYNC));
        if failures == 0 {
            return Action::requeue(again);
        }
        let first = match error {
            Some(error) if error.action() == Help::Edit => Duration::from_secs(10),
            _ => Duration::from_secs(1),
        };
        let pause = first
            .saturating_mul(1 << (failures - 1).min(9))
            .min(LAST_PAUSE);
        Action::requeue(pause.min(again))
    }
}
