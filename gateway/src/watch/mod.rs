//! The table's source: the Models and EndpointSlices of a cluster.

mod cluster;
mod facts;
mod unread;

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};
use hyprstream_api::Model;
use hyprstream_contract::label;
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
use tokio::sync::watch;
use tracing::{info, warn};

use self::{
    cluster::{Change, Cluster},
    facts::Facts,
    unread::Unread,
};
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
    let mut changes = watch_all(&client, namespaces, &metrics).ready_chunks(MAX_BATCH);
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

fn watch_all(client: &Client, namespaces: &[String], metrics: &Metrics) -> SelectAll<Changes> {
    let sources: Vec<Option<&String>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(Some).collect()
    };
    let models = ApiResource::erase::<Model>(&());
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
