//! Adapters: which of them the workers of a Model serve.
//!
//! A reconciliation is five steps, each a module: [`fetch`] looks at what there is, [`validate`]
//! refuses what cannot work, [`build`] says what the Model's list should be, [`mod@apply`] has the
//! registry keep it and asks the workers, [`status`] tells. The list is of all Adapters of a Model
//! and has one writer, so `apply` is a task for each Model, which a reconciliation wakes and whose
//! findings it reads, as it does those of [`crate::source`].

pub mod apply;
pub mod build;
pub mod fetch;
pub mod status;
pub mod validate;
pub mod workers;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use hyprstream_api::{
    Adapter, AdapterStatus,
    condition::{READY, reason::API_ERROR},
};
use hyprstream_contract::{adapters::ModelName, label};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use prometheus::IntGaugeVec;

use self::{apply::Rosters, build::entry, status::Observed, validate::validate};
use crate::{
    apply::Help,
    controller::{Outcome, Reconcile, Reconciled},
    kind::{Kind, OwnerLabels, Subject},
    metrics::Metrics,
    reporting::Statuses,
    source::Findings,
};

impl Kind for Adapter {
    type Status = AdapterStatus;

    // Nothing is made for an Adapter that could carry them.
    const LABELS: OwnerLabels = OwnerLabels {
        kind: "Adapter",
        name: "hyprstream.io/adapter",
        namespace: "hyprstream.io/adapter-namespace",
        uid: "hyprstream.io/adapter-uid",
    };

    fn status(&self) -> Option<&AdapterStatus> {
        self.status.as_ref()
    }

    fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|s| s.is_true(READY))
    }

    fn gauge(metrics: &Metrics) -> &IntGaugeVec {
        &metrics.adapters
    }
}

/// Reconciles the Adapters of a scope.
pub struct Context {
    /// Keeps the lists, and knows what there is.
    pub rosters: Arc<Rosters>,
    /// Writes statuses and events.
    pub statuses: Statuses<Adapter>,
}

impl Reconcile for Context {
    type Kind = Adapter;

    fn ready(&self) -> BoxFuture<'_, ()> {
        self.rosters.view().ready().boxed()
    }

    fn reconcile<'a>(&'a self, adapter: &'a Adapter) -> BoxFuture<'a, Reconciled> {
        self.steps(adapter).boxed()
    }

    fn statuses(&self) -> &Statuses<Adapter> {
        &self.statuses
    }

    fn stop(&self, uid: &str) {
        self.rosters.view().sources.forget(uid);
    }

    fn retain(&self, _: &dyn Fn(&str) -> bool) {}
}

impl Context {
    async fn steps(&self, adapter: &Adapter) -> Reconciled {
        let uid = adapter.uid().unwrap_or_default();
        let namespace = adapter.namespace().unwrap_or_default();
        let name = &adapter.spec.model_ref.name;
        let model: Option<ModelName> = format!("{namespace}/{name}").parse().ok();
        let before = self.statuses.newest(adapter);
        let view = self.rosters.view();
        let found = model.as_ref().map(|model| view.model(model));
        let base = found
            .as_ref()
            .map_or(validate::Base::Missing, fetch::Found::base);
        let plan = validate(adapter, base, &view.policy);
        let reconcile_at = adapter
            .annotations()
            .get(label::RECONCILE_AT)
            .map(String::as_str);
        let findings = if let Ok(plan) = &plan {
            let subject = Subject::of::<Adapter>(&adapter.metadata);
            let sources = &view.sources;
            sources.observe(&uid, &subject, &plan.source, reconcile_at)
        } else {
            view.sources.forget(&uid);
            Findings::default()
        };
        let wanted = plan.as_ref().ok().and_then(|plan| {
            let mirrored = findings.mirrored.as_ref()?;
            Some(entry(plan, mirrored))
        });
        let mut facts = None;
        if let Some(model) = &model {
            self.rosters.wake(model);
            facts = self.rosters.facts(model, &uid);
        }
        let observed = Observed {
            adapter,
            before: &before,
            plan: plan.as_ref(),
            findings: &findings,
            wanted: wanted.as_ref(),
            facts: facts.as_ref(),
            replicas: found.as_ref().map_or(1, fetch::Found::replicas),
            handled: reconcile_at,
            now: Timestamp::now(),
        };
        let after = status::status(&observed);
        let events = status::events(&before, &after);
        let written = self.statuses.write(adapter, &before, &after, &events).await;
        Reconciled {
            outcome: match written {
                Err(_) => Outcome::Failed(API_ERROR, Help::Retry),
                Ok(_) => Outcome::Done,
            },
            again: None,
        }
    }
}
