//! Models against an API server and a registry in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use hyprstream_api::condition::{
    PROGRESSING, READY, SOURCE_RESOLVED, STALLED, VOLUME_READY, WORKERS_READY,
};
use hyprstream_contract::registry::MirrorState;
use hyprstream_operator::ready::{Readiness, kinds_are_served};
use serde_json::json;
use world::{
    A, ADAPTERS, B, C, MASTER_KEY, MODELS, TRAININGS, URL, World,
    kubelet::{CLAIMS, DEPLOYMENTS, Fate, PODS, VOLUMES},
    registry::{SILENT, refusal},
    spec,
};

#[tokio::test]
async fn a_model_gets_a_volume_a_deployment_and_a_service_and_serves() {
    let world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    let status = world.status("m");
    assert_eq!(status.latest_commit.as_deref(), Some(A));
    assert_eq!(status.last_known_good.as_deref(), Some(A));
    assert_eq!(
        (
            status.replicas,
            status.ready_replicas,
            status.updated_replicas
        ),
        (1, 1, 1)
    );
    assert_eq!(status.url.as_deref(), Some("http://m.ns.svc:8000/v1"));
    assert_eq!(status.observed_generation, Some(1));
    for kind in [READY, SOURCE_RESOLVED, VOLUME_READY, WORKERS_READY] {
        assert!(status.is_true(kind), "{kind}");
    }
    for kind in [PROGRESSING, STALLED] {
        assert!(!status.is_true(kind), "{kind}");
    }
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.observed_generation == Some(1))
    );
    let claim = &world.of_commits(CLAIMS)[0];
    let volume = &world.of_commits(VOLUMES)[0];
    let deployment = &world.cluster.list(DEPLOYMENTS)[0];
    assert_eq!(claim["spec"]["volumeName"], volume["metadata"]["name"]);
    assert_eq!(
        volume["spec"]["claimRef"]["name"],
        claim["metadata"]["name"]
    );
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"],
        claim["metadata"]["name"]
    );
    assert!(world.cluster.get("v1/services", "ns", "m").is_some());
}

#[tokio::test]
async fn a_push_rolls_over_at_once_and_a_revert_goes_back() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.registry.push("ns", "m", B);
    world.settled("m", B).await;
    world
        .wait("the old worker is gone", || {
            world.cluster.list(PODS).len() == 1
        })
        .await;
    world.registry.push("ns", "m", A);
    world.settled("m", A).await;
}

#[tokio::test]
async fn a_commit_that_does_not_load_leaves_the_old_one_serving_and_says_why() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    let words = r#"{"reason":"InvalidWeights","message":"model.safetensors is cut off"}"#;
    world.fate(B, Fate::Ends(65, words.into(), 0));
    world.registry.push("ns", "m", B);
    world.reason("m", STALLED, "InvalidWeights").await;
    world
        .wait("the Deployment is back at A", || {
            let deployment = &world.cluster.list(DEPLOYMENTS)[0];
            deployment["metadata"]["labels"]["hyprstream.io/commit"] == A
                && world.cluster.list(PODS).len() == 1
        })
        .await;
    world.quiet().await;
    let status = world.status("m");
    assert_eq!(status.commit.as_deref(), Some(A));
    assert_eq!(status.latest_commit.as_deref(), Some(B));
    assert_eq!(status.last_known_good.as_deref(), Some(A));
    assert_eq!(status.failed.as_ref().unwrap().commit, B);
    assert!(status.is_true(READY) && !status.is_true(WORKERS_READY));
    let workers = status.condition(WORKERS_READY).unwrap();
    assert!(
        workers.message.contains("model.safetensors is cut off"),
        "{}",
        workers.message
    );
    let events = world.cluster.list("events.k8s.io/v1/events");
    assert!(
        events
            .iter()
            .any(|e| e["reason"] == "CommitFailed" && e["type"] == "Warning")
    );

    // The next commit is tried without further ado.
    world.registry.push("ns", "m", C);
    world.settled("m", C).await;
    assert_eq!(world.status("m").failed, None);
}

