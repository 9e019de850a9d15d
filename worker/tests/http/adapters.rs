//! Answers with adapters, on a model whose answers say which it was.

use std::{fmt::Write, fs, sync::Arc, time::Duration};

use hyprstream_engine::fake::{self, FakeAdapter, FakeOptions};
use hyprstream_worker::{
    adapters::{
        Limits, Options,
        fake::{FakePacker, adapter_of},
    },
    server::{ApiKeys, ApiOptions},
};
use reqwest::Response;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::server::{COMMIT, Server, Setup, parse};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";
pub(crate) const LOAD: &str = "/v1/load_lora_adapter";
pub(crate) const UNLOAD: &str = "/v1/unload_lora_adapter";
const ADAPTERS: &str = "x-hyprstream-adapters";

/// A worker that loads adapters from below a folder.
pub(crate) struct Worker {
    pub(crate) server: Server,
    pub(crate) root: TempDir,
}

impl Worker {
    /// With the adapters `sql`, `tone` and `Tone_1.b`, loaded.
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup) -> Self {
        let worker = Self::empty(setup).await;
        for name in ["sql", "tone", "Tone_1.b"] {
            worker.load(name, name).await;
        }
        worker
    }

    pub(crate) async fn empty(setup: Setup) -> Self {
        Self::limited(setup, Limits::default()).await
    }

    async fn limited(setup: Setup, limits: Limits) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = Options {
            model: "fake".to_owned(),
            root: Some(root.path().to_owned()),
            limits,
            ..Options::default()
        };
        let adapters = Some((Arc::new(FakePacker::default()), options));
        let server = Server::with(Setup { adapters, ..setup }).await;
        Self { server, root }
    }

    /// Writes an adapter that does what `content` says, and returns where.
    pub(crate) fn write(&self, folder: &str, content: &str) -> String {
        let dir = self.root.path().join(folder);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("adapter_model.safetensors"), content).unwrap();
        fs::write(dir.join("adapter_config.json"), "{}").unwrap();
        dir.to_str().unwrap().to_owned()
    }

    async fn load(&self, name: &str, content: &str) {
        let ask = json!({"lora_name": name, "lora_path": self.write(content, content),
            "load_inplace": true});
        let response = self.server.post(LOAD, &ask).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
    }

    async fn completion(&self, ask: &Value) -> (String, Option<String>) {
        let response = self.server.post(COMPLETIONS, ask).await;
        assert_eq!(response.status(), 200);
        let told = told(&response);
        let json: Value = response.json().await.unwrap();
        (
            json["choices"][0]["text"].as_str().unwrap().to_owned(),
            told,
        )
    }
}

fn told(response: &Response) -> Option<String> {
    let value = response.headers().get(ADAPTERS)?;
    Some(value.to_str().unwrap().to_owned())
}

