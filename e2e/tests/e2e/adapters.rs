//! Adapters: from files in git to answers of every worker.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hyprstream_e2e::{
    Chat, Cluster, Load, Namespace, Object, Repository, TinyAdapter, run, wait_until,
};
use serde_json::{Value, json};

use crate::{PATIENCE, Tiny, forward::Worker, fresh_seed};

/// A tiny model, and a repository `adapters` beside it.
pub(crate) struct Tuned {
    pub(crate) tiny: Tiny,
    pub(crate) adapters: Repository,
}

impl Tuned {
    /// `spec` is added to the Model's spec, indented by two.
    pub(crate) fn serve(hint: &str, spec: &str) -> Result<Self> {
        let tiny = Tiny::serve_with(hint, spec)?;
        let adapters = Repository::new(&tiny.cluster, &tiny.namespace.name, "adapters")?;
        Ok(Self { tiny, adapters })
    }

    fn cluster(&self) -> &Cluster {
        &self.tiny.cluster
    }

    fn namespace(&self) -> &Namespace {
        &self.tiny.namespace
    }

    /// The spec of an Adapter whose files lie at a path of the repository `adapters`.
    fn spec(&self, path: &str) -> String {
        spec(&self.adapters.url, "tiny", path)
    }

    pub(crate) fn apply(&self, name: &str, path: &str) -> Result<Object> {
        self.namespace().apply_adapter(name, &self.spec(path))
    }

    /// A question to the model with adapters, as `+sql@0.5`.
    pub(crate) fn ask(&self, adapters: &str) -> Chat {
        let model = format!("{}{adapters}", self.tiny.model.id());
        Chat::new(&self.cluster().ingress, &model, "hello", 16)
    }
}

fn spec(url: &str, model: &str, path: &str) -> String {
    format!(
        "  modelRef: {{name: {model}}}\n  \
         source: {{url: {url:?}, ref: {{branch: main}}, path: {path:?}}}\n"
    )
}

/// Waits until an adapter is ready on a commit, on as many workers as there should be.
pub(crate) fn wait_loaded(adapter: &Object, commit: &str, workers: u64) -> Result<()> {
    let mut last = Value::Null;
    wait_until(PATIENCE, || {
        last = adapter.get()?["status"].take();
        let ready = adapter
            .condition("Ready")?
            .is_some_and(|(status, ..)| status == "True");
        let replicas = &last["replicas"];
        let whole = replicas["desired"] == workers && replicas["loaded"] == workers;
        Ok((last["commit"] == commit && ready && whole).then_some(()))
    })
    .with_context(|| format!("{} on {workers} workers of {commit}: {last}", adapter.id()))
}

/// Log-probabilities that differ by no more are of the same sums: what is a half in one product may be
/// two quarters in two, which are rounded apart (0.2 was seen).
const NEAR: f64 = 0.5;
/// And those that differ by so much are not (4.3 was seen).
const FAR: f64 = 1.0;

/// The largest distance between what two answers give to the same token, among the likeliest of each
/// place up to the first where they chose differently; infinite where what one chose is not among the
/// other's likeliest.
fn distance(one: &Value, other: &Value) -> Result<f64> {
    let places = |answer: &Value| answer["likely"].as_array().cloned().context("no tokens");
    let mut largest: f64 = 0.0;
    for (one, other) in places(one)?.iter().zip(&places(other)?) {
        let likely = one["top"].as_object().context("no likely tokens")?;
        for (token, logprob) in likely {
            if let (Some(one), Some(other)) = (logprob.as_f64(), other["top"][token].as_f64()) {
                largest = largest.max((one - other).abs());
            }
        }
        if one["token"] != other["token"] {
            let chosen = one["token"].as_str().context("no token")?;
            if other["top"][chosen].is_null() {
                return Ok(f64::INFINITY);
            }
            break;
        }
    }
    Ok(largest)
}

