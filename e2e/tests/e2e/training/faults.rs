//! Whatever happens to what a TrainingJob stands on, its adapter has the same bits.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, Object, wait_until};
use serde_json::{Value, json};

use super::{TRAINS, Training, ensure_same, wait_checkpoint, wait_over};
use crate::PATIENCE;

/// As fast as the machine is.
const FAST: &str = "storage: 64Mi";
/// Slowly enough for something to happen to it. The result is the same on any number of threads.
pub(crate) const SLOW: &str = "limits: {cpu: 250m}, storage: 64Mi";
/// More than the nodes' disks are.
const HUGE: &str = "storage: 64Gi";

/// A job of so many steps that pushes a checkpoint every twenty.
fn apply(here: &Training, name: &str, steps: u32, resources: &str) -> Result<Object> {
    apply_with(here, name, steps, resources, "")
}

/// The same; `more` is added to its spec, indented by two.
pub(crate) fn apply_with(
    here: &Training,
    name: &str,
    steps: u32,
    resources: &str,
    more: &str,
) -> Result<Object> {
    apply_labelled(here, name, "{}", steps, resources, more)
}

/// The same with labels (YAML in one line).
pub(super) fn apply_labelled(
    here: &Training,
    name: &str,
    labels: &str,
    steps: u32,
    resources: &str,
    more: &str,
) -> Result<Object> {
    here.apply_labelled(
        name,
        labels,
        &format!(
            "steps: {steps}, batchSize: 64, rank: 8, learningRate: \"1e-3\", dropout: \"0.1\""
        ),
        &format!(
            "  checkpoint: {{everySteps: 20}}\n  output: {{onSuccess: PushBranch}}\n  \
             resources: {{{resources}}}\n  backoffLimit: 10\n{more}"
        ),
    )
}

/// What the status says of a job of so many steps to which nothing happens.
pub(crate) fn calm(here: &Training, steps: u32) -> Result<Value> {
    wait_over(&apply(here, "calm", steps, FAST)?, "Complete", TRAINS)
}

/// UID of the pod of a job.
fn trainer_pod(here: &Training, name: &str) -> Result<String> {
    let selector = format!("hyprstream.io/training-job={name}");
    let list = here
        .tiny
        .cluster
        .get(&["-n", &here.namespace().name, "pods", "-l", &selector])?;
    let pods = list["items"].as_array().into_iter().flatten();
    let mut running = pods.filter(|pod| pod["status"]["phase"] == "Running");
    let uid = running.find_map(|pod| pod["metadata"]["uid"].as_str());
    uid.map(str::to_owned).context("a pod that runs")
}

fn kill_trainer(here: &Training, name: &str) -> Result<()> {
    let cluster = &here.tiny.cluster;
    wait_until(PATIENCE, || {
        let pod = trainer_pod(here, name)?;
        cluster.xtask(&["chaos", "kill", "hyprstream-worker", "--pod-uid", &pod])?;
        Ok(Some(()))
    })
}

/// Deletes the pod of a job, as a drained node does.
fn evict(here: &Training, name: &str) -> Result<()> {
    let namespace = &here.namespace().name;
    let cluster = &here.tiny.cluster;
    let selector = format!("hyprstream.io/training-job={name}");
    let all = ["-n", namespace, "pods", "-l", &selector];
    let pods = cluster.get(&all)?;
    let pods = pods["items"].as_array().into_iter().flatten();
    for pod in pods.filter(|pod| pod["status"]["phase"] == "Running") {
        let pod = pod["metadata"]["name"].as_str().context("a name")?;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace}});
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("eviction.json");
        std::fs::write(&file, eviction.to_string())?;
        let file = file.to_str().context("a path in UTF-8")?;
        cluster.kubectl(&["create", "--raw", &path, "-f", file])?;
    }
    Ok(())
}

/// The step that its status tells.
pub(super) fn step(job: &Object) -> Result<i64> {
    Ok(job.get()?["status"]["step"].as_i64().unwrap_or_default())
}

/// Waits until it has trained `more` steps than now.
fn wait_steps(job: &Object, more: i64) -> Result<()> {
    let from = step(job)?;
    wait_until(PATIENCE, || Ok((step(job)? >= from + more).then_some(())))
        .with_context(|| format!("{} must train on from step {from}", job.id()))
}

/// Waits until the registry has a later checkpoint than now.
fn wait_push(job: &Object) -> Result<()> {
    let known = job.get()?["status"]["checkpoint"]["step"].as_i64();
    wait_checkpoint(job, known.unwrap_or_default() + 1)
}

/// Gives the space back also when the test fails.
struct Filled<'a>(&'a Cluster, &'static str);

impl<'a> Filled<'a> {
    fn fill(cluster: &'a Cluster, disk: &'static str) -> Result<Self> {
        let filled = Self(cluster, disk);
        cluster.xtask(&["chaos", "disk", disk, "fill"])?;
        Ok(filled)
    }
}

impl Drop for Filled<'_> {
    fn drop(&mut self) {
        let _ = self.0.xtask(&["chaos", "disk", self.1, "free"]);
    }
}

/// Has no registry run until it is dropped.
struct Away<'a>(&'a Cluster);

impl<'a> Away<'a> {
    fn begin(cluster: &'a Cluster) -> Result<Self> {
        let away = Self(cluster);
        away.scale("0")?;
        wait_until(PATIENCE, || {
            Ok(cluster.pods("registry")?.is_empty().then_some(()))
        })?;
        Ok(away)
    }

