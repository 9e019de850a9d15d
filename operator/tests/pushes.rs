//! What those who follow a repository of the registry are told of its changes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests a surprise is a failure"
)]

mod world;

use hyprstream_contract::registry::{Change, ChangeKind};
use serde_json::json;
use world::{A, B, C, World, spec};

const EVENTS: &str = "events.k8s.io/v1/events";

fn push(subject: &str, reference: &str, old: &str, new: &str) -> Change {
    Change {
        kind: ChangeKind::Push,
        subject: subject.to_owned(),
        reference: Some(reference.to_owned()),
        is_default: reference == "refs/heads/main",
        old: Some(old.to_owned()),
        new: Some(new.to_owned()),
        bytes: Some(812),
    }
}

/// Name and note of each event of a reason, by name.
fn told(world: &World, reason: &str) -> Vec<(String, String)> {
    let events = world.cluster.list(EVENTS);
    let mut told: Vec<_> = events
        .iter()
        .filter(|event| event["reason"] == reason)
        .map(|event| {
            let regarding = &event["regarding"];
            assert!(regarding["uid"].is_string(), "{event}");
            let kind = regarding["kind"].as_str().unwrap();
            let name = regarding["name"].as_str().unwrap();
            let note = event["note"].as_str().unwrap().to_owned();
            (format!("{kind} {name}"), note)
        })
        .collect();
    told.sort();
    told
}

#[tokio::test]
async fn a_push_is_told_to_those_who_follow_the_ref_and_says_who_made_it() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.registry.push("ns", "other", A);
    world.apply_model("follows", &spec());
    let mut another_branch = spec();
    another_branch["source"]["ref"] = json!({"branch": "stable"});
    world.apply_model("stable", &another_branch);
    let mut another_repository = spec();
    another_repository["source"]["url"] = json!("hyprstream://ns/other");
    world.apply_model("other", &another_repository);
    for name in ["follows", "other"] {
        world.settled(name, A).await;
    }
    let who = "system:serviceaccount:ns:job-1";
    let change = push(who, "refs/heads/main", A, B);
    world.registry.change("ns", "m", change);
    world.settled("follows", B).await;
    world
        .wait("the push is told of", || !told(&world, "Pushed").is_empty())
        .await;
    world.quiet().await;
    let note = format!(
        "refs/heads/main was pushed, it is at commit {B}, before at {A}, 812 bytes, by {who}"
    );
    let expected = ("Model follows".to_owned(), note);
    assert_eq!(told(&world, "Pushed"), [expected]);

    let mut merge = push("alice", "refs/heads/main", B, C);
    merge.kind = ChangeKind::Merge;
    world.registry.change("ns", "m", merge);
    world
        .wait("the merge is told of", || {
            !told(&world, "Merged").is_empty()
        })
        .await;
    let merged = &told(&world, "Merged")[0];
    assert!(merged.1.ends_with("by alice"), "{merged:?}");
}

#[tokio::test]
async fn a_registry_that_does_not_say_who_pushed_is_followed_as_before() {
    let world = World::new().await;
    world.registry.push("ns", "m", A);
    world.apply_model("m", &spec());
    world.settled("m", A).await;
    world.registry.push("ns", "m", B);
    world.settled("m", B).await;
    world.quiet().await;
    assert_eq!(told(&world, "Pushed"), []);
}