#[test]
fn s11_the_openai_client_gets_what_peft_computes_by_every_name_in_one_batch() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/sql");
    let repository = Repository::new(&cluster, "default", "sql-e2e")?;
    let weights = fs::read(sample.join("adapter_model.safetensors"))?;
    let mut config: Value = serde_json::from_slice(&fs::read(sample.join("adapter_config.json"))?)?;
    repository.write("adapter_model.safetensors", &weights)?;
    repository.write("adapter_config.json", config.to_string().as_bytes())?;
    // PEFT's other way to halve it.
    let alpha = config["lora_alpha"].as_u64().context("lora_alpha")?;
    config["lora_alpha"] = json!(alpha / 2);
    repository.write("half/adapter_model.safetensors", &weights)?;
    repository.write("half/adapter_config.json", config.to_string().as_bytes())?;
    let commit = repository.publish("from PEFT")?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "model/smollm2",
        "--timeout=180s",
    ])?;
    for (name, path) in [("sql-e2e", "."), ("half-e2e", "half")] {
        let spec = spec(&repository.url, "smollm2", path);
        cluster.apply(&format!(
            "apiVersion: hyprstream.io/v1alpha1\nkind: Adapter\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n{spec}"
        ))?;
    }
    let told = cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "adapter/sql-e2e",
        "adapter/half-e2e",
        "--timeout=60s",
    ]);
    let status = cluster.get(&["adapter", "sql-e2e"])?["status"].take();
    told.with_context(|| status.to_string())?;
    assert_eq!(status["commit"], commit.as_str(), "{status}");
    assert_eq!(status["rank"], 4, "{status}");

    let python = env::var("HYPRSTREAM_E2E_PYTHON").context("HYPRSTREAM_E2E_PYTHON is not set")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/adapters.py");
    let base = format!("{}/v1", cluster.ingress);
    let expected: Value = serde_json::from_slice(&fs::read(sample.join("answers.json"))?)?;
    let question = expected["question"].as_str().context("the question")?;
    let tokens = expected["max_tokens"].to_string();
    let mut client = Command::new(python);
    client.args([
        script, &base, "smollm2", "sql-e2e", "half-e2e", question, &tokens,
    ]);
    let seen: Value = serde_json::from_str(&run(&mut client)?)?;
    let answers = &expected["answers"];
    let digest = status["digest"].as_str().context("a digest")?;
    for (model, answer, scale) in [
        ("smollm2", "base", None),
        ("sql-e2e", "sql", Some("1")),
        ("smollm2+sql-e2e", "sql", Some("1")),
        ("smollm2+sql-e2e@0.5", "half", Some("0.5")),
        ("smollm2+sql-e2e@0", "base", Some("0")),
        ("field", "half", Some("0.5")),
    ] {
        let got = &seen["answers"][model];
        let text = got["text"].as_str().unwrap_or_default();
        let begin = answers[answer].as_str().context("an answer")?;
        assert!(
            text.starts_with(begin),
            "{model} must begin {begin:?}: {seen}"
        );
        let header = scale.map(|scale| format!("sql-e2e={digest}@{scale}"));
        assert_eq!(got["adapters"].as_str(), header.as_deref(), "{model}");
    }
    // The texts are the same for the whole of it and for a half: how likely the model takes what it
    // says, and what it might have said, tells the scale.
    let whole = &seen["answers"]["smollm2+sql-e2e"];
    let half = &seen["answers"]["smollm2+half-e2e"];
    for (model, like, unlike) in [
        ("sql-e2e", whole, half),
        ("smollm2+sql-e2e@0.5", half, whole),
        ("field", half, whole),
        ("smollm2+sql-e2e@0.25+half-e2e@0.5", half, whole),
        ("smollm2+half-e2e@2", whole, half),
        ("smollm2+sql-e2e@0", &seen["answers"]["smollm2"], half),
    ] {
        let got = &seen["answers"][model];
        let (near, far) = (distance(got, like)?, distance(got, unlike)?);
        assert!(near <= NEAR && far >= FAR, "{model}: {near}, {far}: {seen}");
    }
    let listed = &seen["listed"];
    assert_eq!(listed["parent"], "smollm2", "{listed}");

    cluster.kubectl(&["delete", "adapter", "half-e2e"])?;
    cluster.kubectl(&["delete", "adapter", "sql-e2e"])?;
    let gone = Chat::new(&cluster.ingress, "smollm2+sql-e2e", "hello", 4);
    wait_until(PATIENCE, || {
        let error = gone.ask().err().map(|error| error.to_string());
        Ok(error.filter(|error| error.starts_with("404")))
    })?;
    Ok(())
}

