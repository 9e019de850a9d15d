//! The table's source: the Models and EndpointSlices of a cluster.

mod cluster;
mod facts;

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};
use hyprstream_api::Model;
use hyprstream_contract::label;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{info, warn};

use self::cluster::{Change, Cluster};
use crate::{Metrics, table::Table};

/// Most events that go into one new table.
const MAX_BATCH: usize = 1024;
/// First pause after the API server failed; doubled by each failure that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause. Short, because no new worker is seen until it is over.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps `tables` at the state of the cluster, until nobody receives them any more. Without
/// `namespaces` all are watched. Failures of the API server are logged and tried again; the last
/// table stays until then.
pub async fn run(
    client: Client,
    namespaces: &[String],
    tables: watch::Sender<Arc<Table>>,
    metrics: Metrics,
) {
    let mut changes = watch_all(&client, namespaces).ready_chunks(MAX_BATCH);
    let mut cluster = Cluster::new(if namespaces.is_empty() {
        1
    } else {
        namespaces.len()
    });
    while let Some(batch) = changes.next().await {
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
        if !changed {
            continue;
        }
        let table = Arc::new(cluster.table());
        let old = tables.send_replace(Arc::clone(&table));
        metrics.follow(&old, &table);
        if table.is_complete() && !old.is_complete() {
            info!(
                models = table.models().len(),
                "the models and their workers are known"
            );
        }
        if tables.is_closed() {
            return;
        }
    }
}

type Changes = BoxStream<'static, Result<Change, watcher::Error>>;

fn watch_all(client: &Client, namespaces: &[String]) -> SelectAll<Changes> {
    let sources: Vec<Option<&String>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(Some).collect()
    };
    let mut all = SelectAll::new();
    for (source, namespace) in sources.into_iter().enumerate() {
        let models: Api<Model> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let slices: Api<EndpointSlice> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let models = events(models, watcher::Config::default(), |model| {
            facts::model(&model)
        });
        all.push(
            models
                .map(move |e| e.map(|e| Change::Models(source, e)))
                .boxed(),
        );
        let labelled = watcher::Config::default().labels(label::MODEL);
        let slices = events(slices, labelled, |slice| facts::slice(&slice));
        all.push(
            slices
                .map(move |e| e.map(|e| Change::Slices(source, e)))
                .boxed(),
        );
    }
    all
}

/// The events of a watch, reduced to what the table is made of.
fn events<K, T: Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
    reduce: fn(K) -> Option<T>,
) -> impl Stream<Item = Result<Event<T>, watcher::Error>> + Send
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(api, config)
        .backoff(Pauses(FIRST_PAUSE))
        .filter_map(move |event| {
            std::future::ready(match event {
                Ok(Event::Apply(object)) => reduce(object).map(|t| Ok(Event::Apply(t))),
                Ok(Event::Delete(object)) => reduce(object).map(|t| Ok(Event::Delete(t))),
                Ok(Event::InitApply(object)) => reduce(object).map(|t| Ok(Event::InitApply(t))),
                Ok(Event::Init) => Some(Ok(Event::Init)),
                Ok(Event::InitDone) => Some(Ok(Event::InitDone)),
                Err(error) => Some(Err(error)),
            })
        })
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
