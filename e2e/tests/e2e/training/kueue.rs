//! TrainingJobs in a queue of a real Kueue, which `cargo xtask test --e2e --soak` builds and whose own
//! chart is installed here.

use std::{env, fs, process::Command};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, Object, run, wait_until};
use serde_json::json;

use super::{
    TRAINS, Training, ensure_same,
    faults::{SLOW, apply_labelled, calm, step},
    wait_checkpoint, wait_over,
};
use crate::PATIENCE;

const SYSTEM: &str = "kueue-system";
/// Room for one job of [`SLOW`].
const QUOTA: &str = "300m";

/// Kueue, for the Jobs of one namespace. Taken away when it is dropped.
struct Kueue<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    /// All that its chart makes.
    manifest: tempfile::NamedTempFile,
}

impl<'a> Kueue<'a> {
    /// Installs it, with a queue `team` that has room for one job.
    fn install(cluster: &'a Cluster, namespace: &'a str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let values = folder.path().join("values.yaml");
        fs::write(&values, values_of(namespace)?)?;
        let mut helm = Command::new(variable("HYPRSTREAM_E2E_HELM")?);
        let helm = helm.args([
            "template",
            "kueue",
            &variable("HYPRSTREAM_E2E_KUEUE_CHART")?,
        ]);
        let rendered = run(helm.args(["--namespace", SYSTEM, "--values"]).arg(&values))?;
        // The API server would ask Kueue's own whenever it lists what kinds there are, also to delete
        // a namespace; and this one has no certificates to do so by.
        let documents = rendered.split("\n---");
        let kept = documents.filter(|one| !one.contains("\nkind: APIService\n"));
        let manifest = tempfile::NamedTempFile::new()?;
        fs::write(&manifest, kept.collect::<Vec<_>>().join("\n---"))?;
        let kueue = Self {
            cluster,
            namespace,
            manifest,
        };
        cluster.kubectl(&["create", "namespace", SYSTEM])?;
        kueue.with_manifest(&["apply", "--server-side"])?;
        let (of, limit) = (["-n", SYSTEM], format!("--timeout={}s", PATIENCE.as_secs()));
        let deployment = "deployment/kueue-controller-manager";
        cluster.kubectl(&[&of[..], &["rollout", "status", deployment, &limit]].concat())?;
        // Its webhooks answer a moment later than it is ready.
        wait_until(PATIENCE, || cluster.apply(&queue(namespace)).map(Some))?;
        Ok(kueue)
    }

    fn with_manifest(&self, verb: &[&str]) -> Result<String> {
        let file = self.manifest.path();
        let file = file.to_str().context("a path in UTF-8")?;
        self.cluster.kubectl(&[verb, &["-f", file]].concat())
    }

    /// Stops the queue by this policy of Kueue's, or lets it go on by `None`.
    fn hold(&self, policy: &str) -> Result<()> {
        let patch = json!({"spec": {"stopPolicy": policy}}).to_string();
        let of = [
            "patch",
            "clusterqueue",
            "team",
            "--type=merge",
            "-p",
            &patch,
        ];
        self.cluster.kubectl(&of).map(drop)
    }
}

impl Drop for Kueue<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let of = ["-n", self.namespace];
            for what in [
                &["get", "workloads,localqueues,clusterqueues", "-o", "yaml"][..],
                &["-n", SYSTEM, "logs", "deployment/kueue-controller-manager"],
            ] {
                if let Ok(output) = self.cluster.try_kubectl(&[&of[..], what].concat()) {
                    eprintln!("{}\n{}", output.stdout, output.stderr);
                }
            }
        }
        // In this order: Kueue itself takes its finalizers off.
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        for what in [
            &["-n", self.namespace, "trainingjobs", "--all"][..],
            &["-n", self.namespace, "workloads.kueue.x-k8s.io", "--all"],
            &["-n", self.namespace, "localqueues.kueue.x-k8s.io", "--all"],
            &["clusterqueues.kueue.x-k8s.io", "team"],
            &["resourceflavors.kueue.x-k8s.io", "any"],
            &["workloadpriorityclasses.kueue.x-k8s.io", "urgent"],
        ] {
            let all = [&["delete", "--ignore-not-found", &limit][..], what].concat();
            let _ = self.cluster.try_kubectl(&all);
        }
        let _ = self.with_manifest(&["delete", "--ignore-not-found", &limit]);
        let namespace = ["delete", "namespace", SYSTEM, "--wait=false"];
        let _ = self.cluster.try_kubectl(&namespace);
    }
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| {
        format!("{name} is not set; this test is run by `cargo xtask test --e2e --soak`")
    })
}

/// For the chart: our image, and nothing but Jobs of one namespace, so that what other tests make
/// waits for no webhook of Kueue's.
fn values_of(namespace: &str) -> Result<String> {
    let image = variable("HYPRSTREAM_E2E_KUEUE_IMAGE")?;
    let (repository, tag) = image.rsplit_once(':').context("an image with a tag")?;
    let config = json!({
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": ":8081"},
        "metrics": {"bindAddress": ":8443"},
        "webhook": {"port": 9443},
        "leaderElection": {"leaderElect": false},
        "managedJobsNamespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": namespace},
        },
        "integrations": {"frameworks": ["batch/job"]},
    });
    // JSON is YAML.
    let values = json!({
        "controllerManager": {
            "featureGates": [{"name": "VisibilityOnDemand", "enabled": false}],
            "manager": {
                "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
            },
        },
        "managerConfig": {"controllerManagerConfigYaml": config.to_string()},
    });
    Ok(values.to_string())
}

