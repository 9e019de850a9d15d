//! Adapters against an API server, a registry and workers in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use std::time::Duration;

use hyprstream_api::condition::{
    ACCEPTED, LOADED, OF_ADAPTERS, PROGRESSING, READY, SOURCE_RESOLVED, STALLED,
};
use serde_json::{Value, json};
use world::{
    A, ADAPTERS, B, C, MODELS, URL, World,
    kubelet::{CLAIMS, DEPLOYMENTS, PODS, VOLUMES},
    spec,
    workers::Verdict,
};

/// Where the Adapter of most tests lies, in a repository of its own.
const OTHER: &str = "hyprstream://ns/lora";

/// A Model `m` that serves [`A`].
async fn served() -> World {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world
}

/// An Adapter of `m` out of [`OTHER`].
fn other(path: &str) -> Value {
    json!({"modelRef": {"name": "m"}, "source": {"url": OTHER, "path": path}})
}

/// The volumes that show adapters.
fn shown(world: &World) -> Vec<Value> {
    let mut volumes = world.cluster.list(VOLUMES);
    volumes.retain(|v| v["metadata"]["labels"]["hyprstream.io/shows"] == "adapters");
    volumes
}

/// Reasons of the events on Adapters.
fn told(world: &World) -> Vec<String> {
    let events = world.cluster.list("events.k8s.io/v1/events");
    let of_adapters = events
        .iter()
        .filter(|e| e["regarding"]["kind"] == "Adapter");
    let reasons = of_adapters.filter_map(|e| e["reason"].as_str());
    reasons.map(str::to_owned).collect()
}

/// A namespace and a Model together have the name of another pair.
#[tokio::test]
async fn models_of_two_namespaces_have_volumes_of_their_own_whatever_they_are_called() {
    let world = World::new().await;
    for (namespace, name) in [("a", "b-m"), ("a-b", "m")] {
        let mut spec = spec();
        spec["source"]["url"] = json!(format!("hyprstream://{namespace}/m"));
        world.registry.push(namespace, "m", A);
        world.cluster.put(
            MODELS,
            json!({"apiVersion": "hyprstream.io/v1alpha1", "kind": "Model", "spec": spec,
                "metadata": {"name": name, "namespace": namespace}}),
        );
    }
    world
        .wait("both are ready", || {
            let models = world.cluster.list(MODELS);
            models.iter().all(|m| m["status"]["readyReplicas"] == 1)
        })
        .await;
    assert_eq!(shown(&world).len(), 2);
}

#[tokio::test]
async fn an_adapter_of_the_models_repository_is_listed_loaded_and_ready() {
    let world = served().await;
    world.apply_adapter("sql", "adapters/01_sql.safetensors");
    world.loaded("sql", A).await;
    let list = world.registry.list("ns/m").unwrap();
    let entry = &list.adapters[0];
    assert_eq!(entry.name, "sql");
    assert_eq!(entry.weights, "adapters/01_sql.safetensors");
    assert_eq!(entry.config, "adapters/01_sql.config.json");
    assert_eq!(entry.source, format!("{URL} adapters/01_sql.safetensors"));
    let status = world.adapter("sql");
    assert_eq!(status.served_name.as_deref(), Some("sql"));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.digest, Some(format!("digest of {}", entry.folder())));
    assert_eq!(status.sha256, Some(format!("hash of {}", entry.folder())));
    assert_eq!((status.rank, status.size), (Some(8), Some(7)));
    let replicas = status.replicas.unwrap();
    assert_eq!(
        (replicas.desired, replicas.loaded, replicas.failed),
        (1, 1, 0)
    );
    for kind in [READY, SOURCE_RESOLVED, ACCEPTED, LOADED] {
        assert!(status.is_true(kind), "{kind}");
    }
    assert!(!status.is_true(STALLED));
    let kinds: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, OF_ADAPTERS);
    assert_eq!(world.workers.refused(), 0);
    // Events come after the status.
    world.wait("it is told", || !told(&world).is_empty()).await;
    world.quiet().await;
    assert_eq!(told(&world), ["Loaded"]);
}

