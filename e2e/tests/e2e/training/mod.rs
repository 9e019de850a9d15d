//! TrainingJobs: from data to an adapter in a commit that serves.

mod clients;
pub(crate) mod faults;
mod kueue;

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Chat, Namespace, Object, Repository, run, wait_until};
use serde_json::{Value, json};

use crate::{PATIENCE, Tiny};

/// A few hundred steps of a tiny model, on a machine that does other things too.
pub(crate) const TRAINS: Duration = Duration::from_mins(6);

/// A tiny model that serves, with a repository `data` beside it.
pub(crate) struct Training {
    pub(crate) tiny: Tiny,
    data: Repository,
}

impl Training {
    /// The dataset has `records` conversations.
    fn prepare(hint: &str, records: usize) -> Result<Self> {
        Self::beside(Tiny::serve(hint)?, records)
    }

    /// The same of a model that serves already.
    pub(crate) fn beside(tiny: Tiny, records: usize) -> Result<Self> {
        let data = Repository::new(&tiny.cluster, &tiny.namespace.name, "data")?;
        data.write("train.jsonl", conversations(records).as_bytes())?;
        data.publish("conversations")?;
        Ok(Self { tiny, data })
    }

    fn namespace(&self) -> &Namespace {
        &self.tiny.namespace
    }

    /// A job on the repository `data`; `more` is added to its spec, indented by two.
    fn apply(&self, name: &str, method: &str, more: &str) -> Result<Object> {
        self.apply_labelled(name, "{}", method, more)
    }

    /// The same with labels (YAML in one line).
    fn apply_labelled(&self, name: &str, labels: &str, method: &str, more: &str) -> Result<Object> {
        let url = &self.data.url;
        let spec = format!(
            "  modelRef: {{name: tiny}}\n  dataset: {{url: {url:?}, path: train.jsonl}}\n  \
             method: {{{method}}}\n{more}"
        );
        self.namespace()
            .apply_labelled_training_job(name, labels, &spec)
    }

    /// The subjects of the branch of a job, newest first.
    fn log(&self, branch: &str, format: &str) -> Result<String> {
        self.tiny
            .repository
            .git(&["fetch", "--quiet", "--tags", "origin", branch])?;
        self.tiny
            .repository
            .git(&["log", &format!("--format={format}"), "FETCH_HEAD"])
    }
}

/// Questions and answers in one form, as JSON lines.
fn conversations(records: usize) -> String {
    let line = |i: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("say {i}")},
            {"role": "assistant", "content": format!("number {i} it is")},
        ]})
        .to_string()
            + "\n"
    };
    (0..records).map(line).collect()
}

/// Waits until the registry has a checkpoint of that step or a later one.
pub(crate) fn wait_checkpoint(job: &Object, step: i64) -> Result<()> {
    let mut last = Value::Null;
    wait_until(PATIENCE, || {
        last = job.get()?["status"].take();
        Ok((last["checkpoint"]["step"].as_i64() >= Some(step)).then_some(()))
    })
    .with_context(|| format!("{} must reach step {step}: {last}", job.id()))
}

/// Two jobs made the same adapter, bit for bit.
pub(crate) fn ensure_same(job: &Value, other: &Value) -> Result<()> {
    for field in ["/output/digest", "/output/sha256"] {
        ensure!(text(job, field)? == text(other, field)?, "{job}\n{other}");
    }
    Ok(())
}

/// What stands in the status once the job is over, which must be as `Complete` or `Failed`.
pub(crate) fn wait_over(job: &Object, kind: &str, limit: Duration) -> Result<Value> {
    let other = if kind == "Complete" {
        "Failed"
    } else {
        "Complete"
    };
    let mut last = Value::Null;
    wait_until(limit, || {
        last = job.get()?["status"].take();
        let is = |kind: &str| {
            let conditions = last["conditions"].as_array();
            let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
            found.is_some_and(|condition| condition["status"] == "True")
        };
        Ok((is(kind) || is(other)).then_some(()))
    })
    .with_context(|| format!("{} must end: {last}", job.id()))?;
    let over = job.condition(kind)?;
    ensure!(
        over.is_some_and(|(status, ..)| status == "True"),
        "{} must be {kind}: {last}",
        job.id()
    );
    Ok(last)
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("{pointer} of {value}"))
}

