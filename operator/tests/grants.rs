//! What nodes may read: words in Secrets, and what the registry is told of them.

#![allow(clippy::unwrap_used, reason = "in tests a surprise is a failure")]

mod world;

use std::collections::BTreeSet;

use hyprstream_contract::grants::{Grant, Opens, Word, WordHash};
use serde_json::{Value, json};

use self::world::{
    A, B, URL, World,
    kubelet::{CLAIMS, VOLUMES},
    spec,
};

const SECRETS: &str = "v1/secrets";
const TYPE: &str = "hyprstream.io/volume-word";

async fn serving() -> World {
    let world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world
}

/// The Secrets with words.
fn secrets(world: &World) -> Vec<Value> {
    let mut secrets = world.cluster.list(SECRETS);
    secrets.retain(|secret| secret["type"] == TYPE);
    secrets
}

fn word(secret: &Value) -> Option<Word> {
    let bytes: k8s_openapi::ByteString =
        serde_json::from_value(secret["data"]["word"].clone()).ok()?;
    std::str::from_utf8(&bytes.0).ok()?.parse().ok()
}

fn hash(world: &World, secret: &str) -> Option<WordHash> {
    Some(word(&world.cluster.get(SECRETS, "ns", secret)?)?.hash())
}

/// Whether each volume has a Secret of its claim, of which the registry knows the word and what the
/// volume opens, and there is nothing beside.
fn is_granted(world: &World) -> bool {
    let (volumes, grants) = (world.cluster.list(VOLUMES), world.registry.grants());
    let is_right = |volume: &Value| {
        let csi = &volume["spec"]["csi"];
        let name = csi["nodeStageSecretRef"]["name"].as_str().unwrap();
        let secret = world.cluster.get(SECRETS, "ns", name)?;
        let claim = volume["spec"]["claimRef"]["name"].as_str().unwrap();
        let claim = world.cluster.get(CLAIMS, "ns", claim)?;
        let owners = &secret["metadata"]["ownerReferences"];
        assert_eq!(
            owners.as_array().unwrap().len(),
            1,
            "it goes with the claim"
        );
        if owners[0]["uid"] != claim["metadata"]["uid"] {
            return None;
        }
        let grant = grants.get(csi["volumeHandle"].as_str().unwrap())?;
        let attributes = &csi["volumeAttributes"];
        let opens = if let Some(model) = attributes["hyprstream.io/adapters"].as_str() {
            Opens::Adapters(model.parse().unwrap())
        } else {
            let repository = attributes["hyprstream.io/repository"].as_str().unwrap();
            Opens::Repository(repository.to_owned())
        };
        Some(grant.opens == opens && grant.words.contains(&word(&secret)?.hash()))
    };
    volumes.len() == grants.len()
        && volumes.len() == secrets(world).len()
        && volumes.iter().all(|volume| is_right(volume) == Some(true))
}

async fn granted(world: &World, what: &str) {
    world.wait(what, || is_granted(world)).await;
}

#[tokio::test]
async fn each_volume_has_a_word_that_the_registry_knows_by_its_hash() {
    let world = serving().await;
    granted(&world, "both volumes are granted").await;
    assert_eq!(secrets(&world).len(), 2);
    for volume in world.cluster.list(VOLUMES) {
        let csi = &volume["spec"]["csi"];
        let is_of_adapters = csi["volumeAttributes"]["hyprstream.io/adapters"].is_string();
        // Only who is followed without being staged anew is brought the word again.
        assert_eq!(csi["nodePublishSecretRef"].is_object(), is_of_adapters);
        assert_eq!(csi["nodeStageSecretRef"]["namespace"], "ns");
    }
    let words: BTreeSet<_> = secrets(&world).iter().filter_map(word).collect();
    assert_eq!(words.len(), 2, "no two are the same");
    let writes = world.cluster.writes();
    assert!(
        !writes
            .iter()
            .any(|w| w.starts_with("DELETE") && w.contains("/secrets"))
    );
    // Another commit has another volume, and nothing is written where nothing changes.
    world.registry.push("ns", "m", B);
    world.settled("m", B).await;
    granted(&world, "the new volume is granted too").await;
    let quiet = world.quiet().await;
    assert_eq!(world.quiet().await, quiet);
}

