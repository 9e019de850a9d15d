//! What workers show, and who believes it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use hyprstream_contract::worker_tls;
use hyprstream_operator::policy::WorkerTls;
use hyprstream_tls::Facts;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use world::{
    A, MODELS, URL, World,
    kubelet::{DEPLOYMENTS, PODS},
    spec,
};

const SECRETS: &str = "v1/secrets";
const NAME: &str = "m-worker-tls";

/// A world with a Model `m` that serves [`A`].
async fn served(worker_tls: WorkerTls) -> World {
    let world = World::speaking(worker_tls).await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world
}

fn field(world: &World, name: &str) -> Option<String> {
    let secret = world.cluster.get(SECRETS, "ns", NAME)?;
    let bytes: ByteString = serde_json::from_value(secret["data"][name].clone()).ok()?;
    String::from_utf8(bytes.0).ok()
}

fn look_again(world: &World, why: &str) {
    world.edit("m", |model| {
        model["metadata"]["annotations"]["hyprstream.io/reconcile-at"] = json!(why);
    });
}

fn uids(world: &World) -> Vec<Value> {
    let pods = world.cluster.list(PODS);
    pods.iter()
        .map(|pod| pod["metadata"]["uid"].clone())
        .collect()
}

#[tokio::test]
async fn a_model_gets_a_certificate_by_which_its_workers_are_known() {
    let world = served(WorkerTls::Strict).await;
    let secret = world.cluster.get(SECRETS, "ns", NAME).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["kind"], "Model");
    let certificate = field(&world, "tls.crt").unwrap();
    let chain = hyprstream_tls::certificates(certificate.as_bytes(), "the Secret").unwrap();
    for host in [
        worker_tls::name("ns", "m"),
        worker_tls::pod_name("ns", "m", [10, 0, 0, 1].into()),
        "m.ns.svc".to_owned(),
        worker_tls::ZONE.to_owned(),
    ] {
        world.trust.verify(&chain[0], &host).unwrap();
    }
    for host in [
        worker_tls::name("ns", "other"),
        worker_tls::name("other", "m"),
        "other.ns.svc".to_owned(),
        "m.other.svc".to_owned(),
    ] {
        assert!(world.trust.verify(&chain[0], &host).is_err(), "{host}");
    }
    assert_eq!(
        world.status("m").url.as_deref(),
        Some("https://m.ns.svc:8443/v1")
    );
    // By its name the operator knows it, too: nothing else listens there.
    world.apply_adapter("sql", "adapters/01_sql");
    world.loaded("sql", A).await;
    assert_eq!(world.workers.refused(), 0);
    world.cluster.delete(MODELS, "ns", "m");
    assert!(world.cluster.get(SECRETS, "ns", NAME).is_none());
}

#[tokio::test]
async fn a_certificate_that_is_gone_or_broken_is_made_anew_and_no_pod_for_it() {
    let world = served(WorkerTls::Permissive).await;
    let before = field(&world, "tls.crt").unwrap();
    let (pods, template) = (
        uids(&world),
        world.cluster.list(DEPLOYMENTS)[0]["spec"].clone(),
    );
    look_again(&world, "nothing");
    world.quiet().await;
    assert_eq!(
        field(&world, "tls.crt").as_ref(),
        Some(&before),
        "it will do"
    );

    world.cluster.delete(SECRETS, "ns", NAME);
    look_again(&world, "gone");
    let is_new = |old: &str| field(&world, "tls.crt").is_some_and(|now| now != old);
    world.wait("another certificate", || is_new(&before)).await;
    let second = field(&world, "tls.crt").unwrap();
    Facts::of_pem(&second, "the second").unwrap();

    world.cluster.change(SECRETS, "ns", NAME, |secret| {
        secret["data"]["tls.key"] = json!("eA==");
    });
    look_again(&world, "broken");
    world.wait("a third certificate", || is_new(&second)).await;
    world.settled("m", A).await;
    assert_eq!(uids(&world), pods);
    assert_eq!(world.cluster.list(DEPLOYMENTS)[0]["spec"], template);
}

#[tokio::test]
async fn another_authority_signs_anew_and_without_one_what_is_there_stays() {
    let world = served(WorkerTls::Strict).await;
    let before = field(&world, "tls.crt");
    let pods = uids(&world);
    world.signer.send_replace(None);
    look_again(&world, "nobody");
    world.quiet().await;
    assert_eq!(field(&world, "tls.crt"), before, "nobody may sign another");

    world.sign_anew();
    look_again(&world, "another");
    let signer = world.signer.borrow().clone().unwrap();
    let certificate = signer.issued().certificate.clone();
    let is_signed = || field(&world, "ca.crt").as_ref() == Some(&certificate);
    world.wait("a certificate of it", is_signed).await;
    assert_ne!(field(&world, "tls.crt"), before);
    assert_eq!(uids(&world), pods);
}

#[tokio::test]
async fn workers_wait_for_somebody_who_signs() {
    let world = World::speaking(WorkerTls::Strict).await;
    world.signer.send_replace(None);
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    let is_served = || world.cluster.get("v1/services", "ns", "m").is_some();
    world.wait("its Service", is_served).await;
    world.quiet().await;
    assert!(world.cluster.list(DEPLOYMENTS).is_empty());
    world.sign_anew();
    world.settled("m", A).await;
}

#[tokio::test]
async fn a_secret_of_the_name_that_is_somebody_elses_is_left_alone_and_told() {
    let world = World::speaking(WorkerTls::Strict).await;
    world.cluster.put(
        SECRETS,
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": "ns"},
            "data": {"tls.crt": "eA=="},
        }),
    );
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.reason("m", "Stalled", "NameConflict").await;
    assert_eq!(field(&world, "tls.crt").as_deref(), Some("x"));
}

#[tokio::test]
async fn a_release_that_brings_tls_replaces_workers_and_one_that_takes_it_back_too() {
    let mut world = served(WorkerTls::Off).await;
    assert!(world.cluster.get(SECRETS, "ns", NAME).is_none());
    let ports = |world: &World| {
        let service = world.cluster.get("v1/services", "ns", "m").unwrap();
        let ports = service["spec"]["ports"].as_array().unwrap().clone();
        let names = ports
            .iter()
            .map(|port| port["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(ports(&world), ["http"]);
    let speaks = |world: &World| {
        let pods = world.cluster.list(PODS);
        let of = |pod: &Value| {
            let ports = pod["spec"]["containers"][0]["ports"]
                .as_array()
                .unwrap()
                .clone();
            let names = ports
                .iter()
                .map(|port| port["name"].as_str().unwrap().to_owned());
            names.collect::<Vec<_>>().join(" ")
        };
        pods.iter().map(of).collect::<Vec<_>>()
    };
    for (worker_tls, spoken) in [
        (WorkerTls::Permissive, "http https"),
        (WorkerTls::Strict, "https"),
        (WorkerTls::Off, "http"),
    ] {
        world.kill_operator();
        world.worker_tls = worker_tls;
        world.start();
        world
            .wait(spoken, || speaks(&world) == [spoken.to_owned()])
            .await;
        world.settled("m", A).await;
    }
    assert_eq!(ports(&world), ["http"]);
}
