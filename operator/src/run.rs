//! `run`: election, caches, controllers, sweep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use hyprstream_api::{Checked, Model};
use hyprstream_telemetry::AdminServer;
use kube::{
    Client, ResourceExt,
    runtime::{
        Config, Controller, WatchStreamExt,
        controller::Error as ControllerError,
        reflector::{ObjectRef, store::Writer},
        watcher,
    },
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    apply::Applier,
    args::{Images, RunArgs},
    cache::{Cache, Caches, Synced, forward, scoped},
    chain,
    leader::Candidate,
    metrics::Metrics,
    model::{Context, Memory, Turns, fetch::mount::Mounts, reconcile},
    policy::{MasterKey, Policy},
    ready::{Readiness, models_are_served},
    registry::Registry,
    reporting::{Statuses, events::Recorder, intake::Intake},
    source::{Pace, Sources, Trigger, follow_pushes},
    sweep::{Models, Scope, Sweep},
};

/// How many Models are reconciled at once.
const CONCURRENCY: u16 = 16;
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
        () = models_are_served(&client, &namespaces, &readiness) => {}
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

    let registry = Registry::new(args.registry_url.clone(), args.registry_token_file.clone())
        .context("make a client of the registry")?;
    let operator = Operator {
        client,
        registry,
        images: args.images.clone(),
        policy,
        namespaces,
        rollouts_at_once: args.rollouts_at_once.get(),
        instance: args.pod_name,
        metrics: metrics.clone(),
        pace: Pace::default(),
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
    /// Images of the workers.
    pub images: Images,
    /// What the installation forbids and adds.
    pub policy: Policy,
    /// Namespaces to look after; empty for all.
    pub namespaces: Vec<String>,
    /// How many Models change their workers at a time because the operator is another one.
    pub rollouts_at_once: usize,
    /// Name of this process, in events.
    pub instance: String,
    /// Counts.
    pub metrics: Metrics,
    /// How often what is done.
    pub pace: Pace,
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
        let memory = Arc::new(Memory::default());
        let turns = Arc::new(Turns::new(self.rollouts_at_once));
        let recorder = Recorder::new(self.client.clone(), self.instance.clone());
        let statuses = Arc::new(Statuses::new(
            self.client.clone(),
            self.metrics.clone(),
            recorder.clone(),
        ));
        let mounts = Arc::new(Mounts::new(self.client.clone()));
        let wake = Arc::new(Notify::new());
        let policy = Arc::new(self.policy);
        let intake = Arc::new(Intake::new(self.metrics.clone(), recorder));
        self.readiness
            .waits("the first lists of objects are not there yet");

        let mut side = JoinSet::new();
        let (volumes, touched) = Cache::start(kube::Api::all(self.client.clone()), &intake);
        let touched = {
            let wake = wake.clone();
            touched.inspect(move |_| wake.notify_one())
        };
        side.spawn(forward(touched, trigger.clone()));
        side.spawn(follow_pushes(self.registry.clone(), sources.clone()));

        let scopes: Vec<Option<String>> = if self.namespaces.is_empty() {
            vec![None]
        } else {
            self.namespaces.iter().cloned().map(Some).collect()
        };
        let mut controllers = JoinSet::new();
        let mut swept = Vec::new();
        let mut routes = Vec::new();
        for namespace in scopes {
            let (caches, touched) =
                Caches::start(&self.client, namespace.as_deref(), volumes.clone(), &intake);
            turns.watch(caches.clone());
            let context = Arc::new(Context {
                client: self.client.clone(),
                caches: caches.clone(),
                sources: sources.clone(),
                applier: applier.clone(),
                statuses: statuses.clone(),
                mounts: mounts.clone(),
                metrics: self.metrics.clone(),
                images: self.images.clone(),
                policy: policy.clone(),
                memory: memory.clone(),
                turns: turns.clone(),
            });
            let (route, routed) = mpsc::channel(QUEUE);
            routes.push((namespace.clone(), route));
            let triggers = futures::stream::select(touched, ReceiverStream::new(routed));
            let scope = namespace.as_deref();
            let (models, controller) =
                controller(&self.client, scope, &intake, triggers, &shutdown);
            let metrics = self.metrics.clone();
            controllers.spawn(
                controller
                    .with_config(Config::default().concurrency(CONCURRENCY))
                    .run(reconcile, |_, error, _| match *error {}, context)
                    .for_each(move |result| {
                        note(&metrics, result.err());
                        std::future::ready(())
                    }),
            );
            swept.push(Scope {
                namespace,
                models,
                caches,
            });
        }
        side.spawn(route_triggers(triggered, routes));
        side.spawn(tell_ready(swept.clone(), self.readiness));
        side.spawn(follow_key(policy, self.pace.key, swept.clone(), trigger));
        let sweep = Sweep {
            client: self.client.clone(),
            scopes: swept,
            volumes,
            wake,
            sources,
            applier,
            memory,
            statuses,
            mounts,
            metrics: self.metrics.clone(),
        };
        side.spawn(sweep.run());
        while controllers.join_next().await.is_some() {}
        side.shutdown().await;
    }
}