#[tokio::test]
async fn workers_mount_the_models_adapters_before_there_is_one() {
    let world = served().await;
    let claim = world
        .cluster
        .get(CLAIMS, "ns", "m-granted-adapters")
        .unwrap();
    let volume = shown(&world).remove(0);
    assert_eq!(claim["spec"]["volumeName"], volume["metadata"]["name"]);
    let csi = &volume["spec"]["csi"];
    assert_eq!(
        csi["volumeAttributes"],
        json!({"hyprstream.io/adapters": "ns/m"})
    );
    let pod = &world.cluster.list(PODS)[0]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    assert!(
        mounts
            .iter()
            .any(|m| m["mountPath"] == "/adapters" && m["readOnly"] == true)
    );
    // Somebody deletes it: another takes its place, and workers follow.
    world.delete_claim("m-granted-adapters");
    world
        .wait("another claim", || {
            let claims = world.cluster.list(CLAIMS);
            claims
                .iter()
                .any(|c| c["metadata"]["name"] == "m-granted-adapters-1")
                && !claims
                    .iter()
                    .any(|c| c["metadata"]["name"] == "m-granted-adapters")
        })
        .await;
    world.settled("m", A).await;
    world.apply_adapter("sql", ".");
    world.loaded("sql", A).await;
}

#[tokio::test]
async fn workers_of_a_release_without_adapters_get_the_volume_when_it_is_their_turn() {
    let mut world = served().await;
    world.kill_operator();
    world.cluster.change(DEPLOYMENTS, "ns", "m", |deployment| {
        deployment["metadata"]["labels"]["hyprstream.io/revision"] = json!("before");
        let annotations = deployment["metadata"]["annotations"].as_object_mut();
        annotations.unwrap().remove("hyprstream.io/last-good");
        let template = &mut deployment["spec"]["template"];
        template["metadata"]["labels"]["hyprstream.io/revision"] = json!("before");
        for list in ["/spec/volumes", "/spec/containers/0/volumeMounts"] {
            let list = template.pointer_mut(list).unwrap().as_array_mut().unwrap();
            list.retain(|v| v["name"] != "adapters");
        }
    });
    world.cluster.change("v1/services", "ns", "m", |service| {
        service["metadata"]["annotations"] = json!({});
    });
    let revisions = || {
        let pods = world.cluster.list(PODS);
        let revision = |pod: &Value| pod["metadata"]["labels"]["hyprstream.io/revision"].clone();
        pods.iter().map(revision).collect::<Vec<_>>()
    };
    world
        .wait("workers of before", || revisions() == ["before"])
        .await;
    world.cluster.delete(CLAIMS, "ns", "m-granted-adapters");
    for volume in shown(&world) {
        let name = volume["metadata"]["name"].as_str().unwrap();
        world.cluster.delete(VOLUMES, "", name);
    }
    world.start();
    world.reason("m", PROGRESSING, "WaitingForTurn").await;
    assert!(
        world
            .cluster
            .get(CLAIMS, "ns", "m-granted-adapters")
            .is_some()
    );
    world
        .wait("workers with the volume", || {
            let pods = world.cluster.list(PODS);
            let mounts = &pods[0]["spec"]["volumes"][1]["persistentVolumeClaim"]["claimName"];
            pods.len() == 1 && mounts == "m-granted-adapters"
        })
        .await;
    world.settled("m", A).await;
}

#[tokio::test]
async fn of_two_with_one_name_the_older_has_it_until_it_goes() {
    let world = served().await;
    world.registry.push("ns", "lora", B);
    world.apply_adapter("sql", "x.safetensors");
    world.loaded("sql", A).await;
    let mut named = other("x.safetensors");
    named["servedName"] = json!("sql");
    world.apply_adapter_of("newer", &named);
    world.because("newer", ACCEPTED, "NameTaken").await;
    world.because("newer", STALLED, "NameTaken").await;
    assert_eq!(
        world.registry.list("ns/m").unwrap().adapters[0]
            .commit
            .as_str(),
        A
    );
    assert!(world.adapter("sql").is_true(READY));
    world.apply_adapter_of(
        "m2",
        &json!({"modelRef": {"name": "m"}, "servedName": "m",
        "source": {"path": "."}}),
    );
    world.because("m2", ACCEPTED, "NameTaken").await;
    world.cluster.delete(ADAPTERS, "ns", "sql");
    world.loaded("newer", B).await;
    assert_eq!(world.registry.names("ns/m"), ["sql"]);
}

