//! `run`: election, caches, controllers, sweep.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use hyprstream_api::{Adapter, Model, TrainingJob};
use hyprstream_telemetry::AdminServer;
use hyprstream_tls::Trust;
use kube::{Api, Client};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    adapter::{
        self,
        apply::Rosters,
        fetch::View,
        workers::{Asker, Asking},
    },
    apply::Applier,
    args::{Images, RunArgs},
    authority::{self, Keeper},
    cache::{Cache, Caches, forward},
    chain,
    controller::{Controllers, Objects, watch},
    grants::Grants,
    kind::{Kind, OwnerLabels, Subject, Trigger},
    leader::Candidate,
    metrics::Metrics,
    model::{self, Signer, Turns, fetch::mount::Mounts},
    policy::{MasterKey, Policy, WorkerTls},
    ready::{Readiness, kinds_are_served},
    registry::Registry,
    reporting::{Statuses, events::Recorder, intake::Intake},
    source::{Pace, Sources, follow_pushes},
    sweep::Sweep,
    training,
};

/// The kinds that objects are made for. Nothing is made for an Adapter.
pub(crate) const OWNERS: &[OwnerLabels] = &[Model::LABELS, TrainingJob::LABELS];
/// How often the certificates are looked at.
const CERTIFICATES: Duration = Duration::from_secs(10);
/// Triggers that may wait.
const QUEUE: usize = 1024;
/// How long running reconciliations may take to end.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT, or until leadership is lost.
///
/// # Errors
/// Nothing can be begun, or leadership is lost.
// In a box for the reason that `Operator::run` tells.
pub fn run(args: RunArgs) -> BoxFuture<'static, anyhow::Result<()>> {
    lead(args).boxed()
}

async fn lead(args: RunArgs) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("find the API server")?;
    let metrics = Metrics::new().context("register metrics")?;
    let shutdown = CancellationToken::new();
    let listener = TcpListener::bind(args.admin_listen)
        .await
        .with_context(|| format!("listen on {}", args.admin_listen))?;
    let policy = policy(&args)?;
    let certificates = certificates(&args)?;
    let namespaces = namespaces(&args.watch_namespaces);
    let readiness = Readiness::default();
    let is_stuck = Arc::new(AtomicBool::new(false));
    let admin = AdminServer {
        metrics: metrics.registry.clone(),
        health: {
            let is_stuck = is_stuck.clone();
            Arc::new(move || {
                if is_stuck.load(Ordering::Relaxed) {
                    Err("the controller ended".to_owned())
                } else {
                    Ok(())
                }
            })
        },
        ready: {
            let readiness = readiness.clone();
            Arc::new(move || readiness.check())
        },
    };
    let admin = tokio::spawn(admin.run(listener, shutdown.clone().cancelled_owned()));
    tokio::spawn(cancel_on_signal(shutdown.clone()));

    tokio::select! {
        () = kinds_are_served(&client, &namespaces, &readiness) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let candidate = Candidate::new(client.clone(), &args.namespace, args.pod_name.clone());
    tracing::info!(identity = args.pod_name, "waiting for the Lease");
    let mut held = tokio::select! {
        held = candidate.acquire() => held,
        () = shutdown.cancelled() => return Ok(()),
    };
    tracing::info!("leading");
    metrics.leader.set(1);

    let trust = Trust::shared();
    let registry = Registry::new(
        args.registry_url.clone(),
        args.registry_token_file.clone(),
        &trust,
    )
    .context("make a client of the registry")?;
    let operator = Operator {
        client,
        registry,
        registry_url: args.registry_url.to_string(),
        images: args.images.clone(),
        policy,
        namespaces,
        rollouts_at_once: args.rollouts_at_once.get(),
        signer: None,
        certificates: certificates.map(|settings| (settings, trust)),
        instance: args.pod_name,
        metrics: metrics.clone(),
        pace: Pace::default(),
        asking: Asking::default(),
        readiness,
    };
    let mut work = tokio::spawn(operator.run(shutdown.clone()));
    let ended = tokio::select! {
        // Without the Lease nothing may be written any more: leave without ceremony.
        () = held.keep() => bail!("leadership is lost"),
        ended = &mut work => ended,
        () = shutdown.cancelled() => {
            tokio::time::timeout(SHUTDOWN, &mut work).await.unwrap_or(Ok(()))
        }
    };
    is_stuck.store(!shutdown.is_cancelled(), Ordering::Relaxed);
    metrics.leader.set(0);
    work.abort();
    held.release().await;
    let was_asked = shutdown.is_cancelled();
    shutdown.cancel();
    let _ = admin.await;
    ended.context("the controller broke")?;
    if was_asked {
        Ok(())
    } else {
        bail!("the controller ended by itself")
    }
}