fn queue(namespace: &str) -> String {
    format!(
        "apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {{name: any}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {{name: team}}
spec:
  namespaceSelector: {{}}
  preemption: {{withinClusterQueue: LowerPriority}}
  resourceGroups:
  - coveredResources: [cpu]
    flavors:
    - name: any
      resources: [{{name: cpu, nominalQuota: {QUOTA}}}]
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {{name: team, namespace: {namespace}}}
spec: {{clusterQueue: team}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: WorkloadPriorityClass
metadata: {{name: urgent}}
value: 1000
"
    )
}

/// A job in the queue; `labels` and `more` are added to its own.
fn queued(here: &Training, name: &str, steps: u32, labels: &str, more: &str) -> Result<Object> {
    let labels = format!("{{kueue.x-k8s.io/queue-name: team{labels}}}");
    apply_labelled(here, name, &labels, steps, SLOW, more)
}

/// Waits until a job waits in the queue, which it must say, and holds no pod.
fn wait_queued(here: &Training, job: &Object) -> Result<()> {
    let message = job.wait_condition("Suspended", "True", Some("Queued"), PATIENCE)?;
    ensure!(message.contains("queue team"), "{message}");
    ensure!(pods(here, job)? == 0, "{} has a pod", job.id());
    Ok(())
}

/// How many pods of a job there are that have not ended.
fn pods(here: &Training, job: &Object) -> Result<usize> {
    let selector = format!("hyprstream.io/training-job={}", job.name);
    let of = ["-n", &job.namespace, "pods", "-l", &selector];
    let list = here.tiny.cluster.get(&of)?;
    let all = list["items"].as_array().into_iter().flatten();
    let has_ended = |pod: &serde_json::Value| {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        ["Succeeded", "Failed"].contains(&phase)
    };
    Ok(all.filter(|pod| !has_ended(pod)).count())
}

#[test]
#[ignore = "minutes, and Kueue is built for it: cargo xtask test --e2e --soak"]
fn s18_soak_jobs_take_turns_in_a_queue_of_kueue_and_have_the_same_bits() -> Result<()> {
    const STEPS: u32 = 600;
    let here = Training::prepare("training-kueue", 64)?;
    let calm = calm(&here, STEPS)?;
    let kueue = Kueue::install(&here.tiny.cluster, &here.namespace().name)?;

    // One that is stopped from its start has no place in the queue.
    let stopped = queued(&here, "stopped", 20, "", "  suspend: true\n")?;
    stopped.wait_condition("Suspended", "True", Some("Suspended"), PATIENCE)?;

    // There is room for one.
    let first = queued(&here, "first", STEPS, "", "")?;
    wait_checkpoint(&first, 20)?;
    let second = queued(&here, "second", STEPS, "", "")?;
    wait_queued(&here, &second)?;
    first.wait_condition("Running", "True", None, PATIENCE)?;

    // A more urgent one takes its place.
    let class = ", kueue.x-k8s.io/priority-class: urgent";
    let urgent = queued(&here, "urgent", 20, class, "")?;
    wait_queued(&here, &first)?;
    let evicted = step(&first)?;
    ensure!(
        (20..i64::from(STEPS)).contains(&evicted),
        "it was evicted on its way, at step {evicted}"
    );
    wait_over(&urgent, "Complete", TRAINS)?;

    // The queue is drained, and filled again: who was first is first.
    first.wait_condition("Running", "True", None, PATIENCE)?;
    wait_queued(&here, &second)?;
    wait_checkpoint(&first, evicted + 20)?;
    kueue.hold("HoldAndDrain")?;
    wait_queued(&here, &first)?;
    kueue.hold("None")?;
    first.wait_condition("Running", "True", None, PATIENCE)?;

    // Who is stopped by its user gives up its place, and asks for one when it may go on.
    first.patch(r#"{"spec": {"suspend": true}}"#)?;
    first.wait_condition("Suspended", "True", Some("Suspended"), PATIENCE)?;
    wait_checkpoint(&second, 20)?;
    ensure!(pods(&here, &first)? == 0, "{} is stopped", first.id());
    first.patch(r#"{"spec": {"suspend": false}}"#)?;
    wait_queued(&here, &first)?;
    ensure_same(&wait_over(&second, "Complete", TRAINS)?, &calm)?;
    ensure_same(&wait_over(&first, "Complete", TRAINS)?, &calm)?;

    stopped.wait_condition("Suspended", "True", Some("Suspended"), PATIENCE)?;
    ensure!(pods(&here, &stopped)? == 0, "{} is stopped", stopped.id());
    stopped.patch(r#"{"spec": {"suspend": false}}"#)?;
    wait_over(&stopped, "Complete", TRAINS).map(drop)
}