/// What was answered, by the header that names the digests.
type Texts = BTreeMap<String, BTreeSet<String>>;

/// How many Adapters one Model must bear.
const MANY: usize = 100;

#[test]
fn s11_a_hundred_adapters_are_on_three_workers_and_a_new_worker_has_them_before_it_is_ready()
-> Result<()> {
    let tuned = Tuned::serve("many", "  replicas: 3\n")?;
    let seed = fresh_seed();
    let names: Vec<String> = (0..MANY).map(|number| format!("a{number}")).collect();
    for (name, number) in names.iter().zip(0..) {
        TinyAdapter::new(seed + number).write(&tuned.adapters, name)?;
    }
    let commit = tuned.adapters.publish("many")?;
    let manifests = names.iter().map(|name| {
        tuned
            .namespace()
            .manifest_of("Adapter", name, &tuned.spec(name))
    });
    let manifests: Vec<String> = manifests.collect();
    let begun = Instant::now();
    tuned.cluster().apply(&manifests.join("---\n"))?;
    for name in &names {
        wait_loaded(&tuned.namespace().adapter(name), &commit, 3)?;
    }
    println!(
        "{MANY} adapters on three workers after {:?}",
        begun.elapsed()
    );
    let load = Load::start(4, &tuned.ask("+a7+a93@0.5"));
    wait_until(PATIENCE, || Ok((load.report().total() >= 40).then_some(())))?;
    let pods = || -> Result<BTreeSet<String>> {
        let pods = tuned.tiny.model.pods()?;
        let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str());
        names
            .map(|name| Ok(name.context("a pod's name")?.to_owned()))
            .collect()
    };
    let old = pods()?;
    let victim = old.first().context("a pod")?;
    let namespace = tuned.namespace().name.as_str();
    // Whoever waits until it is gone sees the new one when it is ready already.
    let delete = ["-n", namespace, "delete", "pod", victim, "--wait=false"];
    tuned.cluster().kubectl(&delete)?;
    let new = wait_until(PATIENCE, || Ok(pods()?.difference(&old).next().cloned()))?;
    let listed = listed_when_ready(&tuned.tiny, &new)?;
    let lacking: Vec<_> = names
        .iter()
        .filter(|name| !listed.contains(*name))
        .collect();
    assert_eq!(lacking, Vec::<&String>::new(), "of the new worker");
    wait_until(PATIENCE, || {
        Ok((tuned.tiny.model.get()?["status"]["readyReplicas"] == 3).then_some(()))
    })?;
    let before = load.report().total();
    wait_until(PATIENCE, || {
        Ok((load.report().total() >= before + 100).then_some(()))
    })?;
    let report = load.stop()?;
    println!("{} answers", report.total());
    assert_eq!(report.causes(), BTreeMap::new());
    for name in ["a0", "a7", "a99"] {
        wait_loaded(&tuned.namespace().adapter(name), &commit, 3)?;
    }
    Ok(())
}

