//! What served last goes on serving, or comes back by itself, whatever else was tried.

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, TinyModel, wait_until};

use crate::{PATIENCE, Tiny};

/// Asks until an answer comes from `commit`.
#[track_caller]
fn wait_answer_from(tiny: &Tiny, commit: &str) -> Result<()> {
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 8);
    wait_until(PATIENCE, || {
        Ok((question.ask()?.commit == commit).then_some(()))
    })
    .with_context(|| format!("no answer from {commit}"))
}

#[test]
fn s10_without_room_for_two_a_bad_commit_gives_way_to_the_good_one_before_it() -> Result<()> {
    let tiny = Tiny::serve_with(
        "no-surge",
        "  storage: {keepRevisions: 1}\n  rollout: {maxSurge: 0, maxUnavailable: 1}\n",
    )?;
    let mut weights = TinyModel::new(3).weights()?;
    weights.truncate(weights.len() / 2);
    tiny.repository.write("model.safetensors", &weights)?;
    let bad = tiny.repository.publish("half a file")?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["failed"]["commit"] == bad.as_str()).then_some(()))
    })
    .context("the bad commit must be given up")?;
    tiny.model.wait_ready_on(&tiny.commit, PATIENCE)?;
    wait_answer_from(&tiny, &tiny.commit)?;
    let good = tiny.push_seed(7)?;
    tiny.model.wait_ready_on(&good, PATIENCE)?;
    wait_answer_from(&tiny, &good)
}

#[test]
fn s10_a_claim_that_somebody_deletes_is_replaced_and_edits_go_on() -> Result<()> {
    let tiny = Tiny::serve("claim")?;
    tiny.cluster.kubectl(&[
        "-n",
        &tiny.namespace.name,
        "delete",
        "persistentvolumeclaims",
        "-l",
        "hyprstream.io/model=tiny",
        "--wait=false",
    ])?;
    wait_answer_from(&tiny, &tiny.commit)?;
    tiny.model.patch(r#"{"spec":{"replicas":2}}"#)?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["readyReplicas"] == 2).then_some(()))
    })
    .context("scaling must go on")?;
    let second = tiny.push_seed(2)?;
    tiny.model.wait_ready_on(&second, PATIENCE)?;
    wait_answer_from(&tiny, &second)
}

#[test]
fn s10_a_spec_that_no_worker_can_start_with_goes_back_and_says_why() -> Result<()> {
    let tiny = Tiny::serve("bad-spec")?;
    // The model was made for 2,048 tokens.
    tiny.model
        .patch(r#"{"spec":{"engine":{"maxModelLen":16777216}}}"#)?;
    wait_until(PATIENCE, || {
        let status = tiny.model.get()?["status"].clone();
        Ok((status["failed"]["commit"] == tiny.commit.as_str()).then_some(()))
    })
    .context("the spec must be given up")?;
    wait_answer_from(&tiny, &tiny.commit)?;
    tiny.model.wait_ready_on(&tiny.commit, PATIENCE)?;
    // It scales with what serves.
    tiny.model.patch(r#"{"spec":{"replicas":2}}"#)?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["readyReplicas"] == 2).then_some(()))
    })?;
    tiny.model
        .patch(r#"{"spec":{"engine":{"maxModelLen":512}}}"#)?;
    wait_until(PATIENCE, || {
        let status = tiny.model.get()?["status"].clone();
        Ok(status["failed"].is_null().then_some(()))
    })?;
    tiny.model.wait_ready_on(&tiny.commit, PATIENCE)
}
