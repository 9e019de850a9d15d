//! What the operator is shown in confidence stands neither in its log and metrics, nor in what it
//! tells of objects, nor on a command line.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

#[path = "../../crates/git2db/tests/support/secrets.rs"]
mod planted;
mod world;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_api::condition::SOURCE_RESOLVED;
use planted::{Found, Watch, told};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use world::{
    A, B, MODELS, World,
    kubelet::{CLAIMS, DEPLOYMENTS, PODS, VOLUMES},
    spec,
};

const REGISTRY: &str = "planted-admin-token-of-the-registry";
const MASTER: &str = "planted-master-key-of-the-workers-of-all-models";
const RIGHT: &str = "planted-token-that-is-right";
const WRONG: &str = "planted-token-that-is-wrong";
const PASSWORD: &str = "planted-password-of-somebody";
const SSH: &str = "planted-private-key-of-ssh";
const PASSPHRASE: &str = "planted-passphrase-of-ssh";
const PLANTED: [&str; 7] = [REGISTRY, MASTER, RIGHT, WRONG, PASSWORD, SSH, PASSPHRASE];

const SECRETS: &str = "v1/secrets";
/// All that the operator writes, but Secrets.
const WRITTEN: [&str; 9] = [
    MODELS,
    DEPLOYMENTS,
    PODS,
    VOLUMES,
    CLAIMS,
    "v1/services",
    "events.k8s.io/v1/events",
    "policy/v1/poddisruptionbudgets",
    "coordination.k8s.io/v1/leases",
];

/// The program, logging all that it can say to a file of `home`.
async fn operator(world: &World, home: &std::path::Path, admin: SocketAddr) -> Child {
    let url = world.cluster.serve().await;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    fs::write(home.join("config"), config.to_string()).unwrap();
    fs::write(home.join("token"), format!("{REGISTRY}\n")).unwrap();
    fs::write(home.join("master"), format!("{MASTER}\n")).unwrap();
    let registry = world.registry.serve().await;
    Command::new(env!("CARGO_BIN_EXE_hyprstream-operator"))
        .env_clear()
        .env("KUBECONFIG", home.join("config"))
        .env("POD_NAMESPACE", "hyprstream-system")
        .env("HYPRSTREAM_LOG", "trace")
        .env("HYPRSTREAM_LOG_FORMAT", "json")
        .stderr(File::create(home.join("log")).unwrap())
        .kill_on_drop(true)
        .arg("run")
        .args(["--pod-name", "first", "--worker-image", "w:1"])
        .args(["--admin-listen", &admin.to_string()])
        .args(["--registry-url", registry.as_str()])
        .arg("--registry-token-file")
        .arg(home.join("token"))
        .arg("--worker-master-key-file")
        .arg(home.join("master"))
        .spawn()
        .unwrap()
}

/// A Model of a private repository, whose Secret holds `data`.
fn apply_private(world: &World, name: &str, url: &str, data: &Value) {
    apply_secret(world, name, data);
    let mut private = spec();
    private["source"]["url"] = json!(url);
    private["source"]["secretRef"] = json!({"name": name});
    world.apply_model(name, &private);
}

fn apply_secret(world: &World, name: &str, data: &Value) {
    let data = data.as_object().unwrap().iter();
    let data: serde_json::Map<_, _> = data
        .map(|(key, value)| (key.clone(), json!(STANDARD.encode(value.as_str().unwrap()))))
        .collect();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "data": data, "type": "Opaque",
        "metadata": {"name": name, "namespace": "ns",
            "labels": {"hyprstream.io/git-credentials": "true"}},
    });
    world.cluster.put(SECRETS, secret);
}