/// Everything that the leader does.
pub struct Operator {
    /// The API server.
    pub client: Client,
    /// The registry.
    pub registry: Registry,
    /// Where pods reach it.
    pub registry_url: String,
    /// Images of the workers.
    pub images: Images,
    /// What the installation forbids and adds.
    pub policy: Policy,
    /// Namespaces to look after; empty for all.
    pub namespaces: Vec<String>,
    /// How many Models change their workers at a time because the operator is another one.
    pub rollouts_at_once: usize,
    /// Who signs the certificates of workers, and whose word is taken for workers; `None` where the
    /// keeper of [`certificates`](Self::certificates) says it, or workers speak no TLS.
    pub signer: Option<(Signer, Trust)>,
    /// The certificates that are kept, and who is told whom to trust; `None` where nothing of ours
    /// speaks TLS.
    pub certificates: Option<(authority::Settings, Trust)>,
    /// Name of this process, in events.
    pub instance: String,
    /// Counts.
    pub metrics: Metrics,
    /// How often what is done.
    pub pace: Pace,
    /// How workers are asked which adapters they have.
    pub asking: Asking,
    /// Is told when everything is known.
    pub readiness: Readiness,
}

impl Operator {
    /// Works until `shutdown`, and then until running reconciliations are done.
    ///
    /// In a box, so that this crate compiles what it calls; an `async fn` would be compiled again
    /// into every program that awaits it, which took two minutes each.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        self.work(shutdown).boxed()
    }

    async fn work(self, shutdown: CancellationToken) {
        let (trigger, triggered) = mpsc::channel(QUEUE);
        let sources = Arc::new(Sources::new(
            self.registry.clone(),
            self.client.clone(),
            trigger.clone(),
            self.pace,
        ));
        let applier = Arc::new(Applier::new(self.client.clone(), self.metrics.clone()));
        let grants = Arc::new(Grants::new(
            self.client.clone(),
            self.registry.clone(),
            self.metrics.clone(),
        ));
        let recorder = Recorder::new(self.client.clone(), self.instance.clone());
        let intake = Arc::new(Intake::new(self.metrics.clone(), recorder.clone()));
        let turns = Arc::new(Turns::new(self.rollouts_at_once));
        let wake = Arc::new(Notify::new());
        let policy = Arc::new(self.policy);
        let (mut signer, trust) = match (self.signer, &self.certificates) {
            (Some((signer, trust)), _) => (Some(signer), trust),
            (None, Some((_, trust))) => (None, trust.clone()),
            (None, None) => (None, Trust::shared()),
        };
        let asker = match Asker::new(self.asking, policy.clone(), &trust) {
            Ok(asker) => Arc::new(asker),
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot make a client of the workers");
                return;
            }
        };
        let mut side = JoinSet::new();
        let mut published = None;
        if let Some((settings, trust)) = self.certificates {
            self.readiness.waits("the certificates are not there yet");
            let (client, metrics) = (self.client.clone(), self.metrics.clone());
            let keeper = Keeper::new(settings, client, recorder.clone(), metrics, trust);
            let mut heard = keeper.published();
            signer.get_or_insert_with(|| keeper.signer());
            side.spawn(keeper.run());
            // Nothing can be asked of the registry before, and nothing said of it to pods.
            tokio::select! {
                _ = heard.wait_for(Option::is_some) => {}
                () = shutdown.cancelled() => return,
            }
            published = Some(heard);
        }
        self.readiness
            .waits("the first lists of objects are not there yet");

        let (volumes, touched) = Cache::start(Api::all(self.client.clone()), &intake, OWNERS);
        let touched = {
            let wake = wake.clone();
            touched.inspect(move |_| wake.notify_one())
        };
        side.spawn(forward(touched, trigger.clone()));
        side.spawn(follow_pushes(
            self.registry.clone(),
            sources.clone(),
            recorder.clone(),
        ));

        let scopes: Vec<Option<String>> = if self.namespaces.is_empty() {
            vec![None]
        } else {
            self.namespaces.iter().cloned().map(Some).collect()
        };
        let mut running = JoinSet::new();
        let mut swept = Vec::new();
        // Each kind is registered once: its controllers here, a reconciler for each of their scopes
        // below, and itself among the kinds that triggers and the sweep know.
        let mut models = Controllers::new(self.client.clone(), self.metrics.clone());
        let mut adapters = Controllers::new(self.client.clone(), self.metrics.clone());
        let mut training_jobs = Controllers::new(self.client.clone(), self.metrics.clone());
        let mut rosters = Vec::new();
        for namespace in scopes {
            let (caches, touched) = Caches::start(
                &self.client,
                namespace.as_deref(),
                volumes.clone(),
                &intake,
                OWNERS,
            );
            turns.watch(caches.clone());
            swept.push(caches.clone());
            // What is seen is told to the rosters, which look at what is known by it.
            let seen: Arc<OnceLock<Arc<Rosters>>> = Arc::default();
            let (client, seen_by) = (&self.client, seen.clone());
            let watched_models = watch::<Model>(client, namespace.clone(), &intake, move |event| {
                if let Some(rosters) = seen_by.get() {
                    rosters.seen_model(event);
                }
            });
            let seen_by = seen.clone();
            let watched_jobs = watch::<TrainingJob>(client, namespace.clone(), &intake, |_| {});
            let watched_adapters = watch::<Adapter>(client, namespace, &intake, move |event| {
                if let Some(rosters) = seen_by.get() {
                    rosters.seen_adapter(event);
                }
            });
            let job_caches = caches.clone();
            let view = View {
                models: watched_models.stock.clone(),
                adapters: watched_adapters.stock.clone(),
                caches: caches.clone(),
                sources: sources.clone(),
                policy: policy.clone(),
            };
            let registry = self.registry.clone();
            let own = Rosters::new(view, registry, asker.clone(), trigger.clone());
            // It was not set before, and nothing is seen before the watches are polled.
            let _ = seen.set(own.clone());
            rosters.push(own.clone());
            let nudged = own.clone();
            let touched = touched.inspect(move |subject| {
                nudged.nudge(&subject.namespace, &subject.name);
            });
            side.spawn(forward(touched, trigger.clone()));
            let reconciler = model::Context {
                client: self.client.clone(),
                caches,
                sources: sources.clone(),
                applier: applier.clone(),
                grants: grants.clone(),
                statuses: Statuses::new(
                    self.client.clone(),
                    self.metrics.clone(),
                    recorder.clone(),
                ),
                mounts: Mounts::new(self.client.clone()),
                images: self.images.clone(),
                policy: policy.clone(),
                turns: turns.clone(),
                signer: signer.clone(),
            };
            running.spawn(models.start(watched_models, reconciler, &shutdown));
            let asker = match training::ask::Asker::new(trigger.clone(), training::ask::EVERY) {
                Ok(asker) => asker,
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "cannot make a client of the trainers"
                    );
                    return;
                }
            };
            let reconciler = training::Context {
                client: self.client.clone(),
                caches: job_caches,
                rosters: own.clone(),
                sources: sources.clone(),
                applier: applier.clone(),
                grants: grants.clone(),
                statuses: Statuses::new(
                    self.client.clone(),
                    self.metrics.clone(),
                    recorder.clone(),
                ),
                mounts: Mounts::new(self.client.clone()),
                refusals: training::refusals::Refusals::new(self.client.clone()),
                images: self.images.clone(),
                policy: policy.clone(),
                forks: training::fork::Forks::new(self.registry.clone(), trigger.clone()),
                asker,
                registry_url: self.registry_url.clone(),
                published: published.clone(),
            };
            running.spawn(training_jobs.start(watched_jobs, reconciler, &shutdown));
            let reconciler = adapter::Context {
                rosters: own,
                statuses: Statuses::new(
                    self.client.clone(),
                    self.metrics.clone(),
                    recorder.clone(),
                ),
            };
            running.spawn(adapters.start(watched_adapters, reconciler, &shutdown));
        }
        let models: Arc<dyn Objects> = Arc::new(models);
        let adapters: Arc<dyn Objects> = Arc::new(adapters);
        let training_jobs: Arc<dyn Objects> = Arc::new(training_jobs);
        let kinds = vec![models.clone(), adapters, training_jobs];

        side.spawn(route_triggers(triggered, kinds.clone()));
        side.spawn(tell_ready(kinds.clone(), swept.clone(), self.readiness));
        side.spawn(follow_key(policy, self.pace.key, models, trigger));
        let sweep = Sweep {
            client: self.client.clone(),
            kinds,
            scopes: swept,
            volumes,
            wake,
            rosters,
            registry: self.registry.clone(),
            sources,
            applier,
            grants,
            metrics: self.metrics.clone(),
        };
        side.spawn(sweep.run());
        while running.join_next().await.is_some() {}
        side.shutdown().await;
    }
}