/// The models that a new worker lists when it first says that it is ready. The gateway would not
/// show it: it asks another worker for what one lacks.
fn listed_when_ready(tiny: &Tiny, pod: &str) -> Result<BTreeSet<String>> {
    let begun = Instant::now();
    let mut way = None;
    while begun.elapsed() < PATIENCE {
        // A way to a container that does not listen yet ends with the first connection.
        let Some(worker) = way.take().or_else(|| Worker::of(tiny, pod).ok()) else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Ok((status, _)) = worker.get("/ready") else {
            continue;
        };
        if status == 200 {
            let (status, body) = worker.get("/v1/models")?;
            ensure!(status == 200, "{status}: {body}");
            let list: Value = serde_json::from_str(&body)?;
            let models = list["data"].as_array().context("no list")?;
            let ids = models.iter().filter_map(|model| model["id"].as_str());
            return Ok(ids.map(str::to_owned).collect());
        }
        way = Some(worker);
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("{pod} did not turn ready")
}

#[test]
fn s11_a_push_swaps_an_adapter_under_load_and_each_answer_is_of_one_digest() -> Result<()> {
    let tuned = Tuned::serve("swap", "  replicas: 2\n")?;
    let seed = fresh_seed();
    TinyAdapter::new(seed).write(&tuned.adapters, "sql")?;
    let first = tuned.adapters.publish("first")?;
    let adapter = tuned.apply("sql", "sql")?;
    wait_loaded(&adapter, &first, 2)?;

    // The same question from all: what a digest answers is one text.
    let mut question = tuned.ask("+sql");
    question.tokens = 64;
    let stop = Arc::new(AtomicBool::new(false));

    let seen: Arc<Mutex<(Texts, Vec<String>)>> = Arc::default();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, seen, question) = (stop.clone(), seen.clone(), question.clone());
            std::thread::spawn(move || {
                // So that a test that hangs does not load the machine for ever.
                for _ in 0..5_000 {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = question.ask();
                    let mut seen = seen.lock().expect("no client panics with the lock");
                    match outcome {
                        Ok(answer) => {
                            let texts = seen.0.entry(answer.adapters).or_default();
                            texts.insert(answer.text);
                        }
                        Err(error) => seen.1.push(format!("{error:#}")),
                    }
                }
            })
        })
        .collect();
    let until = |digests: usize| {
        wait_until(PATIENCE, || {
            let seen = seen.lock().expect("no client panics with the lock");
            let enough = seen.0.len() >= digests || !seen.1.is_empty();
            Ok(enough.then_some(()))
        })
    };
    until(1)?;
    TinyAdapter::new(seed + 1).write(&tuned.adapters, "sql")?;
    let second = tuned.adapters.publish("second")?;
    let swapped = wait_loaded(&adapter, &second, 2).and_then(|()| until(2));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        if client.join().is_err() {
            bail!("a client panicked");
        }
    }
    swapped?;
    let (texts, failures) = &*seen.lock().expect("the clients have ended");
    assert_eq!(*failures, Vec::<String>::new());
    assert_eq!(texts.len(), 2, "{texts:?}");
    let answers: BTreeSet<&String> = texts.values().flatten().collect();
    assert_eq!(
        answers.len(),
        2,
        "one answer of each digest, and they differ: {texts:?}"
    );
    Ok(())
}