#[tokio::test]
async fn what_workers_refuse_is_not_accepted_and_the_next_commit_is_tried() {
    let world = served().await;
    world.registry.push("ns", "lora", B);
    world.workers.judge(B, Verdict::Fails("ShapeMismatch"));
    world.apply_adapter_of("sql", &other("."));
    world.because("sql", ACCEPTED, "ShapeMismatch").await;
    world.because("sql", STALLED, "ShapeMismatch").await;
    let status = world.adapter("sql");
    assert!(!status.is_true(READY) && status.commit.is_none());
    assert_eq!(status.replicas.unwrap().failed, 1);
    let message = &status.condition(ACCEPTED).unwrap().message;
    assert!(message.contains("it does not fit"), "{message}");
    world.registry.push("ns", "lora", C);
    world.loaded("sql", C).await;
    assert!(world.adapter("sql").is_true(ACCEPTED));
    // Trouble of a node is none of the adapter's.
    world.workers.judge(A, Verdict::Fails("DiskFull"));
    world.apply_adapter("docs", ".");
    world.because("docs", LOADED, "DiskFull").await;
    assert!(world.adapter("docs").is_true(ACCEPTED));
    world.workers.judge(A, Verdict::Loads);
    world.loaded("docs", A).await;
}

#[tokio::test]
async fn a_push_swaps_and_it_stays_ready_all_the_while() {
    let world = served().await;
    world.registry.push("ns", "lora", A);
    world.apply_adapter_of("sql", &other("."));
    world.loaded("sql", A).await;
    let digest = world.adapter("sql").digest;
    world.workers.judge(B, Verdict::Loading);
    world.registry.push("ns", "lora", B);
    world.because("sql", READY, "Swapping").await;
    let status = world.adapter("sql");
    assert!(status.is_true(READY) && !status.is_true(LOADED));
    assert_eq!(
        (status.commit.as_deref(), &status.digest),
        (Some(A), &digest)
    );
    world.workers.judge(B, Verdict::Loads);
    world.loaded("sql", B).await;
    assert_ne!(world.adapter("sql").digest, digest);
}

#[tokio::test]
async fn it_waits_for_its_model_and_outlives_it() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_adapter("sql", ".");
    world.because("sql", ACCEPTED, "ModelNotFound").await;
    assert!(!world.adapter("sql").is_true(STALLED));
    world.apply_model("m", &spec());
    world.loaded("sql", A).await;
    world.cluster.delete(MODELS, "ns", "m");
    world.because("sql", READY, "ModelNotFound").await;
    world
        .wait("list, claims and volumes are gone", || {
            world.registry.list("ns/m").is_none()
                && world.cluster.list(CLAIMS).is_empty()
                && world.cluster.list(VOLUMES).is_empty()
        })
        .await;
    assert_eq!(world.adapter("sql").replicas, None);
    world.apply_model("m", &spec());
    world.loaded("sql", A).await;
}