    fn scale(&self, replicas: &str) -> Result<()> {
        let component = "app.kubernetes.io/component=registry";
        let replicas = format!("--replicas={replicas}");
        let scale = ["scale", "deployment", "-l", component, &replicas];
        self.0
            .kubectl(&[&["-n", &self.0.system][..], &scale].concat())
            .map(drop)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let _ = self.scale("1");
    }
}

#[test]
fn s18_whatever_is_killed_away_or_full_the_adapter_has_the_same_bits() -> Result<()> {
    const STEPS: u32 = 700;
    let here = Training::prepare("training-kills", 64)?;
    let cluster = &here.tiny.cluster;
    let calm = calm(&here, STEPS)?;

    let job = apply(&here, "killed", STEPS, SLOW)?;
    wait_checkpoint(&job, 20)?;
    kill_trainer(&here, "killed")?;
    for (program, step) in [
        ("hyprstream-operator", 60),
        ("hyprstream-registry", 100),
        ("hyprstream-csi", 140),
        ("kubelet", 180),
    ] {
        wait_checkpoint(&job, step)?;
        cluster.kill(program, PATIENCE)?;
    }
    cluster.wait_registry(PATIENCE)?;
    // Training goes on without it, and pushes catch up.
    let away = Away::begin(cluster)?;
    wait_steps(&job, 30)?;
    drop(away);
    cluster.wait_registry(PATIENCE)?;
    wait_push(&job)?;
    let filled = Filled::fill(cluster, "registry")?;
    wait_steps(&job, 25)?;
    drop(filled);
    wait_push(&job)?;
    ensure!(
        step(&job)? < i64::from(STEPS),
        "it was over before the last fault"
    );
    let selector = "hyprstream.io/training-job=killed";
    let name = &here.namespace().name;
    cluster.kubectl(&["-n", name, "delete", "pod", "-l", selector, "--wait=false"])?;
    let status = wait_over(&job, "Complete", TRAINS)?;
    ensure_same(&status, &calm)?;
    cluster.wait_whole(PATIENCE)?;
    cluster.wait_settled(PATIENCE)
}

#[test]
#[ignore = "a quarter of an hour: cargo xtask test --e2e --soak"]
fn s18_soak_twenty_faults_in_one_job() -> Result<()> {
    const STEPS: u32 = 3000;
    let here = Training::prepare("training-soak", 64)?;
    let cluster = &here.tiny.cluster;
    let calm = calm(&here, STEPS)?;
    let job = apply(&here, "hurt", STEPS, SLOW)?;
    wait_checkpoint(&job, 20)?;
    let mut faults = [
        "trainer", "trainer", "trainer", "operator", "operator", "operator", "registry",
        "registry", "registry", "csi", "csi", "csi", "kubelet", "kubelet", "kubelet", "evict",
        "evict", "suspend", "suspend", "away",
    ];
    let mut random = fastrand::Rng::new();
    random.shuffle(&mut faults);
    for fault in faults {
        // At no particular moment of a step, a checkpoint or a push.
        thread::sleep(Duration::from_millis(random.u64(2_000..12_000)));
        let at = step(&job)?;
        ensure!(at < i64::from(STEPS), "it was over before {fault}");
        eprintln!("{fault} at step {at}");
        match fault {
            "trainer" => kill_trainer(&here, "hurt")?,
            "kubelet" => cluster.kill("kubelet", PATIENCE)?,
            "evict" => evict(&here, "hurt")?,
            "suspend" => {
                job.patch(r#"{"spec": {"suspend": true}}"#)?;
                job.wait_condition("Suspended", "True", None, PATIENCE)?;
                job.patch(r#"{"spec": {"suspend": false}}"#)?;
            }
            "away" => {
                let _away = Away::begin(cluster)?;
                thread::sleep(Duration::from_mins(2));
            }
            part => cluster.kill(&format!("hyprstream-{part}"), PATIENCE)?,
        }
    }
    let status = wait_over(&job, "Complete", TRAINS * 5)?;
    ensure_same(&status, &calm)?;
    cluster.wait_whole(PATIENCE)?;
    cluster.wait_settled(PATIENCE)
}

#[test]
#[ignore = "minutes: cargo xtask test --e2e --soak"]
fn s18_soak_a_full_node_lets_jobs_go_on_and_says_why_others_wait() -> Result<()> {
    let here = Training::prepare("training-full", 64)?;
    let cluster = &here.tiny.cluster;
    let calm = calm(&here, 300)?;
    let job = apply(&here, "full", 300, SLOW)?;
    wait_checkpoint(&job, 20)?;
    let filled = Filled::fill(cluster, "node")?;
    // Its disk is its own already, and the commit is on the node.
    wait_steps(&job, 40)?;
    kill_trainer(&here, "full")?;
    // What nobody uses any more may go for another job, and this is more than there ever was.
    let late = apply(&here, "late", 20, HUGE)?;
    let mut said = Value::Null;
    wait_until(PATIENCE, || {
        said = late.get()?["status"]["message"].take();
        Ok(said
            .to_string()
            .contains("the disk of the node is full")
            .then_some(()))
    })
    .with_context(|| format!("a job for which there is no room must say so: {said}"))?;
    late.delete()?;
    drop(filled);
    ensure_same(&wait_over(&job, "Complete", TRAINS)?, &calm)
}
