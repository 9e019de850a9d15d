//! The certificates that are kept, against an API server in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_operator::{
    authority::{self, AUTHORITY, Keeper, REGISTRY, Settings, TRUST},
    metrics::Metrics,
    reporting::events::Recorder,
};
use hyprstream_tls::{Issued, Trust};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use world::cluster::Cluster;

const SECRETS: &str = "v1/secrets";
const MAPS: &str = "v1/configmaps";
const EVENTS: &str = "events.k8s.io/v1/events";
const PATIENCE: Duration = Duration::from_secs(30);

struct Kept {
    cluster: Cluster,
    trust: Trust,
    metrics: Metrics,
    client: Client,
    keeper: JoinHandle<()>,
}

impl Kept {
    async fn new(overlap: Duration) -> Self {
        let cluster = Cluster::new();
        let url: http::Uri = cluster.serve().await.parse().unwrap();
        let client = Client::try_from(Config::new(url)).unwrap();
        let mut kept = Self {
            cluster,
            trust: Trust::shared(),
            metrics: Metrics::new().unwrap(),
            client,
            keeper: tokio::spawn(async {}),
        };
        kept.start(overlap);
        kept
    }

    fn start(&mut self, overlap: Duration) {
        self.keeper.abort();
        let settings = Settings {
            namespace: "system".into(),
            names: authority::names(&["registry.system.svc".into(), "127.0.0.1".into()]),
            overlap,
            pause: Duration::from_millis(20),
        };
        let recorder = Recorder::new(self.client.clone(), "test".into());
        let (metrics, trust) = (self.metrics.clone(), self.trust.clone());
        let keeper = Keeper::new(settings, self.client.clone(), recorder, metrics, trust);
        self.keeper = tokio::spawn(keeper.run());
    }

    fn field(&self, resource: &str, name: &str, field: &str) -> Option<String> {
        let object = self.cluster.get(resource, "system", name)?;
        let text = object["data"][field].as_str()?;
        if resource == MAPS {
            return Some(text.to_owned());
        }
        Some(String::from_utf8(STANDARD.decode(text).ok()?).unwrap())
    }

    /// The registry's certificate, if it can be used and is trusted.
    fn leaf(&self) -> Option<Issued> {
        let field = |name| self.field(SECRETS, REGISTRY, name);
        let issued = Issued {
            certificate: field("tls.crt")?,
            key: field("tls.key")?,
        };
        issued.check("it").ok()?;
        let by = field("ca.crt")?;
        let bundle = self.field(MAPS, TRUST, "ca.crt")?;
        (issued.is_signed_by(&by) && bundle.contains(by.trim())).then_some(issued)
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what} did not come");
    }

    fn authorities(&self) -> usize {
        let bundle = self.field(MAPS, TRUST, "ca.crt").unwrap_or_default();
        bundle.matches("BEGIN CERTIFICATE").count()
    }

    fn reasons(&self) -> Vec<String> {
        let reason = |event: &Value| event["reason"].as_str().unwrap_or_default().to_owned();
        self.cluster.list(EVENTS).iter().map(reason).collect()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[tokio::test]
async fn an_empty_namespace_gets_all_three_and_whoever_waits_hears_of_the_bundle() {
    let kept = Kept::new(Duration::from_hours(1)).await;
    kept.until("the certificate", |k| k.leaf().is_some()).await;
    kept.until("the trust", |k| k.trust.certificates().len() == 1)
        .await;
    let secret = kept.cluster.get(SECRETS, "system", REGISTRY).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    let ends = |kept: &Kept, name: &str| {
        let gauge = &kept.metrics.certificate_ends;
        gauge.with_label_values(&[name]).get()
    };
    // Told at the look after the last write.
    kept.until("the figure", |k| ends(k, "registry") > 0).await;
    assert!(ends(&kept, "authority") > ends(&kept, "registry"));
    let writes = kept.cluster.writes().len();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        kept.cluster.writes().len(),
        writes,
        "nothing is written at rest"
    );
}

#[tokio::test]
async fn what_is_deleted_comes_back_and_another_process_changes_nothing() {
    let mut kept = Kept::new(Duration::from_hours(1)).await;
    kept.until("the certificate", |k| k.leaf().is_some()).await;
    let first = kept.leaf().unwrap();
    kept.cluster.delete(SECRETS, "system", REGISTRY);
    kept.until("another certificate", |k| {
        k.leaf().is_some_and(|leaf| leaf != first)
    })
    .await;
    let second = kept.leaf().unwrap();
    kept.cluster.delete(MAPS, "system", TRUST);
    kept.until("the bundle", |k| k.authorities() == 1).await;
    assert_eq!(kept.leaf().unwrap(), second);
    kept.start(Duration::from_hours(1));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(kept.leaf().unwrap(), second);
}

#[tokio::test]
async fn a_lost_authority_signs_no_more_once_another_is_trusted_for_long_enough() {
    let mut kept = Kept::new(Duration::from_hours(1)).await;
    kept.until("the certificate", |k| k.leaf().is_some()).await;
    let first = kept.leaf().unwrap();
    kept.cluster.delete(SECRETS, "system", AUTHORITY);
    kept.until("two authorities", |k| k.authorities() == 2)
        .await;
    kept.until("the trust", |k| k.trust.certificates().len() == 2)
        .await;
    assert_eq!(kept.leaf().unwrap(), first);
    kept.start(Duration::from_secs(1));
    kept.until("a certificate of the new one", |k| {
        k.leaf().is_some_and(|leaf| leaf != first)
    })
    .await;
    assert_eq!(kept.authorities(), 2, "what it signed may still be shown");
}

#[tokio::test]
async fn what_somebody_broke_is_replaced_with_an_event_whatever_its_type() {
    let kept = Kept::new(Duration::from_hours(1)).await;
    kept.until("the certificate", |k| k.leaf().is_some()).await;
    let broken = |kind: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": {"name": REGISTRY, "namespace": "system"},
            "data": {"tls.crt": "bm9uc2Vuc2U=", "tls.key": "bm9uc2Vuc2U="},
        })
    };
    for kind in ["kubernetes.io/tls", "Opaque"] {
        kept.cluster.put(SECRETS, broken(kind));
        kept.until("a good certificate", |k| k.leaf().is_some())
            .await;
        let secret = kept.cluster.get(SECRETS, "system", REGISTRY).unwrap();
        assert_eq!(secret["type"], "kubernetes.io/tls");
    }
    kept.until("the events", |k| {
        k.reasons()
            .iter()
            .filter(|r| *r == "CertificateReplaced")
            .count()
            == 2
    })
    .await;
}
