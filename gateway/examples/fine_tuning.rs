//! The gateway with a registry and an API server in memory, for clients of the fine-tuning API to
//! be tried on without a cluster: prints its address and serves until it is ended. The key opens
//! the namespace `team-a`, which has the Model `m`.
//!
//! ```text
//! cargo run -p hyprstream-gateway --example fine_tuning
//! python e2e/clients/fine_tuning.py http://127.0.0.1:PORT/v1 m KEY
//! ```

#![allow(clippy::unwrap_used, reason = "for trials only")]

#[path = "../tests/common/fakes.rs"]
mod fakes;

use std::{collections::HashMap, sync::Arc};

use fakes::{Fakes, TOKEN};
use hyprstream_gateway::{
    Config, Gateway, Metrics,
    fine_tuning::{ClientKeys, FineTuning, FineTuningConfig, Registry},
    table::{Hope, ModelFacts, ModelKey, Reference, Table},
};
use tokio::{net::TcpListener, sync::watch};

const KEY: &str = "key-of-team-a-key-of-team-a-key-of-team-a";

#[tokio::main]
async fn main() {
    let fakes = Fakes::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let registry = Registry::new(
        fakes.url().parse().unwrap(),
        token,
        &hyprstream_tls::Trust::nobody(),
    )
    .unwrap();
    let cluster = kube::Config::new(fakes.url().parse().unwrap());
    let cluster = kube::Client::try_from(cluster).unwrap();
    let keys = [("team-a".to_owned(), KEY.to_owned())];
    let keys = ClientKeys::new(&keys.into()).unwrap();
    let api = FineTuning::new(FineTuningConfig::default(), registry, cluster, keys);
    let model = ModelFacts {
        key: ModelKey::new("team-a", "m"),
        reference: Reference::Branch("main".to_owned()),
        commit: None,
        replicas: 1,
        suspended: false,
        hope: Hope::Good,
        reason: String::new(),
        message: String::new(),
        created: 1,
    };
    let table = Table::new([model], HashMap::new(), true);
    let (_tables, receiver) = watch::channel(Arc::new(table));
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}/v1 m {KEY}", listener.local_addr().unwrap());
    let gateway = Gateway::new(Config::default(), receiver, metrics);
    let gateway = gateway.with_fine_tuning(Arc::new(api));
    gateway.run(listener, std::future::pending()).await.unwrap();
}
