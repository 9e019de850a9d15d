//! What one user stores stops nobody else.

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, Cluster, Namespace, wait_until};

use crate::{PATIENCE, Tiny, tiny_spec};

const CRD: &str = "crd/models.hyprstream.io";
const MAX_SURGE: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/\
                         rollout/properties/maxSurge/maximum";

/// The schema of Models as that of another version might be: without the bound on `maxSurge`.
struct Loosened(Cluster);

impl Loosened {
    fn new(cluster: &Cluster) -> Result<Self> {
        patch(
            cluster,
            &format!(r#"[{{"op":"remove","path":"{MAX_SURGE}"}}]"#),
        )?;
        Ok(Self(cluster.clone()))
    }
}

impl Drop for Loosened {
    fn drop(&mut self) {
        let operation = format!(r#"[{{"op":"add","path":"{MAX_SURGE}","value":2147483647}}]"#);
        if let Err(error) = patch(&self.0, &operation) {
            eprintln!("the schema stays as it is: {error:#}");
        }
    }
}

fn patch(cluster: &Cluster, operations: &str) -> Result<()> {
    cluster
        .kubectl(&["patch", CRD, "--type=json", "-p", operations])
        .map(drop)
}

/// Stores a Model that our types cannot hold.
fn store_bad(cluster: &Cluster, namespace: &Namespace, url: &str) -> Result<()> {
    let _loosened = Loosened::new(cluster)?;
    let spec = tiny_spec(url, "  rollout: {maxSurge: 3000000000}\n");
    // The API server takes a moment to follow the schema.
    wait_until(PATIENCE, || {
        let output = cluster.try_apply(&namespace.manifest("bad", &spec))?;
        Ok(output.success.then_some(()))
    })
    .context("store a Model with a maxSurge of 3000000000")
}

#[test]
fn s04_a_model_that_no_type_can_hold_stops_nobody_after_a_restart() -> Result<()> {
    let tiny = Tiny::serve("bystander")?;
    store_bad(&tiny.cluster, &tiny.namespace, &tiny.repository.url)?;
    for component in ["operator", "gateway"] {
        tiny.cluster.kubectl(&[
            "-n",
            &tiny.cluster.system,
            "delete",
            "pod",
            "-l",
            &format!("app.kubernetes.io/component={component}"),
        ])?;
    }
    tiny.cluster.wait_whole(PATIENCE)?;
    let bad = tiny.namespace.model("bad");
    let message = bad.wait_condition("Stalled", "True", Some("Malformed"), PATIENCE)?;
    assert!(message.contains("spec.rollout.maxSurge"), "{message}");
    let second = tiny.push_seed(2)?;
    tiny.model.wait_ready_on(&second, PATIENCE)?;
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "go on", 4);
    wait_until(PATIENCE, || {
        Ok(question.ask().ok().filter(|answer| answer.commit == second))
    })?;
    bad.patch(r#"{"spec":{"rollout":{"maxSurge":1}}}"#)?;
    bad.wait_ready_on(&second, PATIENCE)
}
