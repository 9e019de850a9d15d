//! Prints the figures of `docs/performance.md` that a running cluster gives: `cargo xtask measure`.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, Cluster, Namespace, Repository, TinyAdapter, TinyModel, wait_until};

const PATIENCE: Duration = Duration::from_mins(3);
const ENGINE: &str = "  engine: {maxModelLen: 1024, maxBatch: 16, threads: 1}\n  \
                      resources: {requests: {cpu: 10m, memory: 64Mi}}\n";

fn main() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let models: usize = std::env::args().nth(1).map_or(Ok(0), |n| n.parse())?;
    idle(&cluster)?;
    let namespace = cluster.namespace("figures")?;
    let repository = Repository::new(&cluster, &namespace.name, "tiny")?;
    TinyModel::new(1).write(&repository)?;
    let commit = repository.publish("first")?;
    apply_to_ready(&cluster, &namespace, &repository.url, &commit, "tiny model")?;
    push_to_serving(&cluster, &namespace, &repository)?;
    adapter_to_loaded(&cluster, &namespace, &repository)?;
    disk(&cluster)?;
    smollm2(&cluster)?;
    if models > 0 {
        many(&cluster, models)?;
    }
    Ok(())
}

fn print(what: &str, unit: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else {
        return;
    };
    let median = values[values.len() / 2];
    println!(
        "| {what} | {median:.2} {unit} | {low:.2} to {high:.2} | {} |",
        values.len()
    );
}

fn spec(url: &str, more: &str) -> String {
    format!("  source: {{url: {url:?}, ref: {{branch: main}}}}\n{ENGINE}{more}")
}

/// From `kubectl apply` of an Adapter whose objects lie on the registry to its condition `Loaded` on
/// three workers. What two processes of kubectl take is part of it.
fn adapter_to_loaded(
    cluster: &Cluster,
    namespace: &Namespace,
    repository: &Repository,
) -> Result<()> {
    let commit = repository.git(&["rev-parse", "HEAD"])?;
    let model = namespace.apply_model("tuned", &spec(&repository.url, "  replicas: 3\n"))?;
    model.wait_ready_on(&commit, PATIENCE)?;
    let adapters = Repository::new(cluster, &namespace.name, "adapters")?;
    let names: Vec<_> = (0..6).map(|turn| format!("turn-{turn}")).collect();
    for (name, seed) in names.iter().zip(1..) {
        TinyAdapter::new(seed).write(&adapters, name)?;
    }
    adapters.publish("adapters")?;
    let mut times = Vec::new();
    for name in &names {
        let start = Instant::now();
        namespace.apply_adapter(
            name,
            &format!(
                "  modelRef: {{name: tuned}}\n  \
                 source: {{url: {:?}, ref: {{branch: main}}, path: {name:?}}}\n",
                adapters.url
            ),
        )?;
        let loaded = ["wait", "--for=condition=Loaded", "--timeout=60s"];
        let object = ["-n", &namespace.name, &format!("adapter/{name}")];
        cluster.kubectl(&[&loaded[..], &object[..]].concat())?;
        times.push(start.elapsed().as_secs_f64());
    }
    // The first one takes the repository into the node's cache.
    print(
        "apply of an Adapter to Loaded, 3 workers, first",
        "s",
        times.drain(..1).collect(),
    );
    print(
        "apply of an Adapter to Loaded, 3 workers, later ones",
        "s",
        times,
    );
    cluster.kubectl(&["-n", &namespace.name, "delete", "model", "tuned"])?;
    Ok(())
}

/// Resident memory of every process of ours and of its peers, summed by program, in MB.
fn idle(cluster: &Cluster) -> Result<()> {
    for (program, memory) in resident(cluster)? {
        print(&format!("resident memory of {program}, idle"), "MB", memory);
    }
    Ok(())
}

fn resident(_cluster: &Cluster) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let first = String::from_utf8_lossy(line.split(|b| *b == 0).next().unwrap_or_default());
        let name = first.rsplit('/').next().unwrap_or_default().to_owned();
        if !name.starts_with("hyprstream-") {
            continue;
        }
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        found
            .entry(name)
            .or_default()
            .extend(kib.map(|kib| kib / 1024.0));
    }
    Ok(found)
}

fn apply_to_ready(
    cluster: &Cluster,
    namespace: &Namespace,
    url: &str,
    commit: &str,
    what: &str,
) -> Result<()> {
    // Once to bring the objects to the node.
    let mut times = Vec::new();
    for turn in 0..6 {
        let start = Instant::now();
        let model = namespace.apply_model("once", &spec(url, ""))?;
        model.wait_ready_on(commit, PATIENCE)?;
        if turn > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
        cluster.kubectl(&["-n", &namespace.name, "delete", "model", "once"])?;
        wait_until(PATIENCE, || Ok(model.pods()?.is_empty().then_some(())))?;
    }
    print(
        &format!("apply to Ready, {what}, objects present"),
        "s",
        times,
    );
    Ok(())
}

