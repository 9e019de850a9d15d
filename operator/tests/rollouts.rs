//! Rollouts that go wrong, against an API server and a registry in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use std::time::Duration;

use hyprstream_api::condition::{
    PROGRESSING, READY, SOURCE_RESOLVED, STALLED, VOLUME_READY, WORKERS_READY,
};
use hyprstream_contract::registry::MirrorState;
use serde_json::{Value, json};
use world::{
    A, B, C, World,
    kubelet::{CLAIMS, DEPLOYMENTS, Fate, PODS, VOLUMES},
    spec,
};

/// A worker that ends again and again without a word.
fn crashes() -> Fate {
    Fate::Ends(137, String::new(), 3)
}

/// What a worker of one GPU is rolled out with: the old one goes first, and nothing is kept.
fn tight() -> Value {
    let mut spec = spec();
    spec["rollout"] = json!({"maxSurge": 0, "maxUnavailable": 1, "progressDeadlineSeconds": 600});
    spec["storage"] = json!({"keepRevisions": 1});
    spec
}

/// The ready pods.
fn serving(world: &World) -> Vec<Value> {
    let mut pods = world.cluster.list(PODS);
    pods.retain(|p| p["status"]["conditions"][0]["status"] == "True");
    pods
}

fn env(pod: &Value, name: &str) -> Option<String> {
    let env = pod["spec"]["containers"][0]["env"].as_array()?;
    let found = env.iter().find(|e| e["name"] == name)?;
    found["value"].as_str().map(str::to_owned)
}

fn lengths(world: &World) -> Vec<String> {
    serving(world)
        .iter()
        .filter_map(|p| env(p, "HYPRSTREAM_MAX_MODEL_LEN"))
        .collect()
}

fn image(deployment: &Value) -> &str {
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    container["image"].as_str().unwrap_or_default()
}

fn ask_again(world: &World, value: &str) {
    world.edit("m", |m| {
        m["metadata"]["annotations"]["hyprstream.io/reconcile-at"] = json!(value);
    });
}

#[tokio::test]
async fn the_volume_of_the_last_good_commit_outlives_every_failed_try() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &tight());
    world.settled("m", A).await;
    world.fate(B, Fate::Loading);
    world.registry.push("ns", "m", B);
    world
        .wait("only B tries", || {
            let pods = world.cluster.list(PODS);
            pods.len() == 1 && pods[0]["metadata"]["labels"]["hyprstream.io/commit"] == B
        })
        .await;
    world.quiet().await;
    assert_eq!(world.claims_of(A).len(), 1, "A is the last that was good");
    world.fate(B, crashes());
    for pod in world.cluster.list(PODS) {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        world.cluster.delete(PODS, "ns", &name);
    }
    world.reason("m", STALLED, "CrashLoop").await;
    world
        .wait("A serves again", || {
            let status = world.status("m");
            status.is_true(READY) && status.ready_replicas == 1
        })
        .await;
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
    world.registry.push("ns", "m", C);
    world.settled("m", C).await;
    world
        .wait("only C is kept", || world.of_commits(CLAIMS).len() == 1)
        .await;
    assert_eq!(world.claims_of(C).len(), 1);
}

#[tokio::test]
async fn the_registry_is_asked_for_what_serves_though_its_branch_has_moved_on() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    let mut spec = tight();
    spec["source"]["interval"] = json!("1s");
    world.apply_model("m", &spec);
    world.settled("m", A).await;
    world.fate(B, crashes());
    world.registry.push("ns", "m", B);
    world.reason("m", STALLED, "CrashLoop").await;
    world
        .wait("A serves again", || world.status("m").is_true(READY))
        .await;
    let before = world.registry.asked_for(A);
    world
        .wait("A is asked for again and again", || {
            world.registry.asked_for(A) >= before + 2
        })
        .await;
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
    // Once nothing is made of it, nobody asks for it.
    world.registry.push("ns", "m", C);
    world.settled("m", C).await;
    world.quiet().await;
    let before = (world.registry.asked_for(A), world.registry.asked_for(C));
    world
        .wait("C is asked for alone", || {
            world.registry.asked_for(C) >= before.1 + 3
        })
        .await;
    assert_eq!(world.registry.asked_for(A), before.0);
}

