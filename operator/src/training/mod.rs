//! TrainingJobs: a pod at a time that makes an adapter, and what becomes of it.
//!
//! A reconciliation is five steps, each a module: [`fetch`] looks at what there is, [`validate`]
//! refuses what cannot work, [`build`] says what there should be, `apply` makes it so, [`status`]
//! tells. What a job begins with is pinned in its status before anything is made for it, and its Job
//! is made once; after that the pod needs nothing of the operator (`docs/adr/0006`). Behind a
//! reconciliation run the tasks of [`crate::source`], one that asks the registry for the repository
//! ([`fork`]) and one that asks the pod how far it is ([`ask`]).

mod apply;
pub mod ask;
mod baseline;
pub mod build;
pub mod fetch;
pub mod fork;
pub mod kueue;
mod lost;
pub mod publish;
pub mod refusals;
pub mod status;
pub mod validate;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use hyprstream_api::{
    OnSuccess, TrainingInputs, TrainingJob, TrainingJobStatus,
    condition::{COMPLETE, FAILED, GATE_PASSED, SUSPENDED, reason::API_ERROR},
};
use hyprstream_contract::{adapters::ModelName, label, repositories::ForkRequest, training};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use prometheus::IntGaugeVec;

use self::{
    ask::{Asker, TrainerPod},
    baseline::last_known_good,
    fetch::Existing,
    fork::{Forked, Forks},
    publish::{PublishError, publish},
    refusals::Refusals,
    status::Observed,
    validate::{Plan, validate},
};
use crate::{
    adapter::{apply::Rosters, validate::Base},
    apply::{Applier, ApplyError, Help},
    args::Images,
    authority::Published,
    cache::Caches,
    chain,
    controller::{Outcome, Reconcile, Reconciled},
    grants::Grants,
    kind::{Kind, OwnerLabels, Subject},
    metrics::Metrics,
    model::fetch::mount::Mounts,
    policy::Policy,
    reporting::Statuses,
    source::{Findings, Mirrored, Sources, own_repository},
};

/// How often a job that runs is looked at though its pod says nothing new.
const LOOK: Duration = Duration::from_secs(30);
/// How often a job is looked at that waits for its Model, or for its pod to be made or to end.
const WAIT: Duration = Duration::from_secs(3);

impl Kind for TrainingJob {
    type Status = TrainingJobStatus;

    const LABELS: OwnerLabels = OwnerLabels {
        kind: "TrainingJob",
        name: training::LABEL,
        namespace: "hyprstream.io/training-job-namespace",
        uid: "hyprstream.io/training-job-uid",
    };

    fn status(&self) -> Option<&TrainingJobStatus> {
        self.status.as_ref()
    }

    fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|s| s.is_true(COMPLETE))
    }

    fn gauge(metrics: &Metrics) -> &IntGaugeVec {
        &metrics.training_jobs
    }
}

/// Reconciles the TrainingJobs of a scope.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What there is.
    pub caches: Caches,
    /// Knows the Models.
    pub rosters: Arc<Rosters>,
    /// What is known of repositories.
    pub sources: Arc<Sources>,
    /// Writes objects.
    pub applier: Arc<Applier>,
    /// Keeps the words of volumes.
    pub grants: Arc<Grants>,
    /// Writes statuses and events.
    pub statuses: Statuses<TrainingJob>,
    /// Asks why volumes are not mounted.
    pub mounts: Mounts,
    /// Asks why pods are not made.
    pub refusals: Refusals,
    /// Images of the pods.
    pub images: Images,
    /// What the installation forbids and adds.
    pub policy: Arc<Policy>,
    /// Has repositories made.
    pub forks: Forks,
    /// Asks pods how far they are.
    pub asker: Asker,
    /// Where pods reach the registry.
    pub registry_url: String,
    /// By what pods trust it, where it speaks TLS.
    pub published: Option<Published>,
}

impl Reconcile for Context {
    type Kind = TrainingJob;

    fn ready(&self) -> BoxFuture<'_, ()> {
        self.rosters.view().ready().boxed()
    }

    fn reconcile<'a>(&'a self, job: &'a TrainingJob) -> BoxFuture<'a, Reconciled> {
        self.steps(job).boxed()
    }

    fn statuses(&self) -> &Statuses<TrainingJob> {
        &self.statuses
    }

    fn stop(&self, uid: &str) {
        self.sources.forget(uid);
        self.sources.forget(&of_dataset(uid));
        self.forks.forget(uid);
        self.asker.forget(uid);
    }

    fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        self.mounts.retain(keep);
        self.refusals.retain(keep);
        self.forks.retain(keep);
        self.asker.retain(keep);
    }
}

/// Under what the source of a job's dataset is looked at, beside that of its Model.
fn of_dataset(uid: &str) -> String {
    format!("{uid}{DATASET}")
}

/// What stands behind the UID of a job where its dataset is meant.
pub const DATASET: &str = "/dataset";

