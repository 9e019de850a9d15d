use std::{collections::HashSet, convert::Infallible, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use hyprstream_api::Checked;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{Config, Controller, controller::Error as ControllerError, watcher},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    backoff::Backoff,
    reconcile::{Frame, Reconcile, reconcile},
    stock::{Stock, Watching},
};
use crate::{
    chain,
    kind::{Kind, OwnerLabels, Subject},
    metrics::Metrics,
};

/// How many objects of a kind are reconciled at once.
const CONCURRENCY: u16 = 16;
/// Triggers that may wait.
const QUEUE: usize = 1024;

/// The controllers of one kind, one for each scope: all namespaces, or one.
pub struct Controllers<R: Reconcile> {
    client: Client,
    metrics: Metrics,
    scopes: Vec<Scope<R>>,
}

struct Scope<R: Reconcile> {
    stock: Stock<R::Kind>,
    triggers: mpsc::Sender<Subject>,
    frame: Arc<Frame<R>>,
}

/// The objects of a kind, whichever kind it is.
pub trait Objects: Send + Sync {
    /// The kind.
    fn labels(&self) -> OwnerLabels;

    /// Ends once all of them are known.
    fn ready(&self) -> BoxFuture<'_, ()>;

    /// All that are known.
    fn subjects(&self) -> Vec<Subject>;

    /// Their UIDs.
    fn uids(&self) -> HashSet<String>;

    /// Whether objects of that namespace are looked after.
    fn covers(&self, namespace: &str) -> bool;

    /// Whether there is an object of that name and UID, as the API server says if it is not known.
    fn exists<'a>(
        &'a self,
        subject: &'a Subject,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<bool, kube::Error>>;

    /// Has an object looked at.
    fn trigger(&self, subject: Subject) -> BoxFuture<'_, ()>;

    /// Counts those that there are, and forgets the others.
    fn take_stock(&self);
}

impl<R: Reconcile> Controllers<R> {
    /// None yet.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            scopes: Vec::new(),
        }
    }

    /// Starts that of what is watched. It works while what is returned is polled, which ends when
    /// running reconciliations are done after `shutdown`.
    pub fn start(
        &mut self,
        watching: Watching<R::Kind>,
        reconciler: R,
        shutdown: &CancellationToken,
    ) -> BoxFuture<'static, ()> {
        let Watching { stock, objects } = watching;
        let (triggers, triggered) = mpsc::channel::<Subject>(QUEUE);
        let triggered = ReceiverStream::new(triggered).map(|subject| subject.to_ref::<R::Kind>());
        let frame = Arc::new(Frame {
            reconciler,
            backoff: Backoff::default(),
            metrics: self.metrics.clone(),
        });
        let store = stock.store();
        self.scopes.push(Scope {
            stock,
            triggers,
            frame: frame.clone(),
        });
        let metrics = self.metrics.clone();
        Controller::for_stream(objects, store)
            .reconcile_on(triggered)
            .graceful_shutdown_on(shutdown.clone().cancelled_owned())
            .with_config(Config::default().concurrency(CONCURRENCY))
            .run(reconcile::<R>, |_, error, _| match *error {}, frame)
            .for_each(move |result| {
                note(&metrics, result.err());
                std::future::ready(())
            })
            .boxed()
    }

    fn all(&self) -> impl Iterator<Item = Arc<Checked<R::Kind>>> {
        self.scopes.iter().flat_map(|scope| scope.stock.all())
    }

    fn scope(&self, namespace: &str) -> Option<&Scope<R>> {
        self.scopes
            .iter()
            .find(|scope| scope.stock.covers(namespace))
    }
}

impl<R: Reconcile> Objects for Controllers<R> {
    fn labels(&self) -> OwnerLabels {
        R::Kind::LABELS
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        async {
            for scope in &self.scopes {
                scope.stock.ready().await;
            }
        }
        .boxed()
    }

    fn subjects(&self) -> Vec<Subject> {
        self.all()
            .map(|object| Subject::of::<R::Kind>(object.meta()))
            .collect()
    }

    fn uids(&self) -> HashSet<String> {
        self.all().filter_map(|object| object.uid()).collect()
    }

    fn covers(&self, namespace: &str) -> bool {
        self.scope(namespace).is_some()
    }

    fn exists<'a>(
        &'a self,
        subject: &'a Subject,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<bool, kube::Error>> {
        async move {
            let is_it = |object: &Checked<R::Kind>| object.uid().as_deref() == Some(uid);
            let known = self
                .scope(&subject.namespace)
                .and_then(|scope| scope.stock.get(&subject.namespace, &subject.name));
            if known.is_some_and(|object| is_it(&object)) {
                return Ok(true);
            }
            // What is known may lag behind.
            let api: Api<Checked<R::Kind>> =
                Api::namespaced(self.client.clone(), &subject.namespace);
            Ok(api
                .get_opt(&subject.name)
                .await?
                .as_ref()
                .is_some_and(is_it))
        }
        .boxed()
    }

    fn trigger(&self, subject: Subject) -> BoxFuture<'_, ()> {
        async move {
            if let Some(scope) = self.scope(&subject.namespace) {
                // The receiver is gone only when the controller ends.
                let _ = scope.triggers.send(subject).await;
            }
        }
        .boxed()
    }

    fn take_stock(&self) {
        let (mut uids, mut ready, mut others) = (HashSet::new(), 0, 0);
        for object in self.all() {
            uids.extend(object.uid());
            if object.get().is_ok_and(Kind::is_ready) {
                ready += 1;
            } else {
                others += 1;
            }
        }
        let keep = |uid: &str| uids.contains(uid);
        for Scope { frame, .. } in &self.scopes {
            frame.backoff.retain(keep);
            frame.reconciler.statuses().retain(keep);
            frame.reconciler.retain(&keep);
        }
        let gauge = R::Kind::gauge(&self.metrics);
        gauge.with_label_values(&["true"]).set(ready);
        gauge.with_label_values(&["false"]).set(others);
    }
}

fn note(metrics: &Metrics, error: Option<ControllerError<Infallible, watcher::Error>>) {
    match error {
        // A trigger for an object that is gone.
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