fn push_to_serving(
    cluster: &Cluster,
    namespace: &Namespace,
    repository: &Repository,
) -> Result<()> {
    let commit = repository.git(&["rev-parse", "HEAD"])?;
    let model = namespace.apply_model("rolling", &spec(&repository.url, ""))?;
    model.wait_ready_on(&commit, PATIENCE)?;
    let question = Chat::new(&cluster.ingress, &model.id(), "hello", 1);
    let (mut pushed, mut reverted) = (Vec::new(), Vec::new());
    for seed in 0..5 {
        TinyModel::new(100 + seed).write(repository)?;
        for (times, revert) in [(&mut pushed, false), (&mut reverted, true)] {
            let commit = if revert {
                repository.git(&["revert", "--no-edit", "HEAD"])?;
                repository.git(&["rev-parse", "HEAD"])?
            } else {
                repository.commit("next")?
            };
            repository.push()?;
            let start = Instant::now();
            wait_until(PATIENCE, || {
                Ok((question.ask()?.commit == commit).then_some(()))
            })?;
            times.push(start.elapsed().as_secs_f64());
            model.wait_ready_on(&commit, PATIENCE)?;
        }
    }
    print("push to the first answer of the new commit", "s", pushed);
    print(
        "push of a revert to the first answer of the old content",
        "s",
        reverted,
    );
    Ok(())
}

fn stored(cluster: &Cluster) -> Result<f64> {
    let mut sum = 0.0;
    for pod in cluster.pods("csi")? {
        let text = cluster.kubectl(&[
            "-n",
            &cluster.system,
            "exec",
            &pod,
            "--",
            "du",
            "-sB1",
            "/var/lib/hyprstream",
        ])?;
        sum += text
            .split_whitespace()
            .next()
            .unwrap_or("0")
            .parse::<f64>()?;
    }
    Ok(sum / 1e6)
}

/// Weights of 64 MB in four files, of which a commit changes one.
fn disk(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace("disk")?;
    let repository = Repository::new(cluster, &namespace.name, "large")?;
    TinyModel::new(1).write(&repository)?;
    repository.write(
        ".gitattributes",
        b"*.safetensors filter=lfs -text\n*.bin filter=lfs -text\n",
    )?;
    let shard = |index: u64, version: u64| -> Vec<u8> {
        let mut state = index * 1_000 + version + 1;
        (0..16usize << 20)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect()
    };
    for index in 0..4 {
        repository.write(&format!("shard-{index}.bin"), &shard(index, 0))?;
    }
    let before = stored(cluster)?;
    let commit = repository.publish("first")?;
    let model = namespace.apply_model("large", &spec(&repository.url, "  replicas: 1\n"))?;
    model.wait_ready_on(&commit, PATIENCE)?;
    for replicas in [1, 5, 20] {
        model.patch(&format!(r#"{{"spec":{{"replicas":{replicas}}}}}"#))?;
        wait_until(PATIENCE, || {
            Ok((model.get()?["status"]["readyReplicas"] == replicas).then_some(()))
        })?;
        let what = format!("on the nodes' disks for a 67 MB commit and {replicas} pods");
        print(&what, "MB", vec![stored(cluster)? - before]);
    }
    model.patch(r#"{"spec":{"replicas":1}}"#)?;
    for version in 1..5 {
        repository.write("shard-0.bin", &shard(0, version))?;
        let commit = repository.publish("next")?;
        model.wait_ready_on(&commit, PATIENCE)?;
    }
    let what = "on the nodes' disks for 5 commits of 67 MB that change 17 MB each";
    print(what, "MB", vec![stored(cluster)? - before]);
    Ok(())
}

fn smollm2(cluster: &Cluster) -> Result<()> {
    let question = Chat::new(
        &cluster.ingress,
        "default/smollm2",
        "Say something long.",
        64,
    );
    let mut speeds = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        question.ask().context("ask smollm2")?;
        speeds.push(64.0 / start.elapsed().as_secs_f64());
    }
    print(
        "smollm2 through the ingress, one stream, 64 tokens",
        "tokens/s",
        speeds,
    );
    Ok(())
}

/// Memory of the operator with many Models, none of them scaled up.
fn many(cluster: &Cluster, count: usize) -> Result<()> {
    let namespace = cluster.namespace("many")?;
    let repository = Repository::new(cluster, &namespace.name, "tiny")?;
    TinyModel::new(1).write(&repository)?;
    repository.publish("first")?;
    let start = Instant::now();
    for chunk in (0..count).collect::<Vec<_>>().chunks(100) {
        let manifests: Vec<String> = chunk
            .iter()
            .map(|i| {
                namespace.manifest(&format!("m{i}"), &spec(&repository.url, "  replicas: 0\n"))
            })
            .collect();
        cluster.apply(&manifests.join("---\n"))?;
    }
    wait_until(Duration::from_mins(20), || {
        let list = cluster.kubectl(&[
            "-n",
            &namespace.name,
            "get",
            "models",
            "-o",
            "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}",
        ])?;
        let ready = list.lines().filter(|line| *line == "True").count();
        Ok((ready == count).then_some(()))
    })?;
    print(
        &format!("{count} Models applied until all are Ready"),
        "s",
        vec![start.elapsed().as_secs_f64()],
    );
    for (program, memory) in resident(cluster)? {
        if program == "hyprstream-operator" || program == "hyprstream-gateway" {
            print(
                &format!("resident memory of {program}, {count} Models"),
                "MB",
                memory,
            );
        }
    }
    Ok(())
}
