//! Commits that cannot serve: the one before them serves on, and the status says why.

use anyhow::Result;
use hyprstream_e2e::{Chat, TinyModel};

use crate::{PATIENCE, Tiny};

/// Pushes what `damage` leaves, waits for the reason, checks that the first commit serves on, then
/// pushes a good commit and checks that it takes over.
#[track_caller]
fn check(
    hint: &str,
    damage: impl FnOnce(&Tiny) -> Result<String>,
    condition: &str,
    reason: &str,
    words: &[&str],
) -> Result<()> {
    let tiny = Tiny::serve(hint)?;
    let bad = damage(&tiny)?;
    let message = tiny
        .model
        .wait_condition(condition, "False", Some(reason), PATIENCE)?;
    for word in words {
        assert!(message.contains(word), "{message:?} must say {word:?}");
    }
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 8);
    assert_eq!(
        question.ask()?.commit,
        tiny.commit,
        "the old commit serves on"
    );
    let status = tiny.model.get()?["status"].clone();
    assert_eq!(status["commit"], tiny.commit.as_str());
    assert_eq!(status["lastKnownGood"], tiny.commit.as_str());
    assert_eq!(status["latestCommit"], bad.as_str());
    let ready = tiny.model.condition("Ready")?.expect("a Ready condition");
    assert_eq!(ready.0, "True", "what serves is ready: {ready:?}");
    let events =
        tiny.cluster
            .kubectl(&["-n", &tiny.namespace.name, "events", "--for=model/tiny"])?;
    assert!(
        events.contains(reason),
        "an event names {reason}:\n{events}"
    );
    let good = tiny.push_seed(7)?;
    tiny.model.wait_ready_on(&good, PATIENCE)?;
    assert_eq!(question.ask()?.commit, good);
    Ok(())
}

#[test]
fn s03_corrupt_weights_leave_the_old_commit_serving() -> Result<()> {
    check(
        "corrupt",
        |tiny| {
            let mut weights = TinyModel::new(3).weights()?;
            weights.truncate(weights.len() / 2);
            tiny.repository.write("model.safetensors", &weights)?;
            tiny.repository.publish("half a file")
        },
        "WorkersReady",
        "InvalidWeights",
        &["model.safetensors"],
    )
}

#[test]
fn s03_a_missing_lfs_object_leaves_the_old_commit_serving() -> Result<()> {
    check(
        "missing",
        |tiny| {
            TinyModel::new(4).write(&tiny.repository)?;
            let commit = tiny.repository.commit("without its object")?;
            let done = tiny
                .repository
                .command(&["push", "--no-verify", "--quiet", "origin", "HEAD:main"])
                .env("GIT_LFS_SKIP_PUSH", "1")
                .status()?;
            assert!(done.success());
            Ok(commit)
        },
        "SourceResolved",
        "MissingLFSObject",
        &["model.safetensors"],
    )
}

#[test]
fn s03_an_unsupported_architecture_leaves_the_old_commit_serving() -> Result<()> {
    check(
        "arch",
        |tiny| {
            let other = TinyModel {
                architecture: "MambaForCausalLM",
                ..TinyModel::new(5)
            };
            other.write(&tiny.repository)?;
            tiny.repository.publish("another architecture")
        },
        "WorkersReady",
        "UnsupportedArchitecture",
        &["MambaForCausalLM"],
    )
}
