//! What one user stores stops nobody else.

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, Cluster, Namespace, wait_until};
use serde_json::{Value, json};

use crate::{PATIENCE, Tiny, tiny_spec};

const CRD: &str = "crd/models.hyprstream.io";
const MAX_SURGE: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/\
                         rollout/properties/maxSurge";

/// The schema of Models as that of another version might be: without the bound on `maxSurge`.
struct Loosened(Cluster);

impl Loosened {
    fn new(cluster: &Cluster) -> Result<Self> {
        bound(cluster, None)?;
        Ok(Self(cluster.clone()))
    }
}

impl Drop for Loosened {
    fn drop(&mut self) {
        if let Err(error) = bound(&self.0, Some(i32::MAX)) {
            eprintln!("the schema stays as it is: {error:#}");
        }
    }
}

/// Applies the schema with another bound on `maxSurge`, in Helm's name: it would not upgrade what
/// somebody else changed.
fn bound(cluster: &Cluster, most: Option<i32>) -> Result<()> {
    let mut crd = cluster.get(&[CRD])?;
    let meta = &crd["metadata"];
    crd = json!({
        "apiVersion": crd["apiVersion"], "kind": crd["kind"], "spec": crd["spec"],
        "metadata": {
            "name": meta["name"], "labels": meta["labels"], "annotations": meta["annotations"],
        },
    });
    let surge = crd.pointer_mut(MAX_SURGE).and_then(Value::as_object_mut);
    let surge = surge.context("the schema has no maxSurge")?;
    match most {
        Some(most) => drop(surge.insert("maximum".into(), most.into())),
        None => drop(surge.remove("maximum")),
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), serde_json::to_vec(&crd)?)?;
    let path = file.path().to_str().context("a path that is no text")?;
    let arguments = ["apply", "--server-side", "--field-manager=helm", "-f", path];
    cluster
        .kubectl(&[&arguments[..], &["--force-conflicts"]].concat())
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