#[tokio::test]
async fn a_failed_commit_is_tried_again_when_asked_to() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.fate(B, Fate::Ends(1, "panicked".into(), 3));
    world.registry.push("ns", "m", B);
    world.reason("m", STALLED, "CrashLoop").await;
    world.quiet().await;
    // Not by a change of replicas, which has nothing to do with it.
    world.edit("m", |m| m["spec"]["replicas"] = json!(2));
    world.quiet().await;
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
    assert_eq!(world.cluster.list(PODS).len(), 2);
    world.fate(B, Fate::Ready);
    world.edit("m", |m| {
        m["metadata"]["annotations"]["hyprstream.io/reconcile-at"] = json!("now");
    });
    world.settled("m", B).await;
    let status = world.status("m");
    assert_eq!(status.failed, None);
    assert_eq!(status.last_handled_reconcile_at.as_deref(), Some("now"));
}

#[tokio::test]
async fn a_commit_that_never_becomes_ready_is_given_up_at_the_deadline() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    let mut short = spec();
    short["rollout"]["progressDeadlineSeconds"] = json!(1);
    world.apply_model("m", &short);
    world.settled("m", A).await;
    world.fate(B, Fate::Loading);
    world.registry.push("ns", "m", B);
    world.reason("m", STALLED, "ProgressDeadlineExceeded").await;
    world
        .wait("A serves alone", || world.cluster.list(PODS).len() == 1)
        .await;
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
}

#[tokio::test]
async fn the_first_commit_that_fails_says_so_and_waits() {
    let world = World::new().await;
    let words = r#"{"reason":"UnsupportedArchitecture","message":"no mamba"}"#;
    world.fate(A, Fate::Ends(65, words.into(), 1));
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.reason("m", READY, "UnsupportedArchitecture").await;
    world.quiet().await;
    assert!(!world.status("m").is_true(READY));
    world.registry.push("ns", "m", B);
    world.settled("m", B).await;
}

#[tokio::test]
async fn trouble_with_the_source_has_its_reason_and_heals() {
    let world = World::new().await;
    world.apply_model("m", &spec());
    world
        .reason("m", SOURCE_RESOLVED, "RepositoryNotFound")
        .await;
    world.reason("m", STALLED, "RepositoryNotFound").await;
    world.registry.set_head(
        URL,
        Err(refusal("ReferenceNotFound", "no branch main", false)),
    );
    world.reason("m", READY, "ReferenceNotFound").await;
    world
        .registry
        .set_head(URL, Err(refusal("HostUnreachable", "no route", true)));
    world.reason("m", SOURCE_RESOLVED, "HostUnreachable").await;
    world.reason("m", PROGRESSING, "Retrying").await;
    world.registry.set_down(true);
    world
        .reason("m", SOURCE_RESOLVED, "RegistryUnreachable")
        .await;
    world.registry.set_down(false);
    world.registry.set_head(URL, Ok(A));
    world.settled("m", A).await;
}

#[tokio::test]
async fn what_serves_goes_on_serving_and_scaling_without_a_registry() {
    let mut world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.registry.set_down(true);
    world.kill_operator();
    world.start();
    world.edit("m", |m| m["spec"]["replicas"] = json!(3));
    world
        .wait("three workers", || world.status("m").ready_replicas == 3)
        .await;
    world
        .reason("m", SOURCE_RESOLVED, "RegistryUnreachable")
        .await;
    assert!(world.status("m").is_true(READY));
    assert_eq!(world.status("m").commit.as_deref(), Some(A));
}

#[tokio::test]
async fn credentials_are_read_from_the_secret_and_a_corrected_secret_heals() {
    let world = World::new().await;
    let url = "https://git.example.org/m";
    world.registry.set_head(url, Ok(A));
    world.registry.want_token(url, "right");
    let mut private = spec();
    private["source"]["url"] = json!(url);
    private["source"]["secretRef"] = json!({"name": "git"});
    world.apply_model("m", &private);
    world.reason("m", SOURCE_RESOLVED, "SecretNotFound").await;
    // Not just any Secret with such a key: its content would go to a host of the author's choice.
    world.cluster.put(
        "v1/secrets",
        json!({"apiVersion": "v1", "kind": "Secret", "data": {"token": "cmlnaHQ="},
            "type": "Opaque", "metadata": {"name": "git", "namespace": "ns"}}),
    );
    world.reason("m", SOURCE_RESOLVED, "InvalidSecret").await;
    let status = world.status("m");
    let message = &status.condition(SOURCE_RESOLVED).unwrap().message;
    assert!(
        message.contains("kubectl label secret git hyprstream.io/git-credentials=true"),
        "{message}"
    );
    let secret = |data: serde_json::Value| {
        json!({"apiVersion": "v1", "kind": "Secret", "data": data, "type": "Opaque",
            "metadata": {"name": "git", "namespace": "ns",
                "labels": {"hyprstream.io/git-credentials": "true"}}})
    };
    world.cluster.put("v1/secrets", secret(json!({})));
    world.reason("m", SOURCE_RESOLVED, "InvalidSecret").await;
    world
        .cluster
        .put("v1/secrets", secret(json!({"token": "d3Jvbmc="})));
    world
        .reason("m", SOURCE_RESOLVED, "AuthenticationFailed")
        .await;
    world
        .cluster
        .put("v1/secrets", secret(json!({"token": "cmlnaHQ="})));
    world.settled("m", A).await;
}

