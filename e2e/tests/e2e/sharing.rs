//! One checkout and one download, however many pods.

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, Cluster, wait_until};

use crate::{PATIENCE, Tiny, fresh_seed};

/// Bytes of LFS objects that the registry sent out so far.
fn served_bytes(cluster: &Cluster) -> Result<f64> {
    let pods = cluster.pods("registry")?;
    let pod = pods.first().context("a registry pod")?;
    cluster.metric(pod, 9090, "hyprstream_registry_lfs_served_bytes_total", &[])
}

/// What `du` says of a folder of the state directory of every node plugin, in bytes.
fn disk_use(cluster: &Cluster, folder: &str) -> Result<u64> {
    let mut sum = 0;
    for pod in cluster.pods("csi")? {
        let path = format!("/var/lib/hyprstream/{folder}");
        let text = cluster.kubectl(&[
            "-n",
            &cluster.system,
            "exec",
            &pod,
            "--",
            "du",
            "-sb",
            &path,
        ])?;
        sum += text
            .split_whitespace()
            .next()
            .unwrap_or("0")
            .parse::<u64>()?;
    }
    Ok(sum)
}

#[test]
fn s06_twenty_pods_of_a_commit_share_one_checkout_and_one_download() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let nodes = cluster.get(&["nodes"])?["items"]
        .as_array()
        .map_or(0, Vec::len) as u64;
    let (served, stored) = (served_bytes(&cluster)?, disk_use(&cluster, "")?);
    let spec = "  replicas: 20\n  resources: {requests: {cpu: 10m, memory: 64Mi}}\n";
    let tiny = Tiny::serve_with("twenty", spec)?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["readyReplicas"] == 20).then_some(()))
    })?;
    assert_eq!(tiny.model.pods()?.len(), 20);
    let weights = std::fs::metadata(tiny.repository.path().join("model.safetensors"))?.len();
    let served = served_bytes(&cluster)? - served;
    let stored = disk_use(&cluster, "")? - stored;
    println!("20 pods, {nodes} nodes: weights {weights} bytes, served {served}, stored {stored}");
    assert!(served >= weights as f64, "the counter counts");
    assert!(
        served <= (weights * nodes) as f64,
        "one download a node: {served}"
    );
    assert!(stored >= weights, "du sees the checkout");
    assert!(
        stored < (weights + 512 * 1024) * nodes,
        "one checkout a node beside small files: {stored}"
    );
    let answer = Chat::new(&cluster.ingress, &tiny.model.id(), "hello", 4).ask()?;
    assert_eq!(answer.commit, tiny.commit);
    Ok(())
}

#[test]
fn s06_the_next_commit_fetches_and_stores_only_what_changed() -> Result<()> {
    let tiny = Tiny::serve("delta")?;
    let ballast = vec![42u8; 8 << 20];
    tiny.repository.write(
        ".gitattributes",
        b"*.safetensors filter=lfs -text\n*.bin filter=lfs -text\n",
    )?;
    tiny.repository.write("ballast.bin", &ballast)?;
    let with_ballast = tiny.repository.publish("ballast")?;
    tiny.model.wait_ready_on(&with_ballast, PATIENCE)?;
    let (served, stored) = (served_bytes(&tiny.cluster)?, disk_use(&tiny.cluster, "")?);
    let next = tiny.push_seed(fresh_seed())?;
    tiny.model.wait_ready_on(&next, PATIENCE)?;
    let served = served_bytes(&tiny.cluster)? - served;
    let stored = disk_use(&tiny.cluster, "")?.saturating_sub(stored);
    println!(
        "next commit of {} ballast bytes: served {served}, stored {stored}",
        ballast.len()
    );
    assert!(
        served > 0.0 && served < 2e6,
        "only the weights travel: {served}"
    );
    assert!(stored < 3_000_000, "only the weights are stored: {stored}");
    Ok(())
}

#[test]
fn s06_the_volume_is_read_only_and_tells_its_commit_and_digests() -> Result<()> {
    let tiny = Tiny::serve("manifest")?;
    let pod = tiny.model.pods()?[0]["metadata"]["name"]
        .as_str()
        .context("a name")?
        .to_owned();
    let exec = |arguments: &[&str]| {
        let all = [&["-n", &tiny.namespace.name, "exec", &pod, "--"], arguments].concat();
        tiny.cluster.try_kubectl(&all)
    };
    let manifest = exec(&["cat", "/model/.hyprstream/manifest.json"])?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest.stdout)?;
    assert_eq!(manifest["commit"], tiny.commit.as_str());
    let sums = exec(&["sh", "-c", "cd /model && sha256sum *.json *.safetensors"])?.stdout;
    let mut checked = 0;
    for line in sums.lines() {
        let (sum, path) = line.split_once("  ").context("a line of sha256sum")?;
        let file = manifest["files"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|file| file["path"] == path)
            .with_context(|| format!("{path} in the manifest"))?;
        assert_eq!(file["sha256"], sum, "{path}");
        checked += 1;
    }
    assert!(checked >= 4, "{sums}");
    let write = exec(&["sh", "-c", "echo x > /model/config.json"])?;
    assert!(
        !write.success && write.stderr.contains("Read-only"),
        "{}",
        write.stderr
    );
    Ok(())
}