fn digest(content: &str) -> String {
    let digest = Sha256::digest(content);
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

const PROMPT: [u32; 40] = [70; 40];

fn ask(model: &str, more: &Value) -> Value {
    let mut ask =
        json!({"model": model, "prompt": &PROMPT[..], "max_tokens": 12, "temperature": 0});
    for (name, value) in more.as_object().unwrap() {
        ask[name] = value.clone();
    }
    ask
}

/// What the model answers to [`ask`] with the adapters of these contents.
fn expected(stack: &[(&str, f32)], tokens: usize) -> String {
    let stack = stack.iter().filter(|(_, scale)| *scale != 0.0);
    let stack = stack.map(|(content, scale)| (adapter_of(content.as_bytes()), *scale));
    let stack: Vec<(FakeAdapter, f32)> = stack.collect();
    let answer = fake::greedy_with(&stack, &PROMPT, tokens);
    fake::tokenizer().decode(&answer, true).unwrap()
}

fn header(stack: &[(&str, f32)]) -> Option<String> {
    let told = stack
        .iter()
        .map(|(name, scale)| format!("{name}={}@{scale}", digest(name)));
    let told: Vec<_> = told.collect();
    (!told.is_empty()).then(|| told.join(","))
}

#[tokio::test]
async fn each_way_to_name_adapters_answers_with_them_and_says_which() {
    let worker = Worker::start().await;
    let fields = |value: Value| json!({ "adapters": value });
    for (model, more, stack) in [
        ("fake", json!({}), &[][..]),
        ("fake", fields(Value::Null), &[]),
        ("fake", fields(json!([])), &[]),
        ("fake+sql", json!({}), &[("sql", 1.0)]),
        ("default/fake:main+sql@0.5", json!({}), &[("sql", 0.5)]),
        ("fake", fields(json!([{"name": "sql"}])), &[("sql", 1.0)]),
        (
            "fake",
            fields(json!([{"name": "sql", "scale": 0.8}])),
            &[("sql", 0.8)],
        ),
        ("sql", json!({}), &[("sql", 1.0)]),
        ("Tone_1.b", json!({}), &[("Tone_1.b", 1.0)]),
        (
            "fake+sql@2+Tone_1.b",
            fields(json!([{"name": "tone", "scale": -1}])),
            &[("sql", 2.0), ("Tone_1.b", 1.0), ("tone", -1.0)],
        ),
        ("fake+sql@0", json!({}), &[("sql", 0.0)]),
        (
            "fake",
            fields(json!([{"name": "sql", "scale": 0}])),
            &[("sql", 0.0)],
        ),
    ] {
        let ask = ask(model, &more);
        let (text, told) = worker.completion(&ask).await;
        assert_eq!(text, expected(stack, 12), "{ask}");
        assert_eq!(told, header(stack), "{ask}");
        let mut streamed = ask.clone();
        streamed["stream"] = true.into();
        let response = worker.server.post(COMPLETIONS, &streamed).await;
        assert_eq!(self::told(&response), header(stack), "{streamed}");
        let events = parse(&response.text().await.unwrap());
        let pieces = events
            .iter()
            .map(|event| event["choices"][0]["text"].as_str().unwrap());
        assert_eq!(pieces.collect::<String>(), text, "{streamed}");
        assert_eq!(events[0]["model"], model);
    }
}

/// The words of an answer of any kind.
fn words(path: &str, json: &Value) -> String {
    let at = match path {
        CHAT => "/choices/0/message/content",
        COMPLETIONS => "/choices/0/text",
        RESPONSES => "/output/0/content/0/text",
        _ => "/data/0/embedding",
    };
    json.pointer(at)
        .unwrap_or_else(|| panic!("{json}"))
        .to_string()
}

/// The words of a streamed answer.
fn streamed_words(path: &str, text: &str) -> String {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let at = match path {
        CHAT => "/choices/0/delta/content",
        COMPLETIONS => "/choices/0/text",
        _ => "/delta",
    };
    let words: String = events
        .filter_map(|event| Some(event.pointer(at)?.as_str()?.to_owned()))
        .collect();
    Value::from(words).to_string()
}

fn bodies(model: &str) -> [(&'static str, Value); 4] {
    let user = json!([{"role": "user", "content": "hi"}]);
    [
        (
            CHAT,
            json!({"model": model, "messages": user, "temperature": 0, "max_tokens": 8}),
        ),
        (
            COMPLETIONS,
            json!({"model": model, "prompt": "hi", "temperature": 0, "max_tokens": 8}),
        ),
        (
            RESPONSES,
            json!({"model": model, "input": "hi", "temperature": 0, "max_output_tokens": 8}),
        ),
        (EMBEDDINGS, json!({"model": model, "input": "hi"})),
    ]
}

#[tokio::test]
async fn every_endpoint_honours_adapters_also_in_a_stream() {
    let worker = Worker::start().await;
    let base = bodies("fake");
    let ways = [bodies("fake+sql"), bodies("sql"), bodies("fake")];
    for (at, (path, base)) in base.iter().enumerate() {
        let response = worker.server.post(path, base).await;
        assert_eq!(told(&response), None, "{path}");
        let without = words(path, &response.json().await.unwrap());
        let mut with = Vec::new();
        for (way, asks) in ways.iter().enumerate() {
            let mut ask = asks[at].1.clone();
            if way == 2 {
                ask["adapters"] = json!([{"name": "sql"}]);
            }
            let response = worker.server.post(path, &ask).await;
            assert_eq!(told(&response), header(&[("sql", 1.0)]), "{path}: {ask}");
            let json: Value = response.json().await.unwrap();
            assert_eq!(json["model"], ask["model"], "{path}");
            with.push(words(path, &json));
            if *path == EMBEDDINGS {
                continue;
            }
            ask["stream"] = true.into();
            let response = worker.server.post(path, &ask).await;
            assert_eq!(told(&response), header(&[("sql", 1.0)]), "{path}: {ask}");
            with.push(streamed_words(path, &response.text().await.unwrap()));
        }
        assert!(
            with.iter()
                .all(|words| *words == with[0] && *words != without),
            "{path}: {with:?}"
        );
    }
}

#[tokio::test]
async fn an_adapter_that_is_not_there_is_a_404_that_lists_those_that_are() {
    let worker = Worker::start().await;
    let check = async |path: &str, ask: &Value, param: &str, missing: &str| {
        let response = worker.server.post(path, ask).await;
        assert_eq!(response.status(), 404, "{path}: {ask}");
        assert_eq!(
            response.headers()["x-hyprstream-missing-adapters"],
            missing,
            "{path}"
        );
        let error = response.json::<Value>().await.unwrap()["error"].take();
        assert_eq!(error["code"], "model_not_found", "{error}");
        assert_eq!(error["param"], param, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("sql") && message.contains("Tone_1.b"),
            "{message}"
        );
    };
    for (path, mut ask) in bodies("fake+nope") {
        check(path, &ask, "model", "nope").await;
        ask["model"] = "fake+sql".into();
        ask["adapters"] = json!([{"name": "Nope_1"}, {"name": "tone"}, {"name": "other"}]);
        check(path, &ask, "adapters", "Nope_1,other").await;
        if path != EMBEDDINGS {
            ask["stream"] = true.into();
            check(path, &ask, "adapters", "Nope_1,other").await;
        }
    }
    for (path, ask) in [
        ("/tokenize", json!({"model": "fake+nope", "prompt": "a"})),
        ("/detokenize", json!({"model": "fake+nope", "tokens": [70]})),
    ] {
        check(path, &ask, "model", "nope").await;
    }
    // Nothing of this worker: not another worker's either.
    let other = worker
        .server
        .post(COMPLETIONS, &ask("nope", &json!({})))
        .await;
    assert_eq!(other.status(), 404);
    assert!(
        !other
            .headers()
            .contains_key("x-hyprstream-missing-adapters")
    );
}

#[tokio::test]
async fn what_is_no_stack_is_refused_before_anything_runs() {
    let worker = Worker::start().await;
    let named = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|at| json!({"name": format!("a{at}")}))
            .collect()
    };
    for (model, adapters, param, code) in [
        ("fake+sql+sql", json!([]), "model", Value::Null),
        (
            "fake+sql",
            json!([{"name": "sql"}]),
            "adapters",
            Value::Null,
        ),
        (
            "sql",
            json!([{"name": "sql", "scale": 0}]),
            "adapters",
            Value::Null,
        ),
        (
            "fake",
            json!([{"name": "sql"}, {"name": "sql"}]),
            "adapters",
            Value::Null,
        ),
        ("fake+sql@11", json!([]), "model", Value::Null),
        ("fake+sql@nan", json!([]), "model", Value::Null),
        (
            "fake",
            json!([{"name": "sql", "scale": -10.5}]),
            "adapters[0].scale",
            Value::Null,
        ),
        (
            "fake",
            json!([{"name": "a\nb"}]),
            "adapters[0].name",
            Value::Null,
        ),
        (
            "fake",
            json!(named(9)),
            "adapters",
            json!("too_many_adapters"),
        ),
        (
            "sql",
            json!(named(8)),
            "adapters",
            json!("too_many_adapters"),
        ),
        (
            "fake+1+2+3+4+5+6+7+8+9",
            json!([]),
            "model",
            json!("too_many_adapters"),
        ),
    ] {
        for (path, mut ask) in bodies(model) {
            ask["adapters"] = adapters.clone();
            let error = worker.server.refused(path, &ask, 400).await;
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!(param), &code),
                "{path}: {ask}"
            );
        }
    }
}