#[tokio::test]
async fn what_a_kill_leaves_between_any_two_steps_is_finished() {
    for part in [
        "/persistentvolumeclaims",
        "POST /api/v1/namespaces/ns/secrets",
        "grants",
        "/deployments",
    ] {
        let mut world = World::new().await;
        world.registry.set_head(URL, Ok(A));
        if part == "grants" {
            world.registry.refuse_grants(true);
        } else {
            world.cluster.refuse(part, Some((500, "later")));
        }
        world.apply_model("m", &spec());
        let is_stuck = || {
            let writes = world.cluster.writes();
            let tried = writes.iter().any(|write| write.contains(part));
            tried || part == "grants" && secrets(&world).len() == 2
        };
        world.wait(part, is_stuck).await;
        world.kill_operator();
        let made = world.cluster.list(VOLUMES).len();
        assert!(made > 0, "{part}");
        world.cluster.refuse(part, None);
        world.registry.refuse_grants(false);
        world.start();
        world.settled("m", A).await;
        granted(&world, part).await;
        assert_eq!(
            world.cluster.list(VOLUMES).len(),
            2,
            "{part}: no volume is made twice"
        );
    }
}

#[tokio::test]
async fn pods_come_up_though_the_registry_takes_no_grants_and_it_is_told_later() {
    let mut world = World::new().await;
    world.registry.set_head(URL, Ok(A));
    world.registry.refuse_grants(true);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    assert!(world.registry.grants().is_empty());
    assert_eq!(secrets(&world).len(), 2);
    world.registry.refuse_grants(false);
    // The first sweep of a life tells what is missing; without that it is the next, in half a minute.
    world.kill_operator();
    world.start();
    granted(&world, "it is told").await;
}

#[tokio::test]
async fn a_registry_that_lost_its_disk_is_told_anew_and_what_has_no_volume_goes() {
    let mut world = serving().await;
    granted(&world, "all are granted").await;
    let before = world.registry.grants();
    world.kill_operator();
    world.registry.forget_grants();
    let stray = Grant {
        words: BTreeSet::from([Word::from_bytes([7; 32]).hash()]),
        opens: Opens::Repository("git/ns/gone".into()),
    };
    world.registry.restore_grant("uid-of-nobody-0123456", stray);
    world.start();
    granted(&world, "they are there again").await;
    assert_eq!(world.registry.grants(), before, "with the same words");
}

#[tokio::test]
async fn a_models_volumes_open_nothing_once_it_is_deleted() {
    let world = serving().await;
    granted(&world, "all are granted").await;
    world.cluster.delete(world::MODELS, "ns", "m");
    let is_gone = || world.registry.grants().is_empty();
    world.wait("nothing is granted", is_gone).await;
    assert!(world.cluster.list(VOLUMES).is_empty(), "volumes go first");
    assert!(secrets(&world).is_empty());
}

