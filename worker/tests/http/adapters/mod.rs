//! Answers with adapters, on a model whose answers say which it was.

mod answers;
mod changes;
mod listed;
mod load_routes;
mod refusals;

use std::{fmt::Write, fs, sync::Arc, time::Duration};

use hyprstream_engine::fake::{self, FakeAdapter, FakeOptions};
use hyprstream_worker::adapters::{
    Limits, Options,
    fake::{FakePacker, adapter_of},
};
use reqwest::Response;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";
const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";
const ADAPTERS: &str = "x-hyprstream-adapters";

/// A worker that loads adapters from below a folder.
struct Worker {
    server: Server,
    root: TempDir,
}

impl Worker {
    /// With the adapters `sql`, `tone` and `Tone_1.b`, loaded.
    async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup) -> Self {
        let worker = Self::empty(setup).await;
        for name in ["sql", "tone", "Tone_1.b"] {
            worker.load(name, name).await;
        }
        worker
    }

    async fn empty(setup: Setup) -> Self {
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
    fn write(&self, folder: &str, content: &str) -> String {
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

/// A model that takes so long for each step, so that requests can be met while they run.
fn slow(step_time: Duration) -> Setup {
    Setup {
        fake: FakeOptions {
            step_time,
            ..FakeOptions::default()
        },
        ..Setup::default()
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