#[tokio::test]
async fn credentials_go_over_plain_http_only_where_the_installation_allows_it() {
    let world = World::new().await;
    for (name, host) in [
        ("refused", "git.example.org"),
        ("allowed", "plain.example.org"),
    ] {
        let url = format!("http://{host}/m");
        world.registry.set_head(&url, Ok(A));
        let mut private = spec();
        private["source"]["url"] = json!(url);
        private["source"]["secretRef"] = json!({"name": "git"});
        world.apply_model(name, &private);
    }
    world.reason("refused", STALLED, "InvalidSpec").await;
    world
        .reason("allowed", SOURCE_RESOLVED, "SecretNotFound")
        .await;
    // Without credentials nothing is given away.
    world.edit("refused", |m| {
        m["spec"]["source"]["secretRef"] = json!(null);
    });
    world.settled("refused", A).await;
}

/// Each namespace has its share of the questions to the registry.
#[tokio::test]
async fn upstreams_that_are_silent_keep_no_other_namespace_waiting() {
    let world = World::new().await;
    let before = world.registry.asked();
    for i in 0..100 {
        let mut silent = spec();
        silent["source"]["url"] = json!(format!("{SILENT}{i}"));
        let model = json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": format!("silent{i}"), "namespace": "flood"}, "spec": silent,
        });
        world.cluster.put(MODELS, model);
    }
    world
        .wait("all that may ask do", || {
            world.registry.asked() >= before + 16
        })
        .await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    assert!(world.registry.asked() < before + 32, "places are left");
}

#[tokio::test]
async fn objects_that_cannot_be_read_are_told_of_and_hide_no_others() {
    let mut world = World::new().await;
    world.kill_operator();
    world.registry.push("ns", "m", A);
    let mut bad = spec();
    bad["rollout"]["maxSurge"] = json!(3_000_000_000_u32);
    let mut newer = spec();
    newer["engine"] = json!({"device": "tpu"});
    world.apply_model("bad", &bad);
    world.apply_model("newer", &newer);
    world.apply_model("good", &spec());
    let labels = json!({"app.kubernetes.io/managed-by": "hyprstream-operator"});
    for (resource, kind) in [
        (DEPLOYMENTS, "Deployment"),
        (PODS, "Pod"),
        (CLAIMS, "PersistentVolumeClaim"),
        (VOLUMES, "PersistentVolume"),
        ("v1/services", "Service"),
        ("policy/v1/poddisruptionbudgets", "PodDisruptionBudget"),
    ] {
        let namespace = if resource == VOLUMES { "" } else { "odd" };
        let mut object = json!({"kind": kind, "spec": 7, "status": {"phase": "Odd"},
            "metadata": {"name": "odd", "namespace": namespace, "labels": labels}});
        if resource == PODS {
            // On its way out, so that nobody collects it as garbage.
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        world.cluster.put(resource, object);
    }
    world.start();
    world.settled("good", A).await;
    for (name, field) in [
        ("bad", "spec.rollout.maxSurge"),
        ("newer", "spec.engine.device"),
    ] {
        world.reason(name, STALLED, "Malformed").await;
        let status = world.status(name);
        let ready = status.condition(READY).unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.observed_generation),
            ("Unknown", Some(1))
        );
        assert!(ready.message.contains(field), "{}", ready.message);
    }
    let told = || {
        let events = world.cluster.list("events.k8s.io/v1/events");
        let mut kinds: Vec<String> = events
            .iter()
            .filter(|e| e["reason"] == "Malformed")
            .map(|e| e["regarding"]["kind"].as_str().unwrap().to_owned())
            .collect();
        kinds.sort();
        kinds
    };
    let expected = [
        "Deployment",
        "Model",
        "Model",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "Service",
    ];
    let is_told = || told().len() >= expected.len();
    world.wait("each is told of", is_told).await;
    world.quiet().await;
    assert_eq!(told(), expected, "once");

    // Broken while it serves: what runs is left alone, its volume too.
    world.edit("good", |m| {
        m["spec"]["rollout"] = json!({"maxSurge": 3_000_000_000_u32});
    });
    world.reason("good", STALLED, "Malformed").await;
    world.quiet().await;
    assert_eq!(world.cluster.list(DEPLOYMENTS).len(), 2);
    assert_eq!(world.of_commits(VOLUMES).len(), 1);
    assert_eq!(world.status("good").commit.as_deref(), Some(A));

    // And mended.
    for name in ["good", "bad"] {
        world.edit(name, |m| m["spec"]["rollout"] = json!({"maxSurge": 1}));
        world.settled(name, A).await;
    }
}