/// The same bytes with one text in place of another that is as long.
fn replaced(mut bytes: Vec<u8>, old: &str, new: &str) -> Vec<u8> {
    let windows = bytes.windows(old.len()).enumerate();
    let places = windows.filter(|(_, window)| *window == old.as_bytes());
    for at in places.map(|(at, _)| at).collect::<Vec<_>>() {
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    bytes
}

#[test]
fn s11_what_cannot_be_served_says_why_and_disturbs_nothing() -> Result<()> {
    let tuned = Tuned::serve("refused", "")?;
    let good = TinyAdapter::new(fresh_seed());
    let repository = &tuned.adapters;
    good.write(repository, "good")?;
    TinyAdapter { hidden: 96, ..good }.write(repository, "other-base")?;
    TinyAdapter { rank: 600, ..good }.write(repository, "large")?;
    let with = |folder: &str, key: &str, value: Value| {
        let mut config = good.config();
        config[key] = value;
        good.write_as(
            repository,
            &format!("{folder}/adapter_model.safetensors"),
            &config,
        )
    };
    with("untargeted", "target_modules", json!(["o_proj"]))?;
    with("target", "target_modules", json!(["x_proj", "down_proj"]))?;
    let tensors = replaced(good.tensors()?, "self_attn.o_proj", "self_attn.x_proj");
    repository.write("target/adapter_model.safetensors", &tensors)?;
    with("option", "layer_replication", json!([[0, 2]]))?;
    with(
        "commit",
        "revision",
        json!("0123456789abcdef0123456789abcdef01234567"),
    )?;
    good.write(repository, "nan")?;
    let mut tensors = good.tensors()?;
    let end = tensors.len();
    tensors[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    repository.write("nan/adapter_model.safetensors", &tensors)?;
    good.write(repository, "garbage")?;
    repository.write("garbage/adapter_model.safetensors", b"garbage")?;
    let commit = repository.publish("some that are bad")?;
    let own = tuned.apply("good", "good")?;
    wait_loaded(&own, &commit, 1)?;
    let before = tuned.ask("+good").ask()?;

    let other = tuned.cluster().namespace("foreign")?;
    let foreign = Repository::new(tuned.cluster(), &other.name, "adapters")?;
    good.write(&foreign, "good")?;
    foreign.publish("of somebody else")?;
    // A pointer whose object never came.
    let pointer = Repository::new(tuned.cluster(), &tuned.namespace().name, "pointer")?;
    TinyAdapter::new(fresh_seed()).write(&pointer, "sql")?;
    pointer.commit("without its object")?;
    let pushed = pointer
        .command(&["push", "--no-verify", "--quiet", "origin", "HEAD:main"])
        .env("GIT_LFS_SKIP_PUSH", "1")
        .status()?;
    assert!(pushed.success());

    let require = |path: &str| format!("{}  baseCommitPolicy: Require\n", tuned.spec(path));
    let cases = [
        (
            "other-base",
            tuned.spec("other-base"),
            "ShapeMismatch",
            "o_proj",
        ),
        ("missing", tuned.spec("nowhere"), "NotFound", "nowhere"),
        ("large", tuned.spec("large"), "RankTooLarge", "600"),
        ("target", tuned.spec("target"), "UnknownTarget", "x_proj"),
        (
            "untargeted",
            tuned.spec("untargeted"),
            "Untargeted",
            "down_proj",
        ),
        (
            "pointer",
            spec(&pointer.url, "tiny", "sql"),
            "MissingLFSObject",
            "adapter_model",
        ),
        (
            "option",
            tuned.spec("option"),
            "UnsupportedOption",
            "layer_replication",
        ),
        ("nan", tuned.spec("nan"), "NotFinite", "down_proj"),
        (
            "garbage",
            tuned.spec("garbage"),
            "DamagedFile",
            "adapter_model",
        ),
        (
            "commit",
            require("commit"),
            "BaseCommitMismatch",
            &tuned.tiny.commit,
        ),
        (
            "foreign",
            spec(&foreign.url, "tiny", "good"),
            "AccessDenied",
            &other.name,
        ),
    ];
    for (name, spec, ..) in &cases {
        tuned.namespace().apply_adapter(name, spec)?;
    }
    for (name, _, reason, part) in cases {
        let adapter = tuned.namespace().adapter(name);
        let mut last = None;
        wait_until(PATIENCE, || {
            last = adapter.condition("Ready")?;
            Ok(last
                .as_ref()
                .filter(|(status, r, _)| status == "False" && r == reason)
                .map(drop))
        })
        .with_context(|| format!("{name} must say {reason}; it says {last:?}"))?;
        let message = last.map(|(.., message)| message).unwrap_or_default();
        assert!(message.contains(part), "{name}: {message}");
        let error = tuned
            .ask(&format!("+{name}"))
            .ask()
            .unwrap_err()
            .to_string();
        // Its files may come, for which a request waits a while.
        let status = if name == "pointer" { "503" } else { "404" };
        assert!(error.starts_with(status), "{name}: {error}");
    }
    // A second one of the same name.
    let twin = format!("{}  servedName: good\n", tuned.spec("good"));
    let twin = tuned.namespace().apply_adapter("twin", &twin)?;
    twin.wait_condition("Accepted", "False", Some("NameTaken"), PATIENCE)?;
    wait_loaded(&own, &commit, 1)?;
    let after = tuned.ask("+good").ask()?;
    assert_eq!(after, before);
    tuned.tiny.model.wait_ready_on(&tuned.tiny.commit, PATIENCE)
}

#[test]
fn s11_any_part_may_die_while_adapters_are_loaded() -> Result<()> {
    let tuned = Tuned::serve("kill-adapters", "")?;
    let seed = fresh_seed();
    let programs = [
        "hyprstream-operator",
        "hyprstream-gateway",
        "hyprstream-registry",
        "hyprstream-csi",
        "hyprstream-worker",
    ];
    // What an earlier test killed may not be back yet.
    tuned.cluster().wait_settled(PATIENCE)?;
    for (round, program) in programs.into_iter().enumerate() {
        let names: Vec<String> = (0..10).map(|number| format!("r{round}-{number}")).collect();
        for (name, number) in names.iter().zip(10 * round as u64..) {
            TinyAdapter::new(seed + number).write(&tuned.adapters, name)?;
        }
        tuned.cluster().wait_registry(PATIENCE)?;
        let commit = tuned.adapters.publish(program)?;
        for name in &names {
            tuned.apply(name, name)?;
        }
        if program == "hyprstream-worker" {
            let pod = tuned.tiny.model.pods()?[0]["metadata"]["uid"].clone();
            let pod = pod.as_str().context("a pod")?;
            let kill = ["chaos", "kill", program, "--pod-uid", pod];
            tuned.cluster().xtask(&kill)?;
        } else {
            tuned.cluster().kill(program, PATIENCE)?;
        }
        for name in &names {
            wait_loaded(&tuned.namespace().adapter(name), &commit, 1)?;
        }
        let last = names.last().context("names")?;
        let question = tuned.ask(&format!("+r0-0+{last}"));
        wait_until(PATIENCE, || question.ask().map(Some))?;
    }
    tuned.cluster().wait_whole(PATIENCE)?;
    tuned.cluster().wait_registry(PATIENCE)
}

#[test]
fn s11_a_deleted_adapter_is_unloaded_and_one_of_a_deleted_model_says_so() -> Result<()> {
    let tuned = Tuned::serve("unload", "")?;
    TinyAdapter::new(fresh_seed()).write(&tuned.adapters, "a")?;
    TinyAdapter::new(fresh_seed()).write(&tuned.adapters, "b")?;
    let commit = tuned.adapters.publish("two")?;
    let (one, two) = (tuned.apply("a", "a")?, tuned.apply("b", "b")?);
    wait_loaded(&one, &commit, 1)?;
    wait_loaded(&two, &commit, 1)?;
    let (base, with) = (tuned.ask("").ask()?, tuned.ask("+a").ask()?);
    assert_ne!(base.text, with.text);
    assert_eq!(tuned.ask("+a@0").ask()?.text, base.text);
    one.delete()?;
    wait_until(PATIENCE, || {
        let error = tuned.ask("+a").ask().err().map(|error| error.to_string());
        Ok(error.filter(|error| error.starts_with("404")))
    })?;
    tuned.ask("+b").ask()?;
    tuned.tiny.model.delete()?;
    two.wait_condition("Ready", "False", Some("ModelNotFound"), PATIENCE)?;
    crate::lifecycle::wait_no_traces(tuned.cluster(), &tuned.namespace().name)
}

#[test]
fn s11_what_lies_in_the_models_own_commit_is_served_by_name() -> Result<()> {
    let tuned = Tuned::serve("own", "")?;
    let repository = &tuned.tiny.repository;
    let adapter = TinyAdapter::new(fresh_seed());
    let path = "adapters/01_tone.safetensors";
    adapter.write_as(repository, path, &adapter.config())?;
    let commit = repository.publish("with an adapter")?;
    tuned.tiny.model.wait_ready_on(&commit, PATIENCE)?;
    let (base, with) = (tuned.ask("").ask()?, tuned.ask("+tone").ask()?);
    assert_ne!(base.text, with.text);
    assert!(with.adapters.starts_with("tone="), "{with:?}");
    // The same file by another name, as a resource that names no repository of its own.
    let same = format!("  modelRef: {{name: tiny}}\n  source: {{path: {path:?}}}\n");
    let same = tuned.namespace().apply_adapter("same", &same)?;
    wait_loaded(&same, &commit, 1)?;
    assert_eq!(tuned.ask("+same").ask()?.text, with.text);
    tuned
        .tiny
        .model
        .patch(r#"{"spec": {"adapters": {"fromRepository": false}}}"#)?;
    wait_until(PATIENCE, || {
        let error = tuned
            .ask("+tone")
            .ask()
            .err()
            .map(|error| error.to_string());
        Ok(error.filter(|error| error.starts_with("404")))
    })?;
    assert_eq!(tuned.ask("+same").ask()?.text, with.text);
    Ok(())
}
