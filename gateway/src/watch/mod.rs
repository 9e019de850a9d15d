//! The table's source: the Models, Adapters and EndpointSlices of a cluster.

mod cluster;
mod facts;
mod unread;

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};
use hyprstream_api::{Adapter, Model};
use hyprstream_contract::label;
use hyprstream_tls::Trust;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

use self::{
    cluster::{Change, Cluster},
    facts::Facts,
    unread::Unread,
};
use crate::{
    Metrics,
    table::{AdapterFacts, Table},
};

/// Most events that go into one new table.
const MAX_BATCH: usize = 1024;
/// First pause after the API server failed; doubled by each failure that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause. Short, because no new worker is seen until it is over.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the table is not complete for want of the Adapters, once all else is known.
const WAIT_FOR_ADAPTERS: Duration = Duration::from_secs(10);
/// How often a cluster that shows no Adapters is asked for them.
const LOOK_FOR_ADAPTERS: Duration = Duration::from_secs(2);

/// Keeps `tables` at the state of the cluster, until nobody receives them any more. Without
/// `namespaces` all are watched. With `trust`, workers that speak TLS are asked so. Failures of the API server are logged and tried again; the last
/// table stays until then.
pub async fn run(
    client: Client,
    namespaces: &[String],
    trust: Option<Trust>,
    tables: watch::Sender<Arc<Table>>,
    metrics: Metrics,
) {
    let mut changes = watch_all(&client, namespaces, &metrics).ready_chunks(MAX_BATCH);
    let sources = if namespaces.is_empty() {
        1
    } else {
        namespaces.len()
    };
    let mut cluster = Cluster::new(sources, trust);
    let mut skip_adapters_at = None;
    loop {
        let late = async {
            match skip_adapters_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            batch = changes.next() => match batch {
                Some(batch) => take_in(&mut cluster, batch),
                None => return,
            },
            () = late => {
                warn!("the Adapters cannot be listed and are not waited for any longer");
                cluster.skip_adapters();
                true
            }
        };
        skip_adapters_at = cluster
            .waits_for_adapters_only()
            .then(|| skip_adapters_at.unwrap_or_else(|| Instant::now() + WAIT_FOR_ADAPTERS));
        if !changed {
            continue;
        }
        let table = Arc::new(cluster.table());
        let old = tables.send_replace(Arc::clone(&table));
        metrics.follow(&old, &table);
        if table.is_complete() && !old.is_complete() {
            info!(
                models = table.models().len(),
                adapters = table.adapter_count(),
                "the models and their workers are known"
            );
        }
        if tables.is_closed() {
            return;
        }
    }
}

/// Takes events in. Returns whether the table is another one now.
fn take_in(cluster: &mut Cluster, batch: Vec<Result<Change, watcher::Error>>) -> bool {
    let mut changed = false;
    for change in batch {
        match change {
            Ok(change) => changed |= cluster.apply(change),
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "the API server failed"
                );
            }
        }
    }
    changed
}

type Changes = BoxStream<'static, Result<Change, watcher::Error>>;

fn watch_all(client: &Client, namespaces: &[String], metrics: &Metrics) -> SelectAll<Changes> {
    let sources: Vec<Option<&String>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(Some).collect()
    };
    let models = ApiResource::erase::<Model>(&());
    let adapters = ApiResource::erase::<Adapter>(&());
    let slices = ApiResource::erase::<EndpointSlice>(&());
    let labelled = watcher::Config::default().labels(label::MODEL);
    let mut all = SelectAll::new();
    for (source, namespace) in sources.into_iter().enumerate() {
        let api = |kind: &ApiResource| -> Api<DynamicObject> {
            match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, kind),
                None => Api::all_with(client.clone(), kind),
            }
        };
        let config = watcher::Config::default();
        let unread = Unread::new(&models.kind, metrics);
        let of_models = events(api(&models), config, facts::model, unread);
        all.push(
            of_models
                .map(move |e| e.map(|e| Change::Models(source, e)))
                .boxed(),
        );
        let unread = Unread::new(&adapters.kind, metrics);
        let config = watcher::Config::default();
        let of_adapters = events(api(&adapters), config, facts::adapter, unread);
        all.push(optional(of_adapters, source).boxed());
        let unread = Unread::new(&slices.kind, metrics);
        let of_slices = events(api(&slices), labelled.clone(), facts::slice, unread);
        all.push(
            of_slices
                .map(move |e| e.map(|e| Change::Slices(source, e)))
                .boxed(),
        );
    }
    all
}

/// The events of a watch, reduced to what the table is made of.
///
/// Objects come as they are stored, and each is read by itself: what the API server stores and
/// our types cannot hold, now or in a later version of the CRD, must not cost the others. Read as
/// a type of ours, one such object would fail the whole list, again and again.
fn events<T: Send + 'static>(
    api: Api<DynamicObject>,
    config: watcher::Config,
    reduce: fn(&DynamicObject) -> Option<Facts<T>>,
    mut unread: Unread,
) -> impl Stream<Item = Result<Event<T>, watcher::Error>> + Send {
    watcher(api, config)
        .backoff(Pauses(FIRST_PAUSE))
        .filter_map(move |event| {
            let mut read = |object: DynamicObject| {
                let facts = reduce(&object)?;
                unread.note(&object, &facts.unread);
                Some(facts.known)
            };
            std::future::ready(match event {
                Ok(Event::Apply(object)) => read(object).map(|t| Ok(Event::Apply(t))),
                Ok(Event::InitApply(object)) => read(object).map(|t| Ok(Event::InitApply(t))),
                Ok(Event::Delete(object)) => {
                    unread.forget(&object);
                    reduce(&object).map(|facts| Ok(Event::Delete(facts.known)))
                }
                Ok(Event::Init) => {
                    unread.clear();
                    Some(Ok(Event::Init))
                }
                Ok(Event::InitDone) => Some(Ok(Event::InitDone)),
                Err(error) => Some(Err(error)),
            })
        })
}

/// The changes of Adapters, of which a cluster may know nothing: their kind came later than that of
/// Models, and so did our right to see them. That is said once, and looked at again now and then.
fn optional(
    events: impl Stream<Item = Result<Event<Arc<AdapterFacts>>, watcher::Error>> + Send,
    source: usize,
) -> impl Stream<Item = Result<Change, watcher::Error>> + Send {
    let mut absent = false;
    events.filter_map(move |event| {
        let mut pause = Duration::ZERO;
        let change = match event {
            Err(error) if is_absent(&error) && std::mem::replace(&mut absent, true) => {
                pause = LOOK_FOR_ADAPTERS;
                None
            }
            Err(error) if is_absent(&error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "this cluster shows no Adapters; models are served without them until it does"
                );
                Some(Ok(Change::NoAdapters(source)))
            }
            Err(error) => Some(Err(error)),
            Ok(event) => {
                if matches!(event, Event::InitDone) && std::mem::take(&mut absent) {
                    info!("this cluster shows Adapters now");
                }
                Some(Ok(Change::Adapters(source, event)))
            }
        };
        async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            change
        }
    })
}

/// Whether the API server has no such kind, or refuses to list it.
fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            // Not by its reason: where there is no such path, the answer is no status object.
            matches!(status.code, 404 | 403)
        }
        _ => false,
    }
}

/// Pauses between attempts to reach the API server.
#[derive(Debug)]
struct Pauses(Duration);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        // Gateways that lost the API server together do not all come back at once.
        Some(pause.mul_f64(0.75 + fastrand::f64() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}