#[test]
fn s18_data_in_git_becomes_an_adapter_in_a_commit_that_serves() -> Result<()> {
    let here = Training::prepare("training", 60)?;
    let job = here.apply(
        "sums",
        "steps: 24, batchSize: 4, rank: 8, alpha: \"16\", learningRate: \"5e-3\", seed: 7",
        "  resources: {storage: 64Mi}\n  eval: {records: 6, everySteps: 8}\n  checkpoint: {everySteps: 8, keep: 2}\n  gates:\n  \
         - {metric: EvalLoss, max: \"0\", baseline: Base}\n",
    )?;
    let status = wait_over(&job, "Complete", TRAINS)?;
    assert_eq!(status["inputs"]["modelCommit"], here.tiny.commit.as_str());
    assert_eq!(status["step"], 24, "{status}");
    assert_eq!(status["progressPercentage"], 100, "{status}");
    job.wait_condition("GatePassed", "True", None, PATIENCE)?;
    let commit = text(&status, "/output/commit")?;
    let path = text(&status, "/output/path")?;
    assert_eq!(path, "adapters/00_sums.safetensors", "{status}");

    // The history has the checkpoints, with where they come from.
    let log = here.log(
        "train/sums",
        "%H %s %(trailers:key=Step,valueonly,separator=%x2C)",
    )?;
    ensure!(log.starts_with(commit), "{commit} is the newest of {log}");
    ensure!(
        log.lines().count() >= 3,
        "a checkpoint at least, the newest where pushes are slow: {log}"
    );
    let trailers = here.log("train/sums", "%(trailers)")?;
    for wanted in [
        format!("Training-Job: {}/sums", here.namespace().name),
        format!("@{}", here.tiny.commit),
        "Dataset-Digest: ".to_owned(),
        "Gate: ".to_owned(),
    ] {
        ensure!(trailers.contains(&wanted), "{wanted} in {trailers}");
    }
    // What the merge would bring is the adapter's two files.
    let changed = here.tiny.repository.git(&[
        "diff",
        "--name-only",
        &here.tiny.commit,
        commit,
        "--",
        ":!*.gitattributes",
    ])?;
    assert_eq!(
        changed.lines().collect::<Vec<_>>(),
        ["adapters/00_sums.config.json", path],
    );
    // git and git-lfs are all that is needed to have it elsewhere.
    let folder = tempfile::tempdir()?;
    let clone = folder.path().join("clone");
    let target = clone.to_str().context("a path in UTF-8")?;
    here.tiny.repository.git(&[
        "clone",
        "--quiet",
        "--branch",
        "train/sums",
        &here.tiny.repository.remote,
        target,
    ])?;
    for lfs in [&["install", "--local"][..], &["pull", "--include", path]] {
        let all = [&["-C", target, "lfs"], lfs].concat();
        here.tiny.repository.git(&all)?;
    }
    let mut sum = Command::new("sha256sum");
    let sum = run(sum.arg(clone.join(path)))?;
    ensure!(sum.starts_with(text(&status, "/output/sha256")?), "{sum}");
    let config = fs::read_to_string(clone.join("adapters/00_sums.config.json"))?;
    let config: Value = serde_json::from_str(&config)?;
    assert_eq!(config["revision"], here.tiny.commit.as_str(), "{config}");

    // The Adapter that was made of it answers, and otherwise than the model does.
    let adapter = here.namespace().adapter("sums");
    adapter.wait_condition("Ready", "True", None, PATIENCE)?;
    let model = here.tiny.model.id();
    let ingress = &here.tiny.cluster.ingress;
    let base = Chat::new(ingress, &model, "say 61", 16).ask()?;
    let tuned = Chat::new(ingress, &format!("{model}+sums"), "say 61", 16).ask()?;
    ensure!(base.text != tuned.text, "both say {:?}", base.text);
    ensure!(
        tuned.adapters.contains(text(&status, "/output/digest")?),
        "{tuned:?}"
    );
    // Deleting the job leaves what it published.
    job.delete()?;
    Chat::new(ingress, &format!("{model}+sums"), "say 61", 4).ask()?;
    Ok(())
}

#[test]
fn s18_a_failed_gate_publishes_nothing_and_a_passed_one_is_merged_and_reverted() -> Result<()> {
    let here = Training::prepare("training-gates", 40)?;
    let namespace = &here.namespace().name;
    let cluster = &here.tiny.cluster;
    let method = "steps: 6, batchSize: 4, rank: 4, learningRate: \"1e-3\"";
    let refused = here.apply(
        "refused",
        method,
        "  resources: {storage: 64Mi}\n  eval: {records: 4}\n  gates: [{metric: ExactMatch, min: \"0.99\", maxTokens: 8}]\n",
    )?;
    cluster.apply(&format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: merger, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: merger, namespace: {namespace}}}
