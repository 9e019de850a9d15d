//! What a node may read: by its own token nothing, by the word of a volume what that shows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, Model, wait_until};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{PATIENCE, Tiny};

/// The word of a volume that is gone opens nothing after this time.
const REVOKED_WITHIN: Duration = Duration::from_mins(1);
const OPERATOR: &str = "deployment/hyprstream-operator";

/// Status of the registry's answer to who wants to fetch a repository by a token.
fn asked(cluster: &Cluster, token: &str, repository: &str) -> Result<u16> {
    let agent = cluster.registry_agent()?;
    let url = format!(
        "{}/git/{repository}.git/info/refs?service=git-upload-pack",
        cluster.registry
    );
    let answer = agent
        .get(&url)
        .header("authorization", format!("Bearer {token}"))
        .call()
        .context("ask the registry")?;
    Ok(answer.status().as_u16())
}

/// A key of a Secret, decoded.
fn secret(cluster: &Cluster, namespace: &str, name: &str, key: &str) -> Result<String> {
    let template = format!("go-template={{{{index .data {key:?} | base64decode}}}}");
    cluster.kubectl(&["-n", namespace, "get", "secret", name, "-o", &template])
}

/// The volumes that were made for a Model.
fn volumes(cluster: &Cluster, model: &Model) -> Result<Vec<Value>> {
    let selector = format!(
        "hyprstream.io/model={},hyprstream.io/model-namespace={}",
        model.name, model.namespace
    );
    let list = cluster.get(&["persistentvolumes", "-l", &selector])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The word of a Model's volume: of its commit, or of its adapters.
fn word(cluster: &Cluster, model: &Model, of_adapters: bool) -> Result<String> {
    let all = volumes(cluster, model)?;
    let shows_adapters =
        |v: &Value| v["spec"]["csi"]["volumeAttributes"]["hyprstream.io/adapters"].is_string();
    let volume = all.iter().find(|v| shows_adapters(v) == of_adapters);
    let reference = &volume.context("a volume")?["spec"]["csi"]["nodeStageSecretRef"];
    let text = |key: &str| reference[key].as_str().context("a Secret of the volume");
    secret(cluster, text("namespace")?, text("name")?, "word")
}

/// Lets a volume that nobody but the test makes open a repository: its word, for a Secret. Its handle
/// begins with `own-`, so that the operator leaves the grant alone.
pub(crate) fn grant_by_hand(cluster: &Cluster, handle: &str, repository: &str) -> Result<String> {
    let mut word = "hsv_".to_owned();
    word.extend(std::iter::repeat_with(fastrand::alphanumeric).take(43));
    let digest = Sha256::digest(word.as_bytes());
    let hash = digest.iter().map(|byte| format!("{byte:02x}"));
    let hash = hash.collect::<String>();
    let answer = cluster
        .registry_agent()?
        .put(format!("{}/api/v1/grants/{handle}", cluster.registry))
        .header(
            "authorization",
            format!("Bearer {}", cluster.registry_token),
        )
        .send(json!({"words": [hash], "opens": {"repository": repository}}).to_string())
        .context("put a grant")?;
    ensure!(
        answer.status().is_success(),
        "the registry takes no grant: {answer:?}"
    );
    Ok(word)
}

/// The operator with no pod, until this is dropped.
struct OperatorDown<'a> {
    cluster: &'a Cluster,
    replicas: String,
}

impl<'a> OperatorDown<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let system = ["-n", cluster.system.as_str()];
        let replicas = ["get", OPERATOR, "-o", "jsonpath={.spec.replicas}"];
        let down = Self {
            replicas: cluster.kubectl(&[&system[..], &replicas].concat())?,
            cluster,
        };
        down.scale("0")?;
        wait_until(PATIENCE, || {
            Ok(cluster.pods("operator")?.is_empty().then_some(()))
        })?;
        Ok(down)
    }

    fn scale(&self, replicas: &str) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        let scale = ["-n", &self.cluster.system, "scale", OPERATOR, &replicas];
        self.cluster.kubectl(&scale).map(drop)
    }
}

impl Drop for OperatorDown<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.scale(&self.replicas) {
            eprintln!("the operator stays down: {error:#}");
        }
        let _ = self.cluster.wait_whole(PATIENCE);
    }
}

#[test]
fn s19_a_node_reads_what_it_mounts_and_nothing_else() -> Result<()> {
    // Nothing on the registry is public: both Models are of private repositories.
    let (ours, theirs) = (Tiny::serve("grants")?, Tiny::serve("grants")?);
    let cluster = &ours.cluster;
    let own = format!("{}/tiny", ours.namespace.name);
    let other = format!("{}/tiny", theirs.namespace.name);

    let node = secret(
        cluster,
        &cluster.system,
        "hyprstream-registry-keys",
        "node-token",
    )?;
    for repository in [&own, &other] {
        assert_eq!(asked(cluster, &node, repository)?, 403, "the nodes' token");
    }
    let of_commit = word(cluster, &ours.model, false)?;
    let of_adapters = word(cluster, &ours.model, true)?;
    assert_eq!(asked(cluster, &of_commit, &own)?, 200);
    assert_eq!(asked(cluster, &of_commit, &other)?, 403);
    // No adapter is listed.
    for repository in [&own, &other] {
        assert_eq!(asked(cluster, &of_adapters, repository)?, 403);
    }

    // Words and grants outlive the operator: a further pod is staged without it, on whatever node.
    {
        let _down = OperatorDown::new(cluster)?;
        let before = ours.model.pods()?;
        let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
        let before: Vec<String> = before.iter().filter_map(name).collect();
        for pod in &before {
            let namespace = ours.namespace.name.as_str();
            cluster.kubectl(&["-n", namespace, "delete", "pod", pod, "--wait=false"])?;
        }
        wait_until(PATIENCE, || {
            let pods = ours.model.pods()?;
            let is_ready = |pod: &Value| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            };
            let is_new = |pod: &Value| name(pod).is_some_and(|name| !before.contains(&name));
            Ok(pods
                .iter()
                .any(|pod| is_new(pod) && is_ready(pod))
                .then_some(()))
        })
        .context("a new pod comes up without the operator")?;
    }

    ours.model.delete()?;
    wait_until(PATIENCE, || {
        Ok(volumes(cluster, &ours.model)?.is_empty().then_some(()))
    })?;
    wait_until(REVOKED_WITHIN, || {
        let refused = asked(cluster, &of_commit, &own)? == 401;
        Ok((refused && asked(cluster, &of_adapters, &own)? == 401).then_some(()))
    })?;
    let left = cluster.get(&["-n", &ours.namespace.name, "secrets"])?;
    let left = left["items"].as_array().cloned().unwrap_or_default();
    ensure!(
        !left
            .iter()
            .any(|s| s["type"] == "hyprstream.io/volume-word"),
        "a word outlives its volume"
    );
    // What is of somebody else goes on.
    let others = word(cluster, &theirs.model, false)?;
    assert_eq!(asked(cluster, &others, &other)?, 200);
    Ok(())
}
