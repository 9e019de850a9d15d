//! The table against an API server that stores what our types cannot hold.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use common::eventually;
use futures::{StreamExt, stream};
use http::StatusCode;
use hyprstream_gateway::{
    Metrics,
    table::{ModelKey, Table},
    watch,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch as channel},
    task::JoinHandle,
};

/// What one kind of objects is at first, and its events from then on.
struct Kind {
    list: Value,
    events: broadcast::Sender<Value>,
}

#[derive(serde::Deserialize)]
struct Asked {
    watch: Option<bool>,
}

async fn answer(State(kind): State<Arc<Kind>>, Query(asked): Query<Asked>) -> Response {
    if asked.watch != Some(true) {
        return Json(kind.list.clone()).into_response();
    }
    let events = stream::unfold(kind.events.subscribe(), |mut events| async {
        let event: Value = events.recv().await.ok()?;
        Some((Bytes::from(format!("{event}\n")), events))
    });
    Body::from_stream(events.map(Ok::<_, std::io::Error>)).into_response()
}

fn kind(kind: &str, items: &[Value]) -> Arc<Kind> {
    let list = json!({
        "kind": format!("{kind}List"), "apiVersion": "v1",
        "metadata": {"resourceVersion": "1"}, "items": items,
    });
    Arc::new(Kind {
        list,
        events: broadcast::channel(16).0,
    })
}

fn model(name: &str, max_surge: u32) -> Value {
    json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
        "metadata": {"name": name, "namespace": "a", "resourceVersion": "1"},
        "spec": {"source": {"url": "https://example.org/m"}, "rollout": {"maxSurge": max_surge}},
    })
}

fn slice(name: &str, ports: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "a", "resourceVersion": "1",
                     "labels": {"hyprstream.io/model": name}},
        "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": ports,
    })
}

fn adapter(name: &str, model: &Value) -> Value {
    json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
        "metadata": {"name": name, "namespace": "a", "resourceVersion": "1"},
        "spec": {"modelRef": {"name": model}, "source": {"path": "adapters/01_sql.safetensors"}},
    })
}

/// A table that follows an API server.
struct Followed {
    tables: channel::Receiver<Arc<Table>>,
    registry: prometheus::Registry,
    tasks: [JoinHandle<()>; 2],
}

impl Followed {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let (sender, tables) = channel::channel(Arc::new(Table::default()));
        let watching =
            tokio::spawn(async move { watch::run(client, &[], None, sender, metrics).await });
        Self {
            tables,
            registry,
            tasks: [watching, server],
        }
    }

    fn is_complete(&self) -> bool {
        self.tables.borrow().is_complete()
    }

    /// How many workers a Model has.
    fn workers(&self, name: &str) -> Option<usize> {
        let table = self.tables.borrow();
        let entry = table.get(&ModelKey::new("a", name));
        entry.map(|entry| entry.endpoints.len())
    }

    /// Served names of the adapters of a Model.
    fn adapters(&self, name: &str) -> Vec<String> {
        let table = self.tables.borrow();
        let key = ModelKey::new("a", name);
        table
            .adapters(&key)
            .map(|facts| facts.served.to_string())
            .collect()
    }

    /// How many objects could not be read whole.
    fn unread(&self) -> u32 {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|f| f.name().ends_with("_unread_objects"));
        family.map_or(0, |family| {
            let gauges = family.get_metric().iter();
            gauges
                .map(|metric| metric.get_gauge().get_value() as u32)
                .sum()
        })
    }

    async fn stop(self) {
        tokio::time::timeout(Duration::from_secs(5), async {
            for task in self.tasks {
                task.abort();
                let _ = task.await;
            }
        })
        .await
        .unwrap();
    }
}

fn routes(kinds: &[(&str, &Arc<Kind>)]) -> Router {
    kinds.iter().fold(Router::new(), |app, (path, kind)| {
        app.route(path, get(answer).with_state(Arc::clone(kind)))
    })
}

const MODELS: &str = "/apis/hyprstream.io/v1alpha1/models";
const ADAPTERS: &str = "/apis/hyprstream.io/v1alpha1/adapters";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