#[tokio::test]
async fn workers_get_a_key_of_their_own_and_new_ones_with_a_new_master_key() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    let key = |master: &str| {
        hyprstream_contract::WorkerKeys::new(master)
            .unwrap()
            .of("ns", "m")
    };
    let held = || {
        let secret = world
            .cluster
            .get("v1/secrets", "ns", "m-worker-key")
            .unwrap();
        serde_json::from_value::<k8s_openapi::ByteString>(secret["data"]["key"].clone()).unwrap()
    };
    assert_eq!(held().0, key(MASTER_KEY).as_bytes());
    let revision = || {
        let pods = world.cluster.list(PODS);
        pods[0]["metadata"]["labels"]["hyprstream.io/revision"].clone()
    };
    let before = revision();
    assert!(
        world
            .cluster
            .get("policy/v1/poddisruptionbudgets", "ns", "m")
            .is_some()
    );

    // What somebody else writes into it does not stay.
    world
        .cluster
        .change("v1/secrets", "ns", "m-worker-key", |s| {
            s["data"]["key"] = json!("eA==");
        });
    world.edit("m", |m| {
        m["metadata"]["annotations"]["hyprstream.io/reconcile-at"] = json!("now");
    });
    world
        .wait("the key is back", || held().0 == key(MASTER_KEY).as_bytes())
        .await;

    let other = "fedcba9876543210fedcba9876543210";
    world.change_master_key(other);
    world
        .wait("other workers", || {
            held().0 == key(other).as_bytes()
                && world.cluster.list(PODS).len() == 1
                && revision() != before
        })
        .await;
    world.settled("m", A).await;
    world.cluster.delete(MODELS, "ns", "m");
    assert!(
        world
            .cluster
            .get("v1/secrets", "ns", "m-worker-key")
            .is_none()
    );
}

#[tokio::test]
async fn it_is_ready_once_the_kinds_are_served_and_everything_is_listed() {
    let mut world = World::new().await;
    world
        .wait("all is listed", || world.readiness.check().is_ok())
        .await;
    world.kill_operator();
    for kind in [MODELS, ADAPTERS, TRAININGS] {
        world.cluster.hide(Some(kind));
        world.readiness = Readiness::default();
        let namespaces = [];
        let client = world.client();
        let served = kinds_are_served(&client, &namespaces, &world.readiness);
        let plural = kind.rsplit('/').next().unwrap();
        let expected = format!("CRD {plural}.hyprstream.io is not installed");
        let missing = world.wait("the CRD is missed", || {
            let checked = world.readiness.check();
            checked.is_err_and(|why| why.contains(&expected))
        });
        let checked = async {
            missing.await;
            world.cluster.hide(None);
        };
        futures::join!(served, checked);
        assert_eq!(world.readiness.check(), Ok(()));
    }
}

#[tokio::test]
async fn a_download_shows_its_progress_and_a_missing_object_its_name() {
    let world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world
        .registry
        .set_mirror(A, MirrorState::Fetching, 10, None);
    world.apply_model("m", &spec());
    world.reason("m", READY, "Fetching").await;
    world
        .wait("10 bytes", || {
            world
                .status("m")
                .download
                .is_some_and(|d| d.bytes_done == 10)
        })
        .await;
    let missing = refusal(
        "MissingLFSObject",
        "model.safetensors is not on the server",
        false,
    );
    world
        .registry
        .set_mirror(A, MirrorState::Failed, 20, Some(missing));
    world.reason("m", SOURCE_RESOLVED, "MissingLFSObject").await;
    assert!(world.cluster.list(DEPLOYMENTS).is_empty());
    world.registry.set_mirror(A, MirrorState::Ready, 1000, None);
    world.settled("m", A).await;
    let download = world.status("m").download.unwrap();
    assert_eq!((download.bytes_done, download.bytes_total), (1000, 1000));
}