#[tokio::test]
async fn the_registry_is_asked_for_what_serves_though_the_source_is_another() {
    let world = World::new().await;
    let (old, new) = ("https://old.example.org/m", "https://new.example.org/m");
    // Of the tokens, as the API server has them.
    for (url, commit, token, data) in [(old, A, "old", "b2xk"), (new, B, "new", "bmV3")] {
        world.registry.set_head(url, Ok(commit));
        world.registry.want_token(url, token);
        world.cluster.put(
            "v1/secrets",
            json!({"apiVersion": "v1", "kind": "Secret", 
                "data": {"token": data},
                "type": "hyprstream.io/git-credentials",
                "metadata": {"name": token, "namespace": "ns"}}),
        );
    }
    let mut spec = tight();
    spec["source"]["interval"] = json!("1s");
    spec["source"]["url"] = json!(old);
    spec["source"]["secretRef"] = json!({"name": "old"});
    world.apply_model("m", &spec);
    world.settled("m", A).await;
    world.fate(B, crashes());
    world.edit("m", |m| {
        m["spec"]["source"]["url"] = json!(new);
        m["spec"]["source"]["secretRef"] = json!({"name": "new"});
    });
    world.reason("m", STALLED, "CrashLoop").await;
    world
        .wait("A serves again", || world.status("m").is_true(READY))
        .await;
    let goes_on = async || {
        let before = world.registry.asked_for(A);
        let again = || world.registry.asked_for(A) >= before + 2;
        world.wait("A is asked for again and again", again).await;
    };
    goes_on().await;
    // A source that cannot be had changes nothing of that.
    world.cluster.delete("v1/secrets", "ns", "new");
    world.reason("m", SOURCE_RESOLVED, "SecretNotFound").await;
    goes_on().await;
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
}

#[tokio::test]
async fn workers_that_find_no_room_beside_the_old_take_their_place_where_others_serve() {
    let world = World::new().await;
    world.fate("worker:1", Fate::RoomFor(3));
    let model = |name: &str, replicas: u32| {
        let url = format!("hyprstream://ns/{name}");
        let mut spec = spec();
        spec["source"]["url"] = json!(url);
        spec["replicas"] = json!(replicas);
        // A quarter of it is how long a pod may look for a node.
        spec["rollout"]["progressDeadlineSeconds"] = json!(10);
        world.registry.push("ns", name, A);
        world.apply_model(name, &spec);
    };
    model("three", 3);
    world.settled("three", A).await;
    let strategy = |name: &str| {
        let deployment = world.cluster.get(DEPLOYMENTS, "ns", name).unwrap();
        let bounds = &deployment["spec"]["strategy"]["rollingUpdate"];
        let replacing = &deployment["metadata"]["annotations"]["hyprstream.io/replacing"];
        let surge = (bounds["maxSurge"].clone(), bounds["maxUnavailable"].clone());
        (surge == (json!(0), json!(1)), replacing.is_string())
    };
    assert_eq!(strategy("three"), (false, false));
    world.registry.push("ns", "three", B);
    world
        .wait("they are replaced one by one", || {
            let status = world.status("three");
            assert!(status.is_true(READY) && status.ready_replicas >= 2);
            strategy("three") == (true, true)
        })
        .await;
    world.settled("three", B).await;
    world
        .wait("the spec's bounds hold again", || {
            strategy("three") == (false, false)
        })
        .await;

    // A single worker serves on, unless it may go.
    world.fate("worker:1", Fate::RoomFor(1));
    model("one", 1);
    world.settled("one", A).await;
    world.registry.push("ns", "one", B);
    world
        .wait("it says what would help", || {
            let status = world.status("one");
            let message = &status.condition(PROGRESSING).unwrap().message;
            status.is_true(READY) && message.contains("rollout.noRoom: Replace")
        })
        .await;
    world.reason("one", WORKERS_READY, "Unschedulable").await;
    world.quiet().await;
    assert_eq!(world.status("one").commit.as_deref(), Some(A));
    assert_eq!(strategy("one"), (false, false));
    world.edit("one", |m| m["spec"]["rollout"]["noRoom"] = json!("Replace"));
    world.settled("one", B).await;
}

