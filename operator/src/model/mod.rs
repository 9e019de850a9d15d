//! Models: which commit runs, on which workers.
//!
//! A reconciliation is five steps, each a module: [`fetch`] looks at what there is, [`validate`]
//! refuses what cannot work, [`build`] says what there should be, `apply` makes it so, [`status`]
//! tells. The first and the last two do IO, the others are pure, but for [`Turns`].

pub mod apply;
pub mod build;
pub mod fetch;
pub mod status;
mod turns;
pub mod validate;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use hyprstream_api::{
    Model, ModelStatus,
    condition::{READY, reason::API_ERROR},
};
use hyprstream_contract::label;
use hyprstream_tls::Authority;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use prometheus::IntGaugeVec;
use tokio::sync::watch;

pub use self::turns::Turns;
use self::{
    build::target::Scene,
    fetch::{Existing, mount::Mounts},
    status::Observed,
    validate::validate,
};
use crate::{
    apply::{Applier, ApplyError, Help},
    args::Images,
    cache::Caches,
    chain,
    controller::{Outcome, Reconcile, Reconciled},
    grants::Grants,
    kind::{Kind, OwnerLabels, Subject},
    metrics::Metrics,
    policy::Policy,
    reporting::Statuses,
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

/// Who may sign certificates now, if there is somebody whom all believe.
pub type Signer = watch::Receiver<Option<Authority>>;

/// Reconciles the Models of a scope.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What there is.
    pub caches: Caches,
    /// What is known of repositories.
    pub sources: Arc<Sources>,
    /// Writes objects.
    pub applier: Arc<Applier>,
    /// Keeps the words of volumes.
    pub grants: Arc<Grants>,
    /// Writes statuses and events.
    pub statuses: Statuses<Model>,
    /// Asks why volumes are not mounted.
    pub mounts: Mounts,
    /// Images of the workers.
    pub images: Images,
    /// What the installation forbids and adds.
    pub policy: Arc<Policy>,
    /// Whose workers a release may change.
    pub turns: Arc<Turns>,
    /// Who signs certificates of workers, where they speak TLS.
    pub signer: Option<Signer>,
}

impl Reconcile for Context {
    type Kind = Model;

    fn ready(&self) -> BoxFuture<'_, ()> {
        self.caches.ready().boxed()
    }

    fn reconcile<'a>(&'a self, model: &'a Model) -> BoxFuture<'a, Reconciled> {
        self.steps(model).boxed()
    }

    fn statuses(&self) -> &Statuses<Model> {
        &self.statuses
    }

    fn stop(&self, uid: &str) {
        self.sources.forget(uid);
    }

    fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        self.mounts.retain(keep);
    }
}

impl Context {
    async fn steps(&self, model: &Model) -> Reconciled {
        let uid = model.uid().unwrap_or_default();
        let before = self.statuses.newest(model);
        let existing = Existing::of(model, &self.caches);
        let plan = validate(model, &self.images)
            .and_then(|plan| self.policy.admit(plan))
            .map(|plan| existing.place(plan));
        let reconcile_at = model
            .annotations()
            .get(label::RECONCILE_AT)
            .map(String::as_str);
        let handled = before.last_handled_reconcile_at.as_deref();
        let retry = !model.spec.suspend && reconcile_at.is_some() && reconcile_at != handled;
        let findings = match &plan {
            Ok(plan) if !model.spec.suspend => self.sources.observe(
                &uid,
                &Subject::of::<Model>(&model.metadata),
                &plan.source,
                reconcile_at,
            ),
            _ => {
                self.sources.forget(&uid);
                Findings::default()
            }
        };
        self.sources.keep(&uid, existing.serving());
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
                return Reconciled {
                    outcome: Outcome::Over,
                    again: None,
                };
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
            is_replacing: course.notes.is_replacing,
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
        let outcome = match (&error, written) {
            (Some(error), _) => Outcome::Failed(error.reason(), error.action()),
            (None, Err(_)) => Outcome::Failed(API_ERROR, Help::Retry),
            (None, Ok(_)) => Outcome::Done,
        };
        Reconciled {
            outcome,
            again: census.look_again,
        }
    }
}