#[tokio::test]
async fn a_deleted_model_leaves_nothing() {
    let world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.cluster.delete(MODELS, "ns", "m");
    let kinds = [DEPLOYMENTS, PODS, CLAIMS, VOLUMES, "v1/services"];
    world
        .wait("all of it is gone", || {
            kinds.iter().all(|kind| world.cluster.list(kind).is_empty())
        })
        .await;
}

#[tokio::test]
async fn a_volume_whose_model_went_while_nobody_looked_is_deleted() {
    let mut world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.kill_operator();
    world.cluster.delete(world::MODELS, "ns", "m");
    world
        .wait("the claim is gone", || {
            world.cluster.list(CLAIMS).is_empty()
        })
        .await;
    assert_eq!(world.of_commits(VOLUMES).len(), 1);
    world.start();
    world
        .wait("the volume is gone", || {
            world.cluster.list(VOLUMES).is_empty()
        })
        .await;
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone() {
    let world = World::new().await;
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "m", "namespace": "ns"},
        "spec": {"selector": {"app": "theirs"}},
    });
    world.cluster.put("v1/services", theirs);
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.reason("m", STALLED, "NameConflict").await;
    world.quiet().await;
    let service = world.cluster.get("v1/services", "ns", "m").unwrap();
    assert_eq!(service["spec"], json!({"selector": {"app": "theirs"}}));
}

#[tokio::test]
async fn a_change_by_somebody_else_is_undone() {
    let world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world
        .cluster
        .change(DEPLOYMENTS, "ns", "m", |d| d["spec"]["replicas"] = json!(7));
    world
        .wait("one replica again", || {
            world.cluster.list(DEPLOYMENTS)[0]["spec"]["replicas"] == 1
        })
        .await;
    world.cluster.delete("v1/services", "ns", "m");
    world
        .wait("a Service again", || {
            world.cluster.get("v1/services", "ns", "m").is_some()
        })
        .await;
}

#[tokio::test]
async fn a_suspended_model_serves_on_and_acts_on_nothing() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.edit("m", |m| {
        m["spec"]["suspend"] = json!(true);
        m["spec"]["replicas"] = json!(2);
    });
    world.reason("m", PROGRESSING, "Suspended").await;
    world.registry.push("ns", "m", B);
    world.quiet().await;
    assert_eq!(world.cluster.list(PODS).len(), 1);
    let status = world.status("m");
    assert_eq!(status.commit.as_deref(), Some(A));
    assert!(status.is_true(READY) && status.is_true(SOURCE_RESOLVED));
    world.edit("m", |m| m["spec"]["suspend"] = json!(false));
    world.settled("m", B).await;
    world
        .wait("the old worker is gone", || {
            world.cluster.list(PODS).len() == 2
        })
        .await;
}

#[tokio::test]
async fn scaled_to_zero_is_ready_and_idle() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.edit("m", |m| m["spec"]["replicas"] = json!(0));
    world.reason("m", READY, "Idle").await;
    world
        .wait("no pods", || world.cluster.list(PODS).is_empty())
        .await;
    assert!(world.status("m").is_true(READY));
    // A commit that nobody has run is not known to be good.
    world.registry.push("ns", "m", B);
    world
        .wait("B is next", || {
            world.status("m").commit.as_deref() == Some(B)
        })
        .await;
    assert_eq!(world.status("m").last_known_good.as_deref(), Some(A));
    world.edit("m", |m| m["spec"]["replicas"] = json!(1));
    world
        .wait("B is known to be good", || {
            world.status("m").last_known_good.as_deref() == Some(B)
        })
        .await;
}

#[tokio::test]
async fn old_volumes_go_but_for_as_many_as_are_kept() {
    let world = World::new().await;
    let mut few = spec();
    few["storage"] = json!({"keepRevisions": 2});
    world.registry.push("ns", "m", A);
    world.apply_model("m", &few);
    world.settled("m", A).await;
    for commit in [B, C] {
        // Creation times have whole seconds in Kubernetes, and order the claims.
        world.registry.push("ns", "m", commit);
        world.settled("m", commit).await;
    }
    world
        .wait("two volumes", || world.of_commits(VOLUMES).len() == 2)
        .await;
    let claims = world.cluster.list(CLAIMS);
    let has = |commit: &str| {
        claims
            .iter()
            .any(|c| c["metadata"]["labels"]["hyprstream.io/commit"] == commit)
    };
    assert!(has(B) && has(C) && !has(A));
}