/// Says that all is known once it is.
async fn tell_ready(kinds: Vec<Arc<dyn Objects>>, scopes: Vec<Caches>, readiness: Readiness) {
    for kind in kinds {
        kind.ready().await;
    }
    for scope in scopes {
        scope.ready().await;
    }
    readiness.is_there();
}

/// Looks at every Model again when the workers' master key is another. Never ends by itself.
async fn follow_key(
    policy: Arc<Policy>,
    pause: Duration,
    models: Arc<dyn Objects>,
    trigger: Trigger,
) {
    loop {
        tokio::time::sleep(pause).await;
        match policy.keys.refresh() {
            Ok(false) => continue,
            Ok(true) => tracing::info!("the workers' master key is another: workers are replaced"),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the workers' master key stays as it was"
                );
                continue;
            }
        }
        for model in models.subjects() {
            // The receiver is gone only when the controllers end.
            let _ = trigger.send(model).await;
        }
    }
}

/// Hands each trigger to the controllers of its kind.
async fn route_triggers(mut triggers: mpsc::Receiver<Subject>, kinds: Vec<Arc<dyn Objects>>) {
    while let Some(subject) = triggers.recv().await {
        let kind = kinds.iter().find(|k| k.labels().kind == subject.kind);
        if let Some(kind) = kind {
            kind.trigger(subject).await;
        }
    }
}