#[tokio::test]
async fn a_spec_that_does_not_load_goes_back_to_what_the_workers_were_made_of() {
    let mut world = World::new().await;
    world.registry.push("ns", "m", A);
    let mut first = tight();
    first["engine"] = json!({"maxModelLen": 4096});
    world.apply_model("m", &first);
    world.settled("m", A).await;
    let words = r#"{"reason":"OutOfMemory","message":"maxModelLen 9999 needs 3 GiB of cache"}"#;
    world.fate("len:9999", Fate::Ends(65, words.into(), 0));
    world.edit("m", |m| m["spec"]["engine"]["maxModelLen"] = json!(9999));
    world.reason("m", STALLED, "OutOfMemory").await;
    let back = || lengths(&world) == ["4096"];
    world.wait("4096 serves again", back).await;
    world.reason("m", PROGRESSING, "OutOfMemory").await;
    let status = world.status("m");
    assert!(status.is_true(READY) && !status.is_true(WORKERS_READY));
    assert_eq!(status.commit.as_deref(), Some(A));
    assert_eq!(status.failed.as_ref().unwrap().commit, A);
    for kind in [READY, WORKERS_READY, STALLED] {
        let message = &status.condition(kind).unwrap().message;
        assert!(message.contains("needs 3 GiB"), "{kind}: {message}");
    }

    // Scaling goes on, and neither it nor a restart tries again.
    world.edit("m", |m| m["spec"]["replicas"] = json!(2));
    let both = || lengths(&world) == ["4096", "4096"];
    world.wait("two of 4096", both).await;
    world.registry.set_down(true);
    world.kill_operator();
    world.start();
    world.edit("m", |m| m["spec"]["replicas"] = json!(3));
    let all = || lengths(&world) == ["4096", "4096", "4096"];
    world.wait("three of 4096 without a registry", all).await;
    world.registry.set_down(false);
    world.quiet().await;
    assert!(all() && world.status("m").failed.is_some());

    // Nor does the fetching of another commit, or the loss of the Deployment or the Service.
    world
        .registry
        .set_mirror(B, MirrorState::Fetching, 10, None);
    world.registry.push("ns", "m", B);
    world.reason("m", SOURCE_RESOLVED, "Fetching").await;
    world.quiet().await;
    assert!(all(), "{:?}", lengths(&world));
    world.registry.push("ns", "m", A);
    for kind in [DEPLOYMENTS, "v1/services"] {
        world.reason("m", STALLED, "OutOfMemory").await;
        world.quiet().await;
        world.cluster.delete(kind, "ns", "m");
        world
            .wait("it is there again", || {
                world.cluster.get(kind, "ns", "m").is_some()
            })
            .await;
        world.quiet().await;
        world.wait("three of 4096 again", all).await;
    }

    // An edit tries again, and so does the annotation.
    world.edit("m", |m| m["spec"]["engine"]["maxModelLen"] = json!(2048));
    world.settled("m", A).await;
    world.wait("2048", || lengths(&world) == ["2048"; 3]).await;
    assert_eq!(world.status("m").failed, None);
    world.edit("m", |m| m["spec"]["engine"]["maxModelLen"] = json!(9999));
    world.reason("m", STALLED, "OutOfMemory").await;
    world
        .wait("2048 again", || lengths(&world) == ["2048"; 3])
        .await;
    world.fate("len:9999", Fate::Ready);
    ask_again(&world, "now");
    world.wait("9999", || lengths(&world) == ["9999"; 3]).await;
    world.settled("m", A).await;
    assert_eq!(world.status("m").failed, None);
}

