//! A node is gone: the Model is ready again on the other, and a TrainingJob goes on there.

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, Cluster, wait_until};

use crate::{
    PATIENCE, Tiny,
    training::{
        TRAINS, Training, ensure_same,
        faults::{SLOW, apply_with, calm},
        wait_checkpoint, wait_over,
    },
};

/// On the node that will be lost, until the other has the label too.
const SELECTOR: &str = "  nodeSelector: {hyprstream.io/e2e-losable: \"true\"}\n";

/// Mends the link also when the test fails.
struct Severed<'a>(&'a Tiny, String);

impl Drop for Severed<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.xtask(&["chaos", "link", &self.1, "up"]);
    }
}

#[test]
fn s07_the_model_is_ready_again_on_the_other_node_and_training_goes_on() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let nodes = cluster.get(&["nodes"])?;
    let nodes: Vec<&str> = nodes["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| node["metadata"]["name"].as_str())
        .collect();
    assert!(nodes.len() >= 2, "this test needs two nodes: {nodes:?}");
    // The Model starts where the release's own pods are not: only the last node carries the label,
    // and the first gets it when the last is cut off.
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    let label =
        |node: &str, value: &str| cluster.kubectl(&["label", "node", node, value, "--overwrite"]);
    // A run that failed may have left its labels.
    label("--all", "hyprstream.io/e2e-losable-")?;
    label(last, "hyprstream.io/e2e-losable=true")?;
    let here = Training::beside(Tiny::serve_with("node-loss", SELECTOR)?, 64)?;
    let tiny = &here.tiny;
    let calm = calm(&here, 200)?;
    let job = apply_with(&here, "lost", 200, SLOW, SELECTOR)?;
    wait_checkpoint(&job, 20)?;
    let node = tiny.model.pods()?[0]["spec"]["nodeName"]
        .as_str()
        .context("a node")?
        .to_owned();
    assert_eq!(node, last);
    label(first, "hyprstream.io/e2e-losable=true")?;
    cluster.xtask(&["chaos", "link", last, "down"])?;
    let severed = Severed(tiny, last.to_owned());
    let question = Chat::new(&cluster.ingress, &tiny.model.id(), "still there?", 8);
    wait_until(PATIENCE, || {
        let moved = tiny.model.pods()?.iter().any(|pod| {
            pod["spec"]["nodeName"] == first
                && pod["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        });
        Ok(moved.then_some(()))
    })?;
    assert_eq!(
        wait_until(PATIENCE, || Ok(question.ask().ok()))?.commit,
        tiny.commit
    );
    // Before the node is back.
    let status = wait_over(&job, "Complete", TRAINS)?;
    ensure_same(&status, &calm)?;
    assert_eq!(
        status["failures"].as_i64().unwrap_or_default(),
        0,
        "{status}"
    );
    drop(severed);
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "node",
        last,
        "--timeout=120s",
    ])?;
    for node in [first, last] {
        cluster.kubectl(&["label", "node", node, "hyprstream.io/e2e-losable-"])?;
    }
    // The registry may have been on the node that was lost.
    cluster.wait_registry(PATIENCE)?;
    tiny.model.wait_ready_on(&tiny.commit, PATIENCE)
}
