//! The table against an API server that stores what our types cannot hold.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use common::eventually;
use futures::{StreamExt, stream};
use hyprstream_gateway::{
    Metrics,
    table::{ModelKey, Table},
    watch,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch as channel},
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

#[tokio::test]
async fn an_object_that_cannot_be_read_costs_no_other_of_its_kind() {
    let good = json!([{"name": "http", "port": 8000}]);
    let bad = json!([{"name": "http", "port": 3_000_000_000_u32}]);
    let models = kind("Model", &[model("fine", 1), model("huge", 3_000_000_000)]);
    let slices = kind(
        "EndpointSlice",
        &[slice("fine", &bad), slice("huge", &good)],
    );
    let app = Router::new()
        .route(
            "/apis/hyprstream.io/v1alpha1/models",
            get(answer).with_state(Arc::clone(&models)),
        )
        .route(
            "/apis/discovery.k8s.io/v1/endpointslices",
            get(answer).with_state(Arc::clone(&slices)),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();

    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let (sender, tables) = channel::channel(Arc::new(Table::default()));
    let watching = tokio::spawn(async move { watch::run(client, &[], sender, metrics).await });
    let workers = |name: &str| {
        let table = tables.borrow();
        table
            .get(&ModelKey::new("a", name))
            .map(|entry| entry.endpoints.len())
    };
    let unread = || {
        let families = registry.gather();
        let family = families
            .iter()
            .find(|f| f.name().ends_with("_unread_objects"));
        family.map_or(0.0, |family| {
            let gauges = family.get_metric().iter();
            gauges.map(|metric| metric.get_gauge().get_value()).sum()
        })
    };
    eventually("the lists are complete", || tables.borrow().is_complete()).await;
    assert_eq!((workers("fine"), workers("huge")), (Some(0), Some(1)));
    assert!((unread() - 1.0).abs() < 0.1, "one slice is reported");

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
    assert!(unread().abs() < 0.1);
    tokio::time::timeout(Duration::from_secs(5), async {
        watching.abort();
        server.abort();
        let _ = (watching.await, server.await);
    })
    .await
    .unwrap();
}