/// What stands in the Secrets that the operator made: keys of workers and words of volumes.
fn made(world: &World) -> BTreeSet<String> {
    let secrets = world.cluster.list(SECRETS);
    let values = secrets.iter().flat_map(|secret| {
        let plain = secret["stringData"].as_object().into_iter().flatten();
        let plain = plain.map(|(_, value)| value.as_str().unwrap().to_owned());
        let coded = secret["data"].as_object().into_iter().flatten();
        let coded = coded.map(|(_, value)| {
            let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap().trim().to_owned()
        });
        plain.chain(coded).collect::<Vec<_>>()
    });
    values.filter(|value| value.len() >= 16).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_logged_told_of_an_object_or_seen_on_a_command_line() {
    let watch = Watch::over(std::process::id());
    let mut world = World::new().await;
    world.kill_operator();
    let home = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let mut program = operator(&world, home.path(), admin).await;

    let url = "https://git.example.org/m";
    world.registry.set_head(url, Ok(A));
    world.registry.want_token(url, RIGHT);
    apply_private(&world, "token", url, &json!({"token": WRONG}));
    world
        .reason("token", SOURCE_RESOLVED, "AuthenticationFailed")
        .await;
    apply_secret(&world, "token", &json!({"token": RIGHT}));
    let basic = json!({"username": "somebody", "password": PASSWORD});
    let ssh = json!({
        "ssh-privatekey": SSH, "passphrase": PASSPHRASE,
        "known_hosts": "git.example.org ssh-ed25519 AAAA",
    });
    for (name, url, data) in [
        ("basic", "https://git.example.org/b", &basic),
        ("ssh", "ssh://git@git.example.org/s", &ssh),
    ] {
        world.registry.set_head(url, Ok(A));
        apply_private(&world, name, url, data);
    }
    for name in ["token", "basic", "ssh"] {
        world.settled(name, A).await;
    }
    // And where it is refused.
    world.cluster.put(
        MODELS,
        json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": "plain", "namespace": "ns"},
            "spec": {"source": {"url": "http://git.example.org/p", "secretRef": {"name": "token"}}},
        }),
    );
    world.reason("plain", "Stalled", "InvalidSpec").await;
    world.registry.set_head(url, Ok(B));
    world.edit("token", |model| {
        model["metadata"]["annotations"] = json!({"hyprstream.io/reconcile-at": "now"});
    });
    world.settled("token", B).await;

    let mut metrics = String::new();
    let mut socket = TcpStream::connect(admin).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    socket.read_to_string(&mut metrics).unwrap();
    assert!(metrics.contains("hyprstream_operator_"), "{metrics}");
    program.kill().await.unwrap();
    let log = fs::read_to_string(home.path().join("log")).unwrap();
    let mut found = Found::new();
    for resource in WRITTEN {
        let objects = json!(world.cluster.list(resource)).to_string();
        found.push((resource.to_owned(), objects.into_bytes()));
    }
    // The registry is told of words by their digests.
    let grants = format!("{:?}", world.registry.grants());
    found.push(("grants".to_owned(), grants.into_bytes()));
    found.push(("metrics".to_owned(), metrics.into_bytes()));
    found.push(("the log".to_owned(), log.clone().into_bytes()));
    let lines: Vec<_> = watch.end().into_iter().collect();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("hyprstream-operator")),
        "{lines:?}"
    );
    found.push(("command lines".to_owned(), lines.join("\n").into_bytes()));

    let mut secrets = made(&world);
    assert!(
        secrets.iter().any(|secret| secret.starts_with("hsv_")),
        "words of volumes"
    );
    assert!(secrets.len() > PLANTED.len(), "{}", secrets.len());
    secrets.extend(PLANTED.map(str::to_owned));
    // What everybody may read has the same length.
    secrets.retain(|secret| !secret.contains("ssh-ed25519"));
    let secrets: Vec<_> = secrets.into_iter().collect();
    assert_eq!(told(&secrets, &found), [""; 0]);
    // What is no secret is found in the same places.
    for (known, place) in [(url, MODELS), ("hyprstream-system", "the log")] {
        let stands = told(&[known], &found);
        assert!(
            stands.iter().any(|stands| stands.ends_with(place)),
            "{place}: {stands:?}"
        );
    }
    assert!(log.contains("TRACE"), "it says all that it can");
}