#[tokio::test]
async fn a_mount_that_fails_is_told_in_the_kubelets_words() {
    let world = World::new().await;
    let message = "MountVolume.SetUp failed for volume \"v\" : rpc error: code = Unavailable \
                   desc = the node's disk is full";
    world.fate(A, Fate::MountFails(message.into()));
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.reason("m", READY, "MountFailed").await;
    let status = world.status("m");
    assert_eq!(
        status.condition(VOLUME_READY).unwrap().message,
        "the node's disk is full"
    );
    assert_eq!(status.failed, None);
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.cluster.refuse(
        "deployments",
        Some((422, "limits must not be below requests")),
    );
    world.apply_model("m", &spec());
    world.reason("m", STALLED, "InvalidSpec").await;
    world
        .cluster
        .refuse("deployments", Some((403, "exceeded quota")));
    world.edit("m", |m| m["spec"]["engine"] = json!({"threads": 2}));
    world.reason("m", PROGRESSING, "Retrying").await;
    world.cluster.refuse("deployments", None);
    world.settled("m", A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_idle_models_cause_no_writes_and_reconcile_side_by_side() {
    let world = World::new().await;
    for i in 0..100 {
        let mut own = spec();
        own["source"]["url"] = json!(format!("hyprstream://ns/m{i}"));
        own["source"]["interval"] = json!("1s");
        world
            .registry
            .set_head(&format!("hyprstream://ns/m{i}"), Ok(A));
        world.apply_model(&format!("m{i}"), &own);
    }
    for i in 0..100 {
        world.settled(&format!("m{i}"), A).await;
    }
    let before = world.quiet().await;
    let resolves = world.registry.resolves();
    let enough = || world.registry.resolves() >= resolves + 300;
    world
        .wait("every reference is resolved three times more", enough)
        .await;
    let writes = world.cluster.writes();
    assert_eq!(writes.len(), before, "{:?}", &writes[before..]);
}

#[tokio::test]
async fn an_operator_killed_at_any_time_converges_afterwards() {
    let mut world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    for step in 1..12 {
        let before = world.cluster.writes().len();
        world
            .wait("another write, or all is done", || {
                world.cluster.writes().len() > before + step % 3
                    || world
                        .status("m")
                        .condition(PROGRESSING)
                        .is_some_and(|c| c.reason == "UpToDate")
            })
            .await;
        world.kill_operator();
        world.start();
        if step == 5 {
            world.registry.push("ns", "m", B);
        }
    }
    world.settled("m", B).await;
    assert_eq!(world.cluster.list(PODS).len(), 1);
}

#[tokio::test]
async fn a_pod_that_no_node_plugin_can_unmount_is_deleted_by_force() {
    let mut world = World::new().await;
    world.kill_operator();
    for (name, node) in [("stuck", "bare"), ("slow", "equipped")] {
        world.cluster.put(
            PODS,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name, "namespace": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {"app.kubernetes.io/managed-by": "hyprstream-operator"},
                },
                "spec": {"nodeName": node, "containers": []},
            }),
        );
    }
    for (node, drivers) in [
        ("bare", json!([])),
        (
            "equipped",
            json!([{"name": "csi.hyprstream.io",
        "nodeID": "n"}]),
        ),
    ] {
        world.cluster.put(
            "storage.k8s.io/v1/csinodes",
            json!({"metadata": {"name": node}, "spec": {"drivers": drivers}}),
        );
    }
    world.start();
    world
        .wait("the stuck pod is gone", || {
            world.cluster.get(PODS, "ns", "stuck").is_none()
        })
        .await;
    world.quiet().await;
    assert!(world.cluster.get(PODS, "ns", "slow").is_some());
}

#[tokio::test]
async fn a_namespace_that_ends_is_left_in_peace() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world
        .cluster
        .refuse("", Some((403, "namespace ns is being terminated")));
    world.cluster.delete("v1/services", "ns", "m");
    let tried = || {
        world
            .cluster
            .writes()
            .iter()
            .any(|w| w == "PATCH /api/v1/namespaces/ns/services/m")
    };
    world.wait("a try", tried).await;
    let before = world.quiet().await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(world.cluster.writes().len(), before);
}
