//! Disks that are full.

use anyhow::Result;
use hyprstream_e2e::{Chat, TinyModel, wait_until};

use crate::{PATIENCE, Tiny};

/// Frees the disk also when the test fails.
struct Full<'a>(&'a Tiny, &'static str);

impl<'a> Full<'a> {
    fn fill(tiny: &'a Tiny, disk: &'static str) -> Result<Self> {
        tiny.cluster.xtask(&["chaos", "disk", disk, "fill"])?;
        Ok(Self(tiny, disk))
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.xtask(&["chaos", "disk", self.1, "free"]);
    }
}

/// More than the node plugin can free by forgetting what earlier tests left on the node.
const BALLAST_BYTES: u32 = 192 << 20;

/// Weights with enough ballast that they do not fit into what a filled disk leaves.
fn grow(tiny: &Tiny, seed: u64) -> Result<String> {
    TinyModel::new(seed).write(&tiny.repository)?;
    let attributes = b"*.safetensors filter=lfs -text\n*.bin filter=lfs -text\n";
    tiny.repository.write(".gitattributes", attributes)?;
    let ballast: Vec<u8> = (0..BALLAST_BYTES)
        .map(|i| (i.wrapping_mul(seed as u32) >> 7) as u8)
        .collect();
    tiny.repository.write("ballast.bin", &ballast)?;
    tiny.repository.commit("large")
}

#[test]
fn s09_a_full_node_is_told_and_recovers() -> Result<()> {
    let tiny = Tiny::serve("node-disk")?;
    let full = Full::fill(&tiny, "node")?;
    let commit = grow(&tiny, 11)?;
    tiny.repository.push()?;
    let message =
        tiny.model
            .wait_condition("VolumeReady", "False", Some("MountFailed"), PATIENCE)?;
    assert!(message.contains("space"), "{message}");
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 4);
    assert_eq!(
        question.ask()?.commit,
        tiny.commit,
        "the old commit serves on"
    );
    drop(full);
    tiny.model.wait_ready_on(&commit, 2 * PATIENCE)?;
    assert_eq!(question.ask()?.commit, commit);
    Ok(())
}

#[test]
fn s09_a_full_registry_refuses_the_push_keeps_serving_and_recovers() -> Result<()> {
    let tiny = Tiny::serve("registry-disk")?;
    let full = Full::fill(&tiny, "registry")?;
    let commit = grow(&tiny, 12)?;
    let refused = tiny.repository.push().unwrap_err().to_string();
    assert!(
        refused.contains("space") || refused.contains("507"),
        "{refused}"
    );
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 4);
    assert_eq!(question.ask()?.commit, tiny.commit);
    drop(full);
    wait_until(PATIENCE, || tiny.repository.push().map(Some))?;
    tiny.model.wait_ready_on(&commit, PATIENCE)
}