#[tokio::test]
async fn an_image_whose_workers_crash_goes_back_to_the_one_before() {
    let mut world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.fate("worker:2", crashes());
    world.upgrade("worker:2");
    world.reason("m", STALLED, "CrashLoop").await;
    world
        .wait("worker:1 again", || {
            image(&world.cluster.list(DEPLOYMENTS)[0]) == "worker:1"
        })
        .await;
    world.quiet().await;
    let status = world.status("m");
    assert!(status.is_true(READY));
    assert_eq!(status.failed.unwrap().commit, A);
    world.upgrade("worker:3");
    world
        .wait("worker:3", || {
            image(&world.cluster.list(DEPLOYMENTS)[0]) == "worker:3"
        })
        .await;
    world.settled("m", A).await;
    assert_eq!(world.status("m").failed, None);
}

#[tokio::test]
async fn another_claim_takes_the_place_of_one_that_is_deleted() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    let first = world.claims_of(A);
    world.delete_claim(&first[0]);
    world.edit("m", |m| m["spec"]["replicas"] = json!(2));
    world
        .wait("two workers", || world.status("m").ready_replicas == 2)
        .await;
    world
        .wait("the deleted claim is gone", || {
            let claims = world.claims_of(A);
            claims.len() == 1 && claims != first
        })
        .await;
    world.settled("m", A).await;
    world
        .wait("and its volume", || world.of_commits(VOLUMES).len() == 1)
        .await;
    // Another time, as often as somebody likes.
    world.delete_claim(&world.claims_of(A)[0]);
    world
        .wait("the first name again", || world.claims_of(A) == first)
        .await;
    world.settled("m", A).await;
}

#[tokio::test]
async fn a_volume_that_is_lost_or_deleted_is_replaced_under_another_name() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    let first = world.claims_of(A);
    world.cluster.change(CLAIMS, "ns", &first[0], |c| {
        c["status"]["phase"] = json!("Lost");
    });
    let replaced = |old: &[String]| {
        let claims = world.claims_of(A);
        claims.len() == 1 && claims != old
    };
    world.wait("another claim", || replaced(&first)).await;
    world.settled("m", A).await;
    let second = world.claims_of(A);
    let volume = format!("hyprstream-ns-{}", second[0]);
    world.cluster.change(VOLUMES, "", &volume, |v| {
        v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    world.wait("a third", || replaced(&second)).await;
    world.settled("m", A).await;
}

#[tokio::test]
async fn the_last_good_commit_gets_another_claim_though_a_later_one_failed() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &tight());
    world.settled("m", A).await;
    world.fate(B, crashes());
    world.registry.push("ns", "m", B);
    world.reason("m", PROGRESSING, "CrashLoop").await;
    world.quiet().await;
    let first = world.claims_of(A);
    world.delete_claim(&first[0]);
    world.edit("m", |m| m["spec"]["replicas"] = json!(2));
    world
        .wait("two workers of A on another claim", || {
            world.status("m").ready_replicas == 2 && world.claims_of(A) != first
        })
        .await;
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
}