fn policy(args: &RunArgs) -> anyhow::Result<Policy> {
    Ok(Policy {
        insecure_hosts: args.allow_insecure_credentials.clone(),
        keys: MasterKey::open(args.worker_master_key_file.clone())?,
        worker_tls: args.worker_tls,
    })
}

fn certificates(args: &RunArgs) -> anyhow::Result<Option<authority::Settings>> {
    let names = authority::names(&args.certificate_names);
    let has_names = !names.hosts.is_empty() || !names.addresses.is_empty();
    match (args.registry_url.scheme(), has_names) {
        ("https", false) => bail!(
            "the registry's URL {} is https: name what its certificate is for with \
             --certificate-names",
            args.registry_url
        ),
        ("http", true) => bail!(
            "the registry's URL {} is not https: --certificate-names would be of no use",
            args.registry_url
        ),
        _ => {}
    }
    if args.worker_tls != WorkerTls::Off && !has_names {
        bail!("--worker-tls needs certificates, which are made with --certificate-names");
    }
    Ok(has_names.then(|| authority::Settings {
        namespace: args.namespace.clone(),
        names,
        overlap: args.trust_overlap,
        pause: CERTIFICATES,
    }))
}

fn namespaces(given: &[String]) -> Vec<String> {
    let mut namespaces: Vec<String> = given
        .iter()
        .map(|n| n.trim().to_owned())
        .filter(|n| !n.is_empty())
        .collect();
    namespaces.sort();
    namespaces.dedup();
    namespaces
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "SIGTERM is not listened to");
            let _ = tokio::signal::ctrl_c().await;
        }
    }
    tracing::info!("shutting down");
    shutdown.cancel();
}