rules:
  - {{apiGroups: [hyprstream.io], resources: [repositories], resourceNames: [tiny], verbs: [get, push]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: merger, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: merger}}
subjects: [{{kind: ServiceAccount, name: merger, namespace: {namespace}}}]
"
    ))?;
    let merged = here.apply(
        "merged",
        method,
        "  resources: {storage: 64Mi}\n  serviceAccountName: merger\n  output: {onSuccess: Merge, into: main}\n",
    )?;
    let status = wait_over(&refused, "Complete", TRAINS)?;
    refused.wait_condition("GatePassed", "False", None, PATIENCE)?;
    let verdicts = status["gates"].as_array().context("verdicts")?;
    ensure!(
        verdicts
            .iter()
            .any(|v| v["metric"] == "ExactMatch" && v["passed"] == false),
        "{status}"
    );
    let adapter = cluster.try_kubectl(&["-n", namespace, "get", "adapter", "refused"])?;
    ensure!(adapter.stderr.contains("NotFound"), "{}", adapter.stdout);
    let log = here.log("train/refused", "%H")?;
    ensure!(log.starts_with(text(&status, "/output/commit")?), "{log}");

    let status = wait_over(&merged, "Complete", TRAINS)?;
    let commit = text(&status, "/output/merged")?.to_owned();
    here.tiny.model.wait_ready_on(&commit, PATIENCE)?;
    let tuned = format!("{}+merged", here.tiny.model.id());
    let question = Chat::new(&cluster.ingress, &tuned, "say 1", 4);
    wait_until(PATIENCE, || Ok(question.ask().ok()))?;
    let repository = &here.tiny.repository;
    repository.git(&["fetch", "--quiet", "origin", "main"])?;
    repository.git(&["reset", "--quiet", "--hard", "FETCH_HEAD"])?;
    // A fast-forward has one parent, and is taken back to where the branch was.
    repository.git(&[
        "revert",
        "--no-edit",
        &format!("{}..HEAD", here.tiny.commit),
    ])?;
    repository.push()?;
    let reverted = repository.git(&["rev-parse", "HEAD"])?;
    here.tiny.model.wait_ready_on(&reverted, PATIENCE)?;
    wait_until(PATIENCE, || {
        let error = question.ask().err().map(|error| error.to_string());
        Ok(error.filter(|error| error.starts_with("404")))
    })?;
    Ok(())
}