#[tokio::test]
async fn trouble_of_the_cluster_is_not_the_commits_fault_and_ends_by_itself() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    let mut short = spec();
    short["rollout"]["progressDeadlineSeconds"] = json!(1);
    world.apply_model("m", &short);
    world.settled("m", A).await;
    let mount = "MountVolume.SetUp failed for volume \"v\" : rpc error: code = Unavailable desc \
                 = the disk is full";
    let mount = Fate::MountFails(mount.into());
    let troubles = [
        (B, Fate::NoQuota, WORKERS_READY, "PodsRefused"),
        (C, Fate::NoImage, WORKERS_READY, "ImagePullFailed"),
        (A, Fate::NoRoom, WORKERS_READY, "Unschedulable"),
        (B, mount, VOLUME_READY, "MountFailed"),
    ];
    for (commit, fate, kind, reason) in troubles {
        let before = world.status("m").commit.unwrap();
        world.fate(commit, fate);
        world.registry.push("ns", "m", commit);
        world.reason("m", kind, reason).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let status = world.status("m");
        assert_eq!(status.failed, None, "{reason}");
        assert_eq!(status.commit.as_ref(), Some(&before), "{reason}");
        assert!(status.is_true(READY), "{reason}");
        assert!(!status.is_true(STALLED), "{reason}");
        world.fate(commit, Fate::Ready);
        world.settled("m", commit).await;
    }
}

#[tokio::test]
async fn three_of_four_workers_are_no_failed_rollout() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    let mut four = spec();
    four["replicas"] = json!(4);
    four["rollout"]["progressDeadlineSeconds"] = json!(1);
    world.apply_model("m", &four);
    world.settled("m", A).await;
    world.fate(B, Fate::ReadyBut(3));
    world.registry.push("ns", "m", B);
    let is_three = || {
        let pods = serving(&world);
        let new = |p: &&Value| p["metadata"]["labels"]["hyprstream.io/commit"] == B;
        pods.iter().filter(new).count() == 3
    };
    world.wait("three workers of B", is_three).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(world.status("m").failed, None);
    assert!(is_three());
    world.fate(B, Fate::Ready);
    world.settled("m", B).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_changes_few_models_at_a_time_and_what_a_model_asks_for_waits_for_nobody() {
    let mut world = World::new().await;
    let names: Vec<String> = (0..5).map(|i| format!("m{i}")).collect();
    for name in &names {
        let mut own = spec();
        own["source"]["url"] = json!(format!("hyprstream://ns/{name}"));
        world.registry.push("ns", name, A);
        world.apply_model(name, &own);
    }
    for name in &names {
        world.settled(name, A).await;
    }
    world.quiet().await;
    world.fate("worker:2", Fate::Loading);
    world.rollouts_at_once = 1;
    world.upgrade("worker:2");
    let changed = |world: &World| -> Vec<String> {
        let mut deployments = world.cluster.list(DEPLOYMENTS);
        deployments.retain(|d| image(d) == "worker:2");
        let names = deployments.iter().map(|d| d["metadata"]["name"].as_str());
        names.flatten().map(str::to_owned).collect()
    };
    world
        .wait("the first begins", || changed(&world) == ["m0"])
        .await;
    for name in &names[1..] {
        world.reason(name, PROGRESSING, "WaitingForTurn").await;
        assert!(world.status(name).is_true(READY));
    }
    // Scaling works, and what a Model itself wants comes at once, with the new image.
    world.edit("m2", |m| m["spec"]["replicas"] = json!(2));
    world
        .wait("two workers of before", || {
            world.status("m2").ready_replicas == 2
        })
        .await;
    world.edit("m4", |m| m["spec"]["engine"] = json!({"threads": 2}));
    world
        .wait("m4 too", || changed(&world) == ["m0", "m4"])
        .await;
    // A restart begins no more than before.
    world.kill_operator();
    world.start();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(changed(&world), ["m0", "m4"]);
    world.fate("worker:2", Fate::Ready);
    world
        .wait("all have it", || changed(&world).len() == names.len())
        .await;
    for name in &names {
        world.settled(name, A).await;
    }
    // What befalls their workers later holds up no release to come.
    world
        .wait("none is under way", || {
            let deployments = world.cluster.list(DEPLOYMENTS);
            deployments
                .iter()
                .all(|d| d["metadata"]["annotations"]["hyprstream.io/upgrade"].is_null())
        })
        .await;
}