/// What is known of a job's inputs.
struct Known {
    model: Findings,
    dataset: Option<Findings>,
}

impl Known {
    /// Both, once both lie on the registry.
    fn mirrored(&self) -> Option<(&Mirrored, Option<&Mirrored>)> {
        let model = self.model.mirrored.as_ref()?;
        match &self.dataset {
            None => Some((model, None)),
            Some(dataset) => Some((model, Some(dataset.mirrored.as_ref()?))),
        }
    }
}

impl Context {
    async fn steps(&self, job: &TrainingJob) -> Reconciled {
        let uid = job.uid().unwrap_or_default();
        let before = self.statuses.newest(job);
        let existing = Existing::of(job, &self.caches);
        let subject = Subject::of::<TrainingJob>(&job.metadata);
        let plan = self
            .validate(job)
            .map(|plan| plan.pinned(before.inputs.as_ref()));
        if before.is_finished() {
            return self.finished(job, &before, plan.ok(), &existing).await;
        }
        let known = plan.as_ref().map_or_else(
            |_| Known {
                model: Findings::default(),
                dataset: None,
            },
            |plan| self.known(plan, &subject, job),
        );
        let mut inputs = plan.as_ref().ok().and_then(|plan| pinned(plan, &known));
        let mut unasked = None;
        if let (Ok(plan), None, Some(pinned)) = (&plan, &before.inputs, &mut inputs) {
            match last_known_good(&self.client, plan).await {
                Ok(good) => pinned.last_known_good = good,
                Err(error) => unasked = Some(error),
            }
        }
        // Nothing is pinned that is half known.
        let inputs = inputs.filter(|_| unasked.is_none());
        let forked = match (&plan, known.mirrored(), &before.inputs) {
            (Ok(plan), Some((model, _)), Some(_)) => {
                let request = fork(plan, model);
                // The Model's own has the commit already.
                if request.from == request.to {
                    Forked::There
                } else {
                    self.forks.ensure(&uid, &subject, &request)
                }
            }
            _ => Forked::Pending,
        };
        let now = Timestamp::now();
        let overdue = existing.ending().filter(|pod| lost::is_overdue(pod, now));
        let given_up = match overdue {
            Some(pod) => lost::give_up(&self.client, pod, now).await.err(),
            None => None,
        };
        let error = match (&plan, known.mirrored()) {
            // Invariant: nothing is made before what it is made of stands in the status.
            (Ok(plan), Some((model, dataset)))
                if before.inputs.is_some() && forked == Forked::There =>
            {
                let bundle = self.published.as_ref();
                let bundle = bundle.and_then(|published| published.borrow().clone());
                let inputs = build::Inputs {
                    model,
                    dataset,
                    registry: &self.registry_url,
                    bundle: bundle.as_deref(),
                };
                match build::desired(plan, &inputs) {
                    Some(desired) => self.apply(plan, &Box::new(desired), &existing).await.err(),
                    None => None,
                }
            }
            // One that runs goes on, and stops when it should, whatever became of its inputs.
            _ => self.stop_or_go_on(job, &existing).await.err(),
        };
        let error = error.or(given_up).or(unasked);
        match &error {
            None => {}
            Some(ApplyError::NamespaceEnds) => {
                self.stop(&uid);
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
        let pod = existing.active().cloned();
        let progress = pod.as_ref().and_then(|pod| {
            let ip = pod.status.as_ref()?.pod_ip.as_deref()?;
            let name = training::key_name(&job.name_any());
            let key = self.policy.keys.shown(&subject.namespace, &name);
            let pod = TrainerPod::new(pod.uid()?, ip, key)?;
            self.asker.progress(&uid, &subject, &pod)
        });
        let waiting = pod.as_ref().filter(|pod| status::waits_for_volume(pod));
        let waiting = waiting.and_then(|pod| pod.uid());
        let mount_problem = self
            .mounts
            .problem(&uid, &subject.namespace, waiting.as_deref())
            .await;
        let refusal = self
            .refusals
            .newest(&uid, &subject.namespace, &existing)
            .await;
        let observed = Observed {
            job,
            before: &before,
            plan: plan.as_ref(),
            model: &known.model,
            dataset: known.dataset.as_ref(),
            inputs,
            forked: &forked,
            batch: existing.batch.as_deref(),
            pods: &existing.pods,
            progress: progress.as_ref(),
            mount_problem: mount_problem.as_deref(),
            refusal: refusal.as_ref(),
            apply_error: error.as_ref(),
            now,
        };
        let mut after = status::status(&observed);
        let published = self.publish(job, plan.as_ref().ok(), &mut after).await;
        let events = status::events(&before, &after);
        let written = self.statuses.write(job, &before, &after, &events).await;
        let outcome = match (&error, published, written) {
            (Some(error), ..) => Outcome::Failed(error.reason(), error.action()),
            (None, false, _) | (None, _, Err(_)) => Outcome::Failed(API_ERROR, Help::Retry),
            (None, true, Ok(_)) => Outcome::Done,
        };
        // What was pinned just now is acted on next.
        let is_pinned = before.inputs.is_none() && after.inputs.is_some();
        let again = match (is_pinned || after.is_finished(), pod.is_some()) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => Some(LOOK),
            // That its pod is not made changes nothing of the Job, nor does a node that is lost. One
            // that a pod has yet to end for is not suspended.
            (false, false) => {
                let is_awaited = existing.batch.is_some() && !after.is_true(SUSPENDED);
                (plan.is_err() || is_awaited).then_some(WAIT)
            }
        };
        Reconciled { outcome, again }
    }

    fn validate(&self, job: &TrainingJob) -> Result<Plan, validate::Invalid> {
        let namespace = job.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", job.spec.model_ref.name);
        let found = name
            .parse::<ModelName>()
            .ok()
            .map(|name| self.rosters.view().model(&name));
        let base = found
            .as_ref()
            .map_or(Base::Missing, crate::adapter::fetch::Found::base);
        validate(job, base, &self.images, &self.policy)
    }

    fn known(&self, plan: &Plan, subject: &Subject, job: &TrainingJob) -> Known {
        let token = job
            .annotations()
            .get(label::RECONCILE_AT)
            .map(String::as_str);
        let observe = |uid: &str, source| self.sources.observe(uid, subject, source, token);
        Known {
            model: observe(&plan.uid, &plan.model),
            dataset: plan
                .dataset_source()
                .map(|source| observe(&of_dataset(&plan.uid), source)),
        }
    }

    /// A job that is over: what it held is let go, what it made is served, and once its time has come
    /// it goes itself.
    async fn finished(
        &self,
        job: &TrainingJob,
        before: &TrainingJobStatus,
        plan: Option<Plan>,
        existing: &Existing,
    ) -> Reconciled {
        let uid = job.uid().unwrap_or_default();
        self.stop(&uid);
        let mut after = before.clone();
        after.observed_generation = job.metadata.generation;
        let published = self.publish(job, plan.as_ref(), &mut after).await;
        let events = status::events(before, &after);
        let written = self.statuses.write(job, before, &after, &events).await;
        let now = Timestamp::now();
        let let_go = self.let_go(job, &after, existing, now).await;
        let outcome = match (let_go.is_ok() && published, written) {
            (true, Ok(_)) => Outcome::Done,
            _ => Outcome::Failed(API_ERROR, Help::Retry),
        };
        Reconciled {
            outcome,
            again: status::left_to_live(job, &after, now),
        }
    }

    /// Has what a job made served, if that is asked for and was not done. `false` if it is to be tried
    /// again.
    async fn publish(
        &self,
        job: &TrainingJob,
        plan: Option<&Plan>,
        after: &mut TrainingJobStatus,
    ) -> bool {
        let Some(plan) = plan else { return true };
        // What was cancelled while it came to its end is served to nobody.
        let is_cancelled = job.annotations().contains_key(label::CANCELLED_AT);
        let is_wanted = !is_cancelled
            && plan.spec.output.on_success == OnSuccess::CreateAdapter
            && after.is_true(COMPLETE)
            && after.is_true(GATE_PASSED)
            && !after.is_true(FAILED)
            && after
                .condition(GATE_PASSED)
                .is_some_and(|c| c.reason != status::ADAPTER_EXISTS);
        let Some(output) = after
            .output
            .as_mut()
            .filter(|o| is_wanted && o.adapter.is_none())
        else {
            return true;
        };
        match publish(&self.client, plan, output).await {
            Ok(name) => {
                output.adapter = Some(name);
                true
            }
            Err(error @ PublishError::Exists(_)) => {
                let message = error.to_string();
                after.message = Some(message.clone());
                let conditions = after.conditions.iter_mut();
                for condition in conditions.filter(|c| c.type_ == GATE_PASSED) {
                    status::ADAPTER_EXISTS.clone_into(&mut condition.reason);
                    message.clone_into(&mut condition.message);
                }
                true
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot publish yet");
                false
            }
        }
    }
}

/// What a job begins with, once that is known.
fn pinned(plan: &Plan, known: &Known) -> Option<TrainingInputs> {
    let (model, dataset) = known.mirrored()?;
    Some(TrainingInputs {
        model_commit: model.commit.to_string(),
        dataset_commit: dataset.map(|dataset| dataset.commit.to_string()),
        dataset_digest: None,
        repository: plan.full_repository(),
        last_known_good: None,
    })
}

fn fork(plan: &Plan, model: &Mirrored) -> ForkRequest {
    let from = match own_repository(&plan.model.url) {
        Some((namespace, name)) => format!("{namespace}/{name}"),
        None => model.repository.clone(),
    };
    ForkRequest {
        from,
        to: plan.full_repository(),
        commit: Some(model.commit.clone()),
    }
}