#[tokio::test]
async fn an_adapter_that_cannot_be_read_hides_no_other() {
    let models = kind("Model", &[model("m", 1)]);
    let slices = kind("EndpointSlice", &[]);
    let mut named = adapter("tone", &json!("m"));
    named["spec"]["servedName"] = json!({"new": "form"});
    let adapters = kind(
        "Adapter",
        &[
            adapter("bad", &json!(["m"])),
            named,
            adapter("sql", &json!("m")),
        ],
    );
    let kinds = [(MODELS, &models), (ADAPTERS, &adapters), (SLICES, &slices)];
    let followed = Followed::start(routes(&kinds)).await;
    eventually("the lists are complete", || followed.is_complete()).await;
    assert_eq!(followed.adapters("m"), ["sql"]);
    assert_eq!(followed.unread(), 2);
    eventually("they are watched", || adapters.events.receiver_count() == 1).await;
    let event = json!({"type": "MODIFIED", "object": adapter("bad", &json!("m"))});
    adapters.events.send(event).unwrap();
    eventually("it can be read now", || {
        followed.adapters("m") == ["bad", "sql"]
    })
    .await;
    assert_eq!(followed.unread(), 1);
    followed.stop().await;
}

#[tokio::test]
async fn a_cluster_without_adapters_is_served_and_they_are_found_when_they_come() {
    let models = kind("Model", &[model("m", 1)]);
    let slices = kind("EndpointSlice", &[]);
    let adapters = kind("Adapter", &[adapter("sql", &json!("m"))]);
    let installed = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let app = routes(&[(MODELS, &models), (SLICES, &slices)]);
    let (is_there, count) = (Arc::clone(&installed), Arc::clone(&asked));
    let app = app.route(
        ADAPTERS,
        get(move |query: Query<Asked>| async move {
            count.fetch_add(1, Ordering::SeqCst);
            if is_there.load(Ordering::SeqCst) {
                answer(State(adapters), query).await
            } else {
                // As the API server says it of a kind that it does not know.
                (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
            }
        }),
    );
    let followed = Followed::start(app).await;
    eventually("it is complete without them", || followed.is_complete()).await;
    assert_eq!(followed.workers("m"), Some(0));
    eventually("they are asked for again", || {
        asked.load(Ordering::SeqCst) > 1
    })
    .await;
    installed.store(true, Ordering::SeqCst);
    eventually("they are found", || followed.adapters("m") == ["sql"]).await;
    followed.stop().await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_costs_no_other_of_its_kind() {
    let good = json!([{"name": "http", "port": 8000}]);
    let bad = json!([{"name": "http", "port": 3_000_000_000_u32}]);
    let models = kind("Model", &[model("fine", 1), model("huge", 3_000_000_000)]);
    let slices = kind(
        "EndpointSlice",
        &[slice("fine", &bad), slice("huge", &good)],
    );
    let adapters = kind("Adapter", &[]);
    let kinds = [(MODELS, &models), (ADAPTERS, &adapters), (SLICES, &slices)];
    let followed = Followed::start(routes(&kinds)).await;
    let workers = |name: &str| followed.workers(name);
    eventually("the lists are complete", || followed.is_complete()).await;
    assert_eq!((workers("fine"), workers("huge")), (Some(0), Some(1)));
    assert_eq!(followed.unread(), 1, "one slice is reported");

    eventually("both are watched", || {
        models.events.receiver_count() == 1 && slices.events.receiver_count() == 1
    })
    .await;
    let event = json!({"type": "ADDED", "object": model("late", 3_000_000_000)});
    models.events.send(event).unwrap();
    eventually("an event is read as a list is", || {
        workers("late") == Some(0)
    })
    .await;
    let event = json!({"type": "MODIFIED", "object": slice("fine", &good)});
    slices.events.send(event).unwrap();
    eventually("it can be read now", || workers("fine") == Some(1)).await;
    assert_eq!(followed.unread(), 0);
    followed.stop().await;
}
