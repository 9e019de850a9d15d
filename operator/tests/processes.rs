//! The program itself, as processes against an API server and a registry in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use hyprstream_api::condition::READY;
use serde_json::json;
use tokio::process::{Child, Command};
use world::{
    A, MODELS, World,
    kubelet::{CLAIMS, DEPLOYMENTS, PODS, VOLUMES},
    spec,
};

const LEASES: &str = "coordination.k8s.io/v1/leases";

/// A world whose operators are processes.
struct Site {
    world: World,
    home: tempfile::TempDir,
    registry: url::Url,
}

impl Site {
    async fn new() -> Self {
        let mut world = World::new().await;
        world.kill_operator();
        let home = tempfile::tempdir().unwrap();
        let url = world.cluster.serve().await;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(home.path().join("config"), config.to_string()).unwrap();
        std::fs::write(home.path().join("token"), "t").unwrap();
        std::fs::write(home.path().join("master"), world::MASTER_KEY).unwrap();
        let registry = world.registry.serve().await;
        Self {
            world,
            home,
            registry,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-operator"));
        command
            .env_clear()
            .env("KUBECONFIG", self.home.path().join("config"))
            .env("POD_NAMESPACE", "hyprstream-system")
            .env("HYPRSTREAM_LOG", "warn")
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        command
    }

    fn operator(&self, pod: &str) -> Child {
        self.command()
            .arg("run")
            .args([
                "--pod-name",
                pod,
                "--worker-image",
                "w:1",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .args([
                "--registry-url",
                self.registry.as_str(),
                "--registry-token-file",
            ])
            .arg(self.home.path().join("token"))
            .arg("--worker-master-key-file")
            .arg(self.home.path().join("master"))
            .spawn()
            .unwrap()
    }

    fn holder(&self) -> String {
        let lease = self
            .world
            .cluster
            .get(LEASES, "hyprstream-system", "hyprstream-operator");
        lease
            .and_then(|l| l["spec"]["holderIdentity"].as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    async fn led_by(&self, pod: &str) -> Duration {
        let begun = Instant::now();
        self.world
            .wait(&format!("{pod} leads"), || self.holder() == pod)
            .await;
        begun.elapsed()
    }
}

fn terminate(child: &Child) {
    let pid = child.id().unwrap().to_string();
    let status = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_operator_takes_over_from_a_killed_one_and_from_one_that_ends() {
    let site = Site::new().await;
    let mut first = site.operator("first");
    site.led_by("first").await;
    site.world.registry.push("ns", "m", A);
    site.world.apply_model("m", &spec());
    site.world.settled("m", A).await;
    let mut second = site.operator("second");
    // It stands by, whatever happens.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(site.holder(), "first");

    first.kill().await.unwrap();
    let after = site.led_by("second").await;
    assert!(after <= Duration::from_secs(15), "it took {after:?}");
    site.world.edit("m", |m| m["spec"]["replicas"] = json!(2));
    site.world
        .wait("two workers", || site.world.status("m").ready_replicas == 2)
        .await;

    let third = site.operator("third");
    tokio::time::sleep(Duration::from_secs(1)).await;
    terminate(&second);
    let after = site.led_by("third").await;
    assert!(after <= Duration::from_secs(5), "it took {after:?}");
    assert!(second.wait().await.unwrap().success());
    drop(third);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_ends_the_operator_and_removes_all_but_the_models() {
    let site = Site::new().await;
    let mut operator = site.operator("first");
    site.led_by("first").await;
    site.world.registry.push("ns", "m", A);
    site.world.apply_model("m", &spec());
    site.world.settled("m", A).await;
    let status = site
        .command()
        .args(["cleanup", "--timeout", "60s"])
        .status()
        .await
        .unwrap();
    assert!(status.success());
    for kind in [
        DEPLOYMENTS,
        CLAIMS,
        VOLUMES,
        PODS,
        "v1/services",
        "policy/v1/poddisruptionbudgets",
    ] {
        assert!(site.world.cluster.list(kind).is_empty(), "{kind}");
    }
    assert_eq!(site.world.cluster.list(MODELS).len(), 1);
    assert!(
        !operator.wait().await.unwrap().success(),
        "it lost its Lease"
    );
}

/// Memory is that of a debug build; what is shared with the program's file does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, most of them in the API server in memory"]
async fn a_thousand_models_fit_into_a_hundred_megabytes() {
    let site = Site::new().await;
    let count = 1000;
    for i in 0..count {
        let url = format!("hyprstream://ns/m{i}");
        let mut own = spec();
        own["source"]["url"] = json!(url);
        site.world.registry.set_head(&url, Ok(A));
        site.world.apply_model(&format!("m{i}"), &own);
    }
    let operator = site.operator("first");
    let ready = || {
        let models = site.world.cluster.list(MODELS);
        models
            .iter()
            .all(|m| m["status"]["conditions"][0]["reason"] == "Serving")
    };
    let begun = Instant::now();
    while !ready() {
        assert!(
            begun.elapsed() < Duration::from_mins(5),
            "never all {READY}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let took = begun.elapsed();
    let text = std::fs::read_to_string(format!("/proc/{}/status", operator.id().unwrap())).unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (own, all) = (kilobytes("RssAnon:"), kilobytes("VmRSS:"));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", operator.id().unwrap())).unwrap();
    let ticks: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .skip(11)
        .collect();
    println!(
        "{count} Models in {took:?}: {own} kB anonymous, {all} kB resident, user and system time \
         in ticks {} {}",
        ticks[0], ticks[1]
    );
    assert!(own < 100_000, "{own} kB");
}