#[tokio::test]
async fn a_word_is_changed_after_a_month_and_both_hold_for_an_hour() {
    let mut world = serving().await;
    granted(&world, "all are granted").await;
    world.kill_operator();
    let volume = world.of_commits(VOLUMES).remove(0);
    let csi = &volume["spec"]["csi"];
    let handle = csi["volumeHandle"].as_str().unwrap().to_owned();
    let secret = csi["nodeStageSecretRef"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let old = hash(&world, &secret).unwrap();
    let age = |world: &World, at: &str| {
        world.cluster.change(SECRETS, "ns", &secret, |secret| {
            secret["metadata"]["annotations"]["hyprstream.io/word-changed-at"] = json!(at);
        });
    };
    age(&world, "2020-01-01T00:00:00Z");
    // Killed between the two steps: the registry knows a word that is nowhere.
    world.cluster.refuse("-word", Some((500, "later")));
    world.start();
    let is_told = || world.registry.granted(&handle).len() >= 2;
    world
        .wait("the registry hears of both first", is_told)
        .await;
    world.kill_operator();
    assert!(world.registry.grants()[&handle].words.contains(&old));
    assert_eq!(
        hash(&world, &secret),
        Some(old.clone()),
        "the old one is in use still"
    );

    world.cluster.refuse("-word", None);
    world.start();
    let is_changed = || hash(&world, &secret).is_some_and(|new| new != old);
    world.wait("the word is another", is_changed).await;
    let new = hash(&world, &secret).unwrap();
    let both = BTreeSet::from([old.clone(), new.clone()]);
    let registry = world.registry.clone();
    let holds = |words: &BTreeSet<WordHash>| registry.grants()[&handle].words == *words;
    world.wait("both hold", || holds(&both)).await;

    world.kill_operator();
    let hours_ago =
        k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_hours(2);
    age(&world, &hours_ago.to_string());
    world.start();
    world
        .wait("the new one holds alone", || {
            holds(&BTreeSet::from([new.clone()]))
        })
        .await;
}

#[tokio::test]
async fn a_secret_that_is_deleted_or_spoilt_gets_another_word_and_a_strangers_is_left_alone() {
    let mut world = serving().await;
    granted(&world, "all are granted").await;
    let name = "m-granted-adapters-word";
    let first = hash(&world, name).unwrap();
    let spoils: [fn(&World, &str); 2] = [
        |world, name| world.cluster.delete(SECRETS, "ns", name),
        |world, name| {
            world
                .cluster
                .change(SECRETS, "ns", name, |secret| secret["data"] = json!({}));
        },
    ];
    for spoil in spoils {
        world.kill_operator();
        spoil(&world, name);
        world.start();
        let is_there = || hash(&world, name).is_some_and(|hash| hash != first);
        world.wait("there is another word", is_there).await;
        granted(&world, "the registry knows it").await;
        let words = &world.registry.grants().into_values().collect::<Vec<_>>();
        assert!(!words.iter().any(|grant| grant.words.contains(&first)));
    }
    let stranger = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "n-granted-adapters-word", "namespace": "ns"},
        "data": {"word": "aGVsbG8="},
    });
    world.cluster.put(SECRETS, stranger.clone());
    world.apply_model("n", &spec());
    let is_told = || {
        let conditions = world.status("n").conditions;
        conditions
            .iter()
            .any(|c| c.reason == "NameConflict" && c.message.contains("Secret"))
    };
    world.wait("the conflict is told", is_told).await;
    let found = world
        .cluster
        .get(SECRETS, "ns", "n-granted-adapters-word")
        .unwrap();
    assert_eq!(found["data"], stranger["data"]);
}

#[tokio::test]
async fn volumes_of_an_earlier_release_stay_until_nothing_is_made_of_them() {
    let mut world = serving().await;
    world.kill_operator();
    // As an earlier release made it.
    let mut volume = world.of_commits(VOLUMES).remove(0);
    let name = volume["metadata"]["name"].as_str().unwrap().to_owned();
    let csi = volume["spec"]["csi"].as_object_mut().unwrap();
    csi.remove("nodeStageSecretRef");
    let handle = csi["volumeHandle"].as_str().unwrap().to_owned();
    world.cluster.put(VOLUMES, volume);
    world.start();
    world.settled("m", A).await;
    world.quiet().await;
    let kept = world.cluster.get(VOLUMES, "", &name).unwrap();
    assert!(
        kept["spec"]["csi"]["nodeStageSecretRef"].is_null(),
        "it cannot be changed"
    );
    assert!(
        world.registry.grants().contains_key(&handle),
        "nor is anything taken from it"
    );
}
