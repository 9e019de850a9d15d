use std::{
    collections::HashMap,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use futures::{FutureExt, future::BoxFuture};
use hyprstream_api::{Checked, Model};
use kube::{Client, Config};
use serde_json::{Value, json};
use tracing::{Dispatch, instrument::WithSubscriber};

use super::{
    Outcome, Reconcile, Reconciled,
    backoff::Backoff,
    reconcile::{Frame, reconcile},
};
use crate::{
    metrics::Metrics,
    reporting::{Statuses, events::Recorder},
};

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs two lines for each object.
struct Talker(Statuses<Model>);

impl Reconcile for Talker {
    type Kind = Model;

    fn ready(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn reconcile<'a>(&'a self, _: &'a Model) -> BoxFuture<'a, Reconciled> {
        async {
            tracing::info!("one");
            tokio::task::yield_now().await;
            tracing::info!("two");
            Reconciled {
                outcome: Outcome::Done,
                again: None,
            }
        }
        .boxed()
    }

    fn statuses(&self) -> &Statuses<Model> {
        &self.0
    }

    fn stop(&self, _: &str) {}

    fn retain(&self, _: &dyn Fn(&str) -> bool) {}
}

#[tokio::test]
async fn each_line_of_a_reconciliation_names_its_object() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(move || writer.clone())
        .finish();
    let subscriber = Dispatch::new(subscriber);
    let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let metrics = Metrics::new().unwrap();
    let recorder = Recorder::new(client.clone(), "test".into());
    let frame = Arc::new(Frame {
        reconciler: Talker(Statuses::new(client, metrics.clone(), recorder)),
        backoff: Backoff::default(),
        metrics,
    });
    let of = |name: &str| -> Arc<Checked<Model>> {
        let value = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"source": {"url": "https://example.org/m"}},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    };
    let both = futures::future::join(
        reconcile(of("a"), frame.clone()),
        reconcile(of("b"), frame.clone()),
    );
    both.with_subscriber(subscriber).await.0.unwrap();

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let mut said: HashMap<String, Vec<Value>> = HashMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let span = &line["span"];
        assert_eq!(
            (&span["kind"], &span["namespace"]),
            (&json!("Model"), &json!("ns"))
        );
        let name = span["object"].as_str().unwrap().to_owned();
        said.entry(name)
            .or_default()
            .push(span["reconcile"].clone());
    }
    let (a, b) = (&said["a"], &said["b"]);
    assert_eq!((a.len(), b.len()), (2, 2), "{text}");
    assert!(a[0].is_u64() && a[0] == a[1] && b[0] == b[1] && a[0] != b[0]);
}