/// A controller of Models, and what it knows of them.
fn controller(
    client: &Client,
    namespace: Option<&str>,
    intake: &Arc<Intake>,
    triggers: impl futures::Stream<Item = ObjectRef<Model>> + Send + 'static,
    shutdown: &CancellationToken,
) -> (Models, Controller<Checked<Model>>) {
    let writer = Writer::<Checked<Model>>::default();
    let store = writer.as_reader();
    let models = watcher(
        scoped::<Checked<Model>>(client, namespace),
        watcher::Config::default(),
    );
    let models = intake
        .clone()
        .watch(models)
        .modify(|model| {
            model.managed_fields_mut().clear();
            model
                .annotations_mut()
                .remove("kubectl.kubernetes.io/last-applied-configuration");
        })
        .reflect(writer);
    let (synced, models) = Synced::note(models);
    let models = models.default_backoff().applied_objects();
    let triggers = triggers
        .map(|model| ObjectRef::new(&model.name).within(&model.namespace.unwrap_or_default()));
    let controller = Controller::for_stream(models, store.clone())
        .reconcile_on(triggers)
        .graceful_shutdown_on(shutdown.clone().cancelled_owned());
    (Models { store, synced }, controller)
}

/// Says that all is known once it is.
async fn tell_ready(scopes: Vec<Scope>, readiness: Readiness) {
    for scope in scopes {
        scope.models.synced.wait().await;
        scope.caches.ready().await;
    }
    readiness.is_there();
}

/// Looks at every Model again when the workers' master key is another. Never ends by itself.
async fn follow_key(policy: Arc<Policy>, pause: Duration, scopes: Vec<Scope>, trigger: Trigger) {
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
        for model in scopes.iter().flat_map(|s| s.models.store.state()) {
            let model =
                ObjectRef::new(&model.name_any()).within(&model.namespace().unwrap_or_default());
            // The receiver is gone only when the controllers end.
            let _ = trigger.send(model).await;
        }
    }
}

/// Hands each trigger to the controller of its namespace.
async fn route_triggers(
    mut triggers: mpsc::Receiver<ObjectRef<Model>>,
    routes: Vec<(Option<String>, mpsc::Sender<ObjectRef<Model>>)>,
) {
    while let Some(model) = triggers.recv().await {
        let route = routes
            .iter()
            .find(|(namespace, _)| namespace.is_none() || *namespace == model.namespace);
        if let Some((_, route)) = route {
            // The receiver is gone only when its controller ends.
            let _ = route.send(model).await;
        }
    }
}

fn note(
    metrics: &Metrics,
    error: Option<ControllerError<std::convert::Infallible, watcher::Error>>,
) {
    match error {
        // A trigger for a Model that is gone.
        None | Some(ControllerError::ObjectNotFound(_)) => {}
        Some(error) => {
            metrics
                .reconciles
                .with_label_values(&["ControllerError"])
                .inc();
            tracing::warn!(error = chain(&error), "controller error, going on");
        }
    }
}

fn policy(args: &RunArgs) -> anyhow::Result<Policy> {
    Ok(Policy {
        insecure_hosts: args.allow_insecure_credentials.clone(),
        keys: MasterKey::open(args.worker_master_key_file.clone())?,
    })
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