#[tokio::test]
async fn kinds_of_answers_mix_in_one_batch() {
    let step_time = Duration::from_millis(3);
    let fake = FakeOptions {
        step_time,
        ..FakeOptions::default()
    };
    let steps = Arc::clone(&fake.steps);
    let worker = Worker::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let kinds: [(&str, &[(&str, f32)]); 6] = [
        ("fake", &[]),
        ("sql", &[("sql", 1.0)]),
        ("fake+sql@0.5", &[("sql", 0.5)]),
        ("fake+tone", &[("tone", 1.0)]),
        ("fake+sql+tone@0.25", &[("sql", 1.0), ("tone", 0.25)]),
        ("fake+tone@0.25+sql", &[("tone", 0.25), ("sql", 1.0)]),
    ];
    let more = json!({"max_tokens": 64});
    let asks = kinds.iter().cycle().take(18);
    let answers = asks.map(async |(model, stack)| {
        let (text, told) = worker.completion(&ask(model, &more)).await;
        assert_eq!(text, expected(stack, 64), "{model}");
        assert_eq!(told, header(stack));
    });
    futures::future::join_all(answers).await;
    // One after the other they would have taken 18 times 64.
    let steps = steps.load(std::sync::atomic::Ordering::Acquire);
    assert!(steps < 6 * 64, "{steps}");
}