#[test]
fn s18_a_job_stops_goes_on_and_is_deleted_while_another_runs() -> Result<()> {
    let here = Training::prepare("training-stops", 64)?;
    let cluster = &here.tiny.cluster;
    let namespace = &here.namespace().name;
    let apply = |name: &str| {
        here.apply(
            name,
            "steps: 200, batchSize: 64, rank: 4",
            "  checkpoint: {everySteps: 20}\n  output: {onSuccess: PushBranch}\n  \
             resources: {limits: {cpu: 500m}, storage: 64Mi}\n",
        )
    };
    let (job, other) = (apply("stops")?, apply("other")?);
    wait_checkpoint(&job, 20)?;
    job.patch(r#"{"spec": {"suspend": true}}"#)?;
    job.wait_condition("Suspended", "True", None, PATIENCE)?;
    let selector = "hyprstream.io/training-job=stops";
    wait_until(PATIENCE, || {
        let pods = cluster.get(&["-n", namespace, "pods", "-l", selector])?;
        let all = pods["items"].as_array().into_iter().flatten();
        let left = all
            .filter(|pod| pod["status"]["phase"] == "Running")
            .count();
        Ok((left == 0).then_some(()))
    })?;
    let at = job.get()?["status"]["step"].as_i64();
    ensure!(at < Some(200), "it was stopped before its end: {at:?}");
    job.patch(r#"{"spec": {"suspend": false}}"#)?;
    other.delete()?;
    let status = wait_over(&job, "Complete", TRAINS)?;
    assert_eq!(status["step"], 200, "{status}");
    let mut left = String::new();
    wait_until(PATIENCE, || {
        let kinds = "jobs,pods,pvc,secrets,configmaps,serviceaccounts,roles,rolebindings";
        let of_other = ["-l", "hyprstream.io/training-job=other", "-o", "name"];
        left = cluster.kubectl(&[&["-n", namespace, "get", kinds][..], &of_other].concat())?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .with_context(|| format!("left of a deleted job: {left}"))
}

#[test]
fn s18_what_cannot_be_learnt_says_so() -> Result<()> {
    let here = Training::prepare("training-bad", 8)?;
    let cluster = &here.tiny.cluster;
    let namespace = &here.namespace().name;
    let good = conversations(4);
    let cases = [
        ("empty", String::new(), "InvalidDataset"),
        ("broken", "{\"messages\": [\n".repeat(5), "InvalidDataset"),
        (
            "columns",
            "{\"question\": \"a\", \"answer\": \"b\"}\n".repeat(5),
            "InvalidDataset",
        ),
        (
            "masked",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n".repeat(5),
            "InvalidDataset",
        ),
        ("explodes", good, "Diverged"),
    ];
    let mut jobs = Vec::new();
    for (name, lines, reason) in cases {
        let manifest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace}, "data": {"train.jsonl": lines},
        });
        cluster.apply(&manifest.to_string())?;
        let rate = if reason == "Diverged" { "900" } else { "1e-3" };
        let spec = format!(
            "  modelRef: {{name: tiny}}\n  dataset: {{configMap: {{name: {name}}}, path: train.jsonl}}\n  \
             method: {{steps: 60, batchSize: 2, rank: 4, warmupRatio: \"0\", maxGradNorm: \"0\", \
             schedule: Constant, learningRate: \"{rate}\"}}\n  \
             resources: {{storage: 32Mi}}\n  backoffLimit: 0\n"
        );
        jobs.push((here.namespace().apply_training_job(name, &spec)?, reason));
    }
    for (job, reason) in &jobs {
        wait_over(job, "Failed", TRAINS)?;
        let message = job.wait_condition("Failed", "True", Some(reason), PATIENCE)?;
        ensure!(message.len() > 20, "{} says {message:?}", job.id());
    }
    let missing = here.namespace().apply_training_job(
        "missing",
        "  modelRef: {name: nothing}\n  dataset: {configMap: {name: empty}, path: train.jsonl}\n",
    )?;
    wait_until(PATIENCE, || {
        let message = missing.get()?["status"]["message"].to_string();
        Ok(message.contains("nothing").then_some(()))
    })
}

#[test]
fn s18_a_jobs_token_opens_its_branch_and_nothing_else() -> Result<()> {
    let here = Training::prepare("training-token", 40)?;
    let cluster = &here.tiny.cluster;
    let namespace = &here.namespace().name;
    let job = here.apply(
        "own",
        "steps: 2000, batchSize: 8, rank: 4",
        "  checkpoint: {everySteps: 1000}\n  output: {onSuccess: PushBranch}\n  \
         resources: {storage: 64Mi}\n",
    )?;
    job.wait_condition("Running", "True", None, PATIENCE)?;
    let selector = "hyprstream.io/training-job=own";
    let account = cluster.kubectl(&[
        "-n",
        namespace,
        "get",
        "serviceaccount",
        "-l",
        selector,
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ])?;
    let token = cluster.kubectl(&[
        "-n",
        namespace,
        "create",
        "token",
        &account,
        "--audience",
        "hyprstream",
    ])?;
    let repository = &here.tiny.repository;
    repository.write("stolen.txt", b"x")?;
    repository.commit("stolen")?;
    let push = |target: &str, refspec: &str| -> Result<(bool, String)> {
        let url = format!("{}/git/{target}.git", cluster.registry);
        let output = repository
            .command(&["push", "--no-verify", &url, refspec])
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "http.extraHeader")
            .env(
                "GIT_CONFIG_VALUE_0",
                format!("Authorization: Bearer {token}"),
            )
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), said))
    };
    let own = format!("{namespace}/tiny");
    for (target, refspec) in [
        (own.as_str(), "HEAD:refs/heads/main"),
        (&own, "HEAD:refs/heads/train/other"),
        (&own, "HEAD:refs/tags/other/step-1"),
        (&format!("{namespace}/data"), "HEAD:refs/heads/train/own"),
        ("default/smollm2", "HEAD:refs/heads/train/own"),
    ] {
        let (done, said) = push(target, refspec)?;
        ensure!(!done, "{target} {refspec}: {said}");
    }
    let registry = cluster.pods("registry")?;
    let registry = registry.first().context("the registry's pod")?;
    let audit = cluster.kubectl(&["-n", &cluster.system, "logs", registry, "--tail=400"])?;
    let refused = |line: &&str| line.contains("Refused") && line.contains(&account);
    ensure!(
        audit.lines().any(|line| refused(&line)),
        "no line of {account}"
    );
    job.delete()
}