#[tokio::test]
async fn a_deleted_one_is_off_the_list_also_if_nobody_looked() {
    let mut world = served().await;
    world.apply_adapter("a", "a.safetensors");
    world.apply_adapter("b", "b.safetensors");
    world.loaded("a", A).await;
    world.loaded("b", A).await;
    world.cluster.delete(ADAPTERS, "ns", "a");
    world
        .wait("one is left", || world.registry.names("ns/m") == ["b"])
        .await;
    world.kill_operator();
    world.cluster.delete(ADAPTERS, "ns", "b");
    world.start();
    world
        .wait("no list is left", || world.registry.list("ns/m").is_none())
        .await;
    // The Model goes with its last Adapter while nobody looks.
    world.apply_adapter("c", ".");
    world.loaded("c", A).await;
    world.kill_operator();
    world.cluster.delete(ADAPTERS, "ns", "c");
    world.cluster.delete(MODELS, "ns", "m");
    world
        .wait("the claims are gone", || {
            world.cluster.list(CLAIMS).is_empty()
        })
        .await;
    world.start();
    world
        .wait("neither list nor volume is left", || {
            world.registry.list("ns/m").is_none() && world.cluster.list(VOLUMES).is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_deleted_model_leaves_no_volume_though_the_registry_is_down_and_no_list_once_it_is_back()
{
    let mut world = served().await;
    world.apply_adapter("a", ".");
    world.loaded("a", A).await;
    world.registry.set_down(true);
    world.kill_operator();
    world.cluster.delete(ADAPTERS, "ns", "a");
    world.cluster.delete(MODELS, "ns", "m");
    world.start();
    world
        .wait("no volume is left", || {
            world.cluster.list(VOLUMES).is_empty()
        })
        .await;
    assert!(world.registry.list("ns/m").is_some());
    world.registry.set_down(false);
    world
        .wait("no list is left", || world.registry.list("ns/m").is_none())
        .await;
}

#[tokio::test]
async fn a_list_goes_though_nothing_of_its_model_is_left_in_the_cluster() {
    let mut world = served().await;
    world.apply_adapter("a", ".");
    world.loaded("a", A).await;
    let list = world.registry.list("ns/m").unwrap();
    world.kill_operator();
    // As `cleanup` does, or an operator that was ended while the registry was down.
    world.cluster.delete(ADAPTERS, "ns", "a");
    world.cluster.delete(MODELS, "ns", "m");
    for volume in world.cluster.list(VOLUMES) {
        let name = volume["metadata"]["name"].as_str().unwrap();
        world.cluster.delete(VOLUMES, "", name);
    }
    // Of a Model whose Adapter waits, too.
    world.apply_adapter_of(
        "waits",
        &json!({"modelRef": {"name": "gone"}, "source": {"path": "."}}),
    );
    world.registry.restore_list("ns/gone", list.clone());
    world.start();
    world
        .wait("no list is left", || {
            world.registry.list("ns/m").is_none() && world.registry.list("ns/gone").is_none()
        })
        .await;
    // Those of Models that are there stay.
    world.apply_model("m", &spec());
    world.apply_adapter("a", ".");
    world.loaded("a", A).await;
    world.kill_operator();
    world.registry.restore_list("ns/gone", list);
    world.start();
    world
        .wait("the other list goes", || {
            world.registry.list("ns/gone").is_none()
        })
        .await;
    assert_eq!(world.registry.names("ns/m"), ["a"]);
}

#[tokio::test]
async fn a_start_of_the_operator_takes_nothing_off_a_list_and_says_nothing_anew() {
    let mut world = served().await;
    world.registry.push("ns", "lora", B);
    for name in ["a", "b", "c"] {
        world.apply_adapter_of(name, &other(&format!("{name}.safetensors")));
    }
    for name in ["a", "b", "c"] {
        world.loaded(name, B).await;
    }
    world.quiet().await;
    let (writes, lists) = (world.quiet().await, world.registry.written("ns/m").len());
    // Nothing can be resolved for now.
    world.registry.set_head(
        OTHER,
        Err(world::registry::refusal(
            "HostUnreachable",
            "no route",
            true,
        )),
    );
    world.kill_operator();
    world.start();
    world.because("a", SOURCE_RESOLVED, "HostUnreachable").await;
    world.quiet().await;
    let written = world.registry.written("ns/m");
    assert!(
        written[lists..].iter().all(|count| *count == 3),
        "{written:?}"
    );
    assert!(world.adapter("a").is_true(READY) && world.adapter("a").is_true(LOADED));
    world.registry.push("ns", "lora", B);
    for name in ["a", "b", "c"] {
        world.because(name, SOURCE_RESOLVED, "Succeeded").await;
    }
    world.quiet().await;
    world.kill_operator();
    let before = world.quiet().await;
    world.start();
    world.quiet().await;
    let all = world.cluster.writes();
    let statuses = all[before..].iter().filter(|w| w.contains("/adapters/"));
    assert_eq!(statuses.count(), 0, "{:?}", &all[before..]);
    assert!(before > writes);
}

/// A question that times out just after a start is no news: the operator knew nothing before.
#[tokio::test]
async fn a_worker_that_misses_the_first_questions_after_a_start_is_not_said_to_be_unreachable() {
    let mut world = served().await;
    world.apply_adapter("sql", ".");
    world.loaded("sql", A).await;
    world.quiet().await;
    world.kill_operator();
    let before = world.quiet().await;
    let pod = world.cluster.list(PODS)[0]["metadata"]["name"].clone();
    let pod = pod.as_str().unwrap();
    world.workers.ignore_first(2);
    world.start();
    world
        .wait("it has answered", || world.workers.questions(pod) > 3)
        .await;
    world.quiet().await;
    let all = world.cluster.writes();
    let statuses = all[before..].iter().filter(|w| w.contains("/adapters/"));
    assert_eq!(statuses.count(), 0, "{:?}", &all[before..]);
    // One that stays silent is said to.
    world.kill_operator();
    world.workers.silence(pod, true);
    world.start();
    world.because("sql", LOADED, "WorkerUnreachable").await;
}

/// Between the answer which commit it is and the answer that the registry has it, nothing is known of
/// the commit, and nothing is said.
#[tokio::test]
async fn a_start_says_of_no_commit_that_it_is_fetched_before_the_registry_does() {
    let mut world = served().await;
    world.registry.push("ns", "lora", B);
    world.apply_adapter_of("sql", &other("."));
    world.loaded("sql", B).await;
    world.quiet().await;
    world.kill_operator();
    let before = world.quiet().await;
    let asked = world.registry.asked_for(B);
    world.registry.hold_mirrors(true);
    world.start();
    world
        .wait("the registry is asked", || {
            world.registry.asked_for(A) > 0 && world.registry.asked_for(B) > asked
        })
        .await;
    world.quiet().await;
    world.registry.hold_mirrors(false);
    world.quiet().await;
    let all = world.cluster.writes();
    let statuses = all[before..].iter().filter(|w| w.ends_with("/status"));
    assert_eq!(statuses.count(), 0, "{:?}", &all[before..]);
}

#[tokio::test]
async fn an_operator_that_is_killed_again_and_again_converges() {
    let mut world = World::new().await;
    world.registry.push("ns", "m", A);
    world.registry.push("ns", "lora", A);
    world.apply_model("m", &spec());
    for (step, pause) in [1, 7, 15, 30, 50, 80, 120, 200].into_iter().enumerate() {
        world.apply_adapter_of(&format!("a{step}"), &other(&format!("{step}.safetensors")));
        if step % 3 == 2 {
            world
                .cluster
                .delete(ADAPTERS, "ns", &format!("a{}", step - 1));
        }
        if step == 5 {
            world.registry.push("ns", "lora", B);
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        world.kill_operator();
        world.start();
    }
    for name in ["a0", "a2", "a3", "a5", "a6", "a7"] {
        world.loaded(name, B).await;
    }
    world
        .wait("the list has those that are there", || {
            world.registry.names("ns/m") == ["a0", "a2", "a3", "a5", "a6", "a7"]
        })
        .await;
}

#[tokio::test]
async fn a_hundred_at_once_lose_nobody_and_cost_nothing_once_they_are_there() {
    let mut many = spec();
    many["replicas"] = json!(3);
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &many);
    world.settled("m", A).await;
    for i in 0..100 {
        world.apply_adapter(&format!("a{i:03}"), &format!("{i}.safetensors"));
    }
    for i in 0..100 {
        world.loaded(&format!("a{i:03}"), A).await;
    }
    let written = world.registry.written("ns/m");
    assert!(written.is_sorted(), "an older list followed: {written:?}");
    assert_eq!(written.last(), Some(&100));
    world
        .wait("all is told", || told(&world).len() == 100)
        .await;
    let (writes, lists) = (world.quiet().await, written.len());
    let asked = world.workers.asked();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let all = world.cluster.writes();
    assert_eq!(all.len(), writes, "{:?}", &all[writes..]);
    assert_eq!(world.registry.written("ns/m").len(), lists);
    let asked = world.workers.asked() - asked;
    // Three workers, each twice a second.
    assert!((3..=30).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_told_of_and_hides_no_other() {
    let mut two = spec();
    two["replicas"] = json!(2);
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &two);
    world.settled("m", A).await;
    let pods = world.cluster.list(PODS);
    let silent = pods[0]["metadata"]["name"].as_str().unwrap().to_owned();
    world.workers.silence(&silent, true);
    world.apply_adapter("sql", ".");
    world.because("sql", LOADED, "WorkerUnreachable").await;
    let status = world.adapter("sql");
    let replicas = status.replicas.unwrap();
    assert_eq!((replicas.desired, replicas.loaded), (2, 1));
    assert!(status.condition(LOADED).unwrap().message.contains(&silent));
    assert!(!status.is_true(READY));
    world.workers.silence(&silent, false);
    world.loaded("sql", A).await;
    // A new worker counts too.
    world.edit("m", |m| m["spec"]["replicas"] = json!(3));
    world
        .wait("three have it", || {
            world.adapter("sql").replicas.is_some_and(|r| r.loaded == 3)
        })
        .await;
    world.edit("m", |m| m["spec"]["replicas"] = json!(0));
    world.because("sql", READY, "Idle").await;
    assert!(world.adapter("sql").is_true(READY));
}

#[tokio::test]
async fn trouble_with_source_and_registry_has_its_reason_and_heals() {
    let world = served().await;
    let mut foreign = other(".");
    foreign["source"]["url"] = json!("hyprstream://elsewhere/lora");
    world.apply_adapter_of("foreign", &foreign);
    world.because("foreign", ACCEPTED, "AccessDenied").await;
    world.because("foreign", STALLED, "AccessDenied").await;
    world.apply_adapter_of("sql", &other("."));
    world
        .because("sql", SOURCE_RESOLVED, "RepositoryNotFound")
        .await;
    world.because("sql", READY, "RepositoryNotFound").await;
    world.registry.push("ns", "lora", A);
    world.loaded("sql", A).await;
    world.registry.set_down(true);
    world
        .cluster
        .change(ADAPTERS, "ns", "sql", |a| a["spec"]["scale"] = json!("0.5"));
    world.because("sql", ACCEPTED, "RegistryUnreachable").await;
    assert!(
        world.adapter("sql").is_true(READY),
        "workers have it as it was"
    );
    world.registry.set_down(false);
    world
        .wait("the scale arrives", || {
            let list = world.registry.list("ns/m").unwrap();
            list.adapters[0].scale.to_bits() == 0.5_f32.to_bits()
        })
        .await;
    world.loaded("sql", A).await;
    // Another file, another name, another Model.
    world.cluster.change(ADAPTERS, "ns", "sql", |a| {
        a["spec"]["servedName"] = json!("q");
        a["spec"]["source"]["path"] = json!("q");
    });
    world
        .wait("it moves", || {
            let list = world.registry.list("ns/m").unwrap_or_default();
            list.adapters.len() == 1
                && list.adapters[0].name == "q"
                && list.adapters[0].weights == "q/adapter_model.safetensors"
        })
        .await;
    world.apply_model("n", &spec());
    world.cluster.change(ADAPTERS, "ns", "sql", |a| {
        a["spec"]["modelRef"]["name"] = json!("n");
    });
    world
        .wait("it is the other Model's", || {
            world.registry.list("ns/m").is_none() && world.registry.names("ns/n") == ["q"]
        })
        .await;
    world.loaded("sql", A).await;
}

#[tokio::test]
async fn one_that_cannot_be_read_stays_listed_and_hides_no_other() {
    let mut world = served().await;
    world.apply_adapter("a", "a.safetensors");
    world.apply_adapter("b", "b.safetensors");
    world.loaded("a", A).await;
    world.loaded("b", A).await;
    world.cluster.change(ADAPTERS, "ns", "a", |a| {
        a["spec"]["baseCommitPolicy"] = json!("Later");
    });
    world.because("a", STALLED, "Malformed").await;
    world.kill_operator();
    world.start();
    world.apply_adapter("c", "c.safetensors");
    world.loaded("c", A).await;
    assert_eq!(world.registry.names("ns/m"), ["a", "b", "c"]);
}

#[tokio::test]
async fn adapters_of_one_source_have_it_resolved_together_and_hear_at_once_when_asked() {
    let world = served().await;
    let url = "https://example.org/lora";
    world.registry.set_head(url, Ok(A));
    let before = world.registry.resolves();
    let apply = |name: &str| {
        let spec = json!({"modelRef": {"name": "m"}, "source": {"url": url, "path": name}});
        world.apply_adapter_of(name, &spec);
    };
    let names: Vec<String> = (0..40).map(|n| format!("a{n}")).collect();
    world.registry.hold(true);
    for name in &names {
        apply(name);
    }
    world
        .wait("all are looked at", || {
            let mut all = names.iter();
            all.all(|name| !world.adapter(name).conditions.is_empty())
        })
        .await;
    world.registry.hold(false);
    for name in &names {
        world.loaded(name, A).await;
    }
    // The first, and one for all who came while it was under way.
    let asked = world.registry.resolves() - before;
    assert!(asked <= 4, "40 Adapters asked {asked} times");
    // The answers of just now are those of before it moved.
    world.registry.set_head(url, Ok(B));
    world.cluster.change(ADAPTERS, "ns", "a0", |adapter| {
        adapter["metadata"]["annotations"] = json!({"hyprstream.io/reconcile-at": "now"});
    });
    world.loaded("a0", B).await;
    apply("new");
    world.loaded("new", B).await;
    assert_eq!(world.adapter("a1").commit.as_deref(), Some(A));
}