#[tokio::test]
async fn prompts_are_shared_under_the_same_adapters_and_under_no_others() {
    let worker = Worker::start().await;
    let cached = async |model: &str| {
        let json = worker
            .server
            .ask(COMPLETIONS, &ask(model, &json!({})))
            .await;
        json["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let kinds = [
        "fake",
        "sql",
        "fake+sql@0.5",
        "tone",
        "fake+sql+tone",
        "fake+tone+sql",
    ];
    for model in kinds {
        assert_eq!(cached(model).await, 0, "{model}");
    }
    for model in kinds
        .into_iter()
        .chain(["fake+sql", "fake+sql@1", "fake+sql@0"])
    {
        assert_eq!(cached(model).await, 32, "{model}");
    }
    // By another name it is the same, as its digest is.
    worker.load("again", "sql").await;
    assert_eq!(cached("again").await, 32);
}

#[tokio::test]
async fn what_is_replaced_under_load_fails_no_request_and_mixes_no_answer() {
    let step_time = Duration::from_millis(1);
    let fake = FakeOptions {
        step_time,
        ..FakeOptions::default()
    };
    let attached = Arc::clone(&fake.attached);
    let worker = Worker::empty(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let contents = ["first", "second", "third"];
    worker.load("sql", "first").await;
    let answers: Vec<String> = contents
        .map(|content| expected(&[(content, 1.0)], 24))
        .into();
    let heads: Vec<String> = contents
        .map(|content| format!("sql={}@1", digest(content)))
        .into();
    let replacing = async {
        for round in 0..30 {
            worker.load("sql", contents[(round + 1) % 3]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let asking = async |streams: bool| {
        let mut seen = [0; 3];
        for round in 0..12 {
            let mut ask = ask(["sql", "fake+sql"][round % 2], &json!({"max_tokens": 24}));
            ask["stream"] = streams.into();
            let response = worker.server.post(COMPLETIONS, &ask).await;
            assert_eq!(response.status(), 200);
            let told = told(&response).unwrap();
            let at = heads.iter().position(|head| *head == told).unwrap();
            let text = response.text().await.unwrap();
            let words = if streams {
                streamed_words(COMPLETIONS, &text)
            } else {
                words(COMPLETIONS, &serde_json::from_str(&text).unwrap())
            };
            assert_eq!(
                words,
                Value::from(answers[at].as_str()).to_string(),
                "{told}"
            );
            seen[at] += 1;
        }
        seen
    };
    let askers = (0..6).map(|at| asking(at % 2 == 0));
    let (seen, ()) = tokio::join!(futures::future::join_all(askers), replacing);
    let several = (0..3)
        .filter(|at| seen.iter().any(|seen| seen[*at] > 0))
        .count();
    assert!(several > 1, "{seen:?}");
    worker
        .server
        .metric_becomes("vllm:num_requests_running", |n| n < 1.0)
        .await;
    // What was replaced is freed with the last request that had it.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while attached.load(std::sync::atomic::Ordering::Acquire) > 1 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_unloaded_answers_those_that_run_to_their_end() {
    let step_time = Duration::from_millis(5);
    let fake = FakeOptions {
        step_time,
        ..FakeOptions::default()
    };
    let worker = Worker::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let long = ask("sql", &json!({"max_tokens": 60, "stream": true}));
    let running = worker.server.post(COMPLETIONS, &long).await;
    let response = worker
        .server
        .post(UNLOAD, &json!({"lora_name": "sql"}))
        .await;
    assert_eq!(response.status(), 200);
    worker
        .server
        .refused(COMPLETIONS, &ask("fake+sql", &json!({})), 404)
        .await;
    worker
        .server
        .refused(COMPLETIONS, &ask("sql", &json!({})), 404)
        .await;
    assert_eq!(told(&running), header(&[("sql", 1.0)]));
    let text = streamed_words(COMPLETIONS, &running.text().await.unwrap());
    assert_eq!(text, Value::from(expected(&[("sql", 1.0)], 60)).to_string());
}

#[tokio::test]
async fn what_has_no_room_comes_back_from_its_files_and_is_a_503_without_them() {
    let limits = Limits {
        resident: 1,
        ..Limits::default()
    };
    let worker = Worker::limited(Setup::default(), limits).await;
    for name in ["sql", "tone"] {
        worker.load(name, name).await;
    }
    for name in ["sql", "tone", "sql", "tone"] {
        let (text, _) = worker.completion(&ask(name, &json!({}))).await;
        assert_eq!(text, expected(&[(name, 1.0)], 12));
    }
    let metric = "vllm:num_gpu_loaded_lora_adapters";
    worker.server.metric_becomes(metric, |n| n < 2.0).await;
    fs::remove_dir_all(worker.root.path().join("sql")).unwrap();
    let lost = ask("fake+sql", &json!({"stream": true}));
    let response = worker.server.post(COMPLETIONS, &lost).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let error = response.json::<Value>().await.unwrap()["error"].take();
    assert_eq!(error["code"], "adapter_unavailable");
    let root = worker.root.path().to_str().unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(!message.contains(root), "{message}");
    // What is known to be lost is served no more, which sends requests to another worker.
    let response = worker.server.post(COMPLETIONS, &lost).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers()["x-hyprstream-missing-adapters"], "sql");
    assert_eq!(worker.server.get("/v1/models/sql").await.status(), 404);
    worker.completion(&ask("tone", &json!({}))).await;
}

#[tokio::test]
async fn adapters_are_listed_as_children_of_their_model() {
    let worker = Worker::start().await;
    let list: Value = worker.server.get("/v1/models").await.json().await.unwrap();
    let ids = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), ["fake", "Tone_1.b", "sql", "tone"]);
    let (model, sql) = (&list["data"][0], &list["data"][2]);
    assert_eq!(model["parent"], Value::Null);
    assert_eq!(sql["parent"], "fake");
    assert!(sql["root"].as_str().unwrap().contains("sql"), "{sql}");
    for same in ["object", "created", "owned_by", "max_model_len"] {
        assert_eq!(sql[same], model[same]);
    }
    assert_eq!(sql["hyprstream"]["digest"], digest("sql"));
    assert_eq!(sql["hyprstream"]["rank"], 8);
    assert_eq!(sql["hyprstream"].get("commit"), None, "{sql}");
    assert_eq!(model["hyprstream"]["commit"], COMMIT);
    for entry in [sql, model] {
        let path = format!("/v1/models/{}", entry["id"].as_str().unwrap());
        let one: Value = worker.server.get(&path).await.json().await.unwrap();
        assert_eq!(one, *entry);
    }
    for unknown in ["nope", "fake+sql", "default/sql"] {
        let status = worker
            .server
            .get(&format!("/v1/models/{unknown}"))
            .await
            .status();
        assert_eq!(status, 404, "{unknown}");
    }
    for model in ["sql", "fake+Tone_1.b@0.5", "fake"] {
        let tokens = json!({"model": model, "prompt": "hi"});
        let tokens = worker.server.ask("/tokenize", &tokens).await["tokens"].take();
        worker
            .server
            .ask("/detokenize", &json!({"model": model, "tokens": tokens}))
            .await;
        let chat = json!({"model": model, "messages": [{"role": "user", "content": "a"}]});
        worker.server.ask("/tokenize", &chat).await;
    }
}

#[tokio::test]
async fn metrics_tell_of_adapters_that_are_idle_and_of_those_in_use() {
    let step_time = Duration::from_millis(5);
    let fake = FakeOptions {
        step_time,
        ..FakeOptions::default()
    };
    let worker = Worker::with(Setup {
        fake,
        ..Setup::default()
    })
    .await;
    let lines = async || {
        let text = worker.server.get("/metrics").await.text().await.unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let find = |lines: &[String], parts: &[&str]| {
        lines
            .iter()
            .any(|line| parts.iter().all(|part| line.contains(part)))
    };
    let idle = lines().await;
    let running = "running_lora_adapters=\"Tone_1.b,sql,tone\"";
    assert!(
        find(
            &idle,
            &["vllm:lora_requests_info{", "max_lora=\"2048\"", running]
        ),
        "{idle:#?}"
    );
    let loaded = [
        "vllm:lora_adapter_loaded{",
        "adapter_name=\"sql\"",
        "rank=\"8\"",
    ];
    assert!(find(&idle, &loaded), "{idle:#?}");
    let server = &worker.server;
    for (name, expected) in [
        ("vllm:num_gpu_loaded_lora_adapters", 3.0),
        ("vllm:max_gpu_lora_adapters", 2048.0),
        (
            "vllm:lora_adapter_load_seconds_count{model_name=\"fake\"}",
            3.0,
        ),
        ("hyprstream_adapter_memory_bytes", 15.0),
        (
            "hyprstream_adapters{model_name=\"fake\",origin=\"request\",state=\"loaded\"}",
            3.0,
        ),
    ] {
        let found = server.metric(name).await;
        assert!((found - expected).abs() < 1e-9, "{name} {found}");
    }
    let seconds = server.metric("vllm:lora_requests_info").await;
    assert!(seconds > 1.7e9, "{seconds}");
    let long = ask("tone", &json!({"max_tokens": 200, "stream": true}));
    let response = server.post(COMPLETIONS, &long).await;
    let busy = lines().await;
    assert!(
        find(&busy, &["running_lora_adapters=\"tone,Tone_1.b,sql\""]),
        "{busy:#?}"
    );
    drop(response);
    server.post(UNLOAD, &json!({"lora_name": "sql"})).await;
    assert!(!find(&lines().await, &["adapter_name=\"sql\""]));
}

#[tokio::test]
async fn load_routes_need_the_workers_key() {
    let api = ApiOptions {
        keys: ApiKeys::new(["secret"]),
        ..ApiOptions::default()
    };
    let worker = Worker::empty(Setup {
        api,
        ..Setup::default()
    })
    .await;
    let load = json!({"lora_name": "sql", "lora_path": worker.write("sql", "sql")});
    for (path, ask) in [(LOAD, &load), (UNLOAD, &json!({"lora_name": "sql"}))] {
        worker.server.refused(path, ask, 401).await;
    }
    assert_eq!(
        worker
            .server
            .status_with_key("/v1/lora_adapters", None)
            .await,
        401
    );
    let url = format!("{}{LOAD}", worker.server.url);
    let request = worker
        .server
        .client
        .post(url)
        .json(&load)
        .bearer_auth("secret");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let key = Some("Bearer secret");
    assert_eq!(
        worker.server.status_with_key("/v1/models/sql", key).await,
        200
    );
}
