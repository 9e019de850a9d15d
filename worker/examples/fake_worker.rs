//! The worker's HTTP side on a model that computes nothing: for suites about requests, not answers.
//!
//! It answers as `serve` does, within milliseconds, needs neither weights nor libtorch, and
//! ends on SIGTERM. Its flags are those of `serve`; `--model` is not read. Any file is an adapter,
//! whose answers are others.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Parser;
use hyprstream_engine::{
    ModelFiles,
    fake::{self, FakeBackend, FakeOptions},
};
use hyprstream_worker::{
    Args, Command, ServeArgs,
    adapters::{self, Adapters, fake::FakePacker},
    backend,
    serve::listen,
    server::{App, Identity, ServerOptions, run},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Cache blocks of 16 tokens, and the most tokens of prompt and answer.
const BLOCKS: usize = 4096;
const MAX_POSITIONS: usize = 4096;
/// Long enough for requests to be in flight together.
const STEP_TIME: Duration = Duration::from_millis(1);
/// As ChatML, so that roles and generation prompts show, with tools as Hermes takes them.
const TEMPLATE: &str = "{% if tools %}Call tools by <tool_call>{\"name\": .., \"arguments\": ..}\
    </tool_call>: {{ tools|tojson }}<|im_end|>{% endif %}{% for m in messages %}{{ m.role }}: \
    {% if m.content %}{{ m.content }}{% endif %}{% for call in m.tool_calls or [] %}<tool_call>\
    {{ call.function|tojson }}</tool_call>{% endfor %}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let Command::Serve(args) = Args::parse().command else {
        bail!("only `serve` is there");
    };
    hyprstream_telemetry::init_logs(&args.logs.log, args.logs.log_format)
        .map_err(anyhow::Error::msg)?;
    serve(*args).await
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let identity = Identity {
        name: args.name.clone().unwrap_or_else(|| "fake".to_owned()),
        namespace: args.namespace.clone(),
        provenance: None,
    };
    let app = Arc::new(App::new(identity.clone(), args.api.options()?)?);
    let model = Box::new(FakeBackend::new(
        BLOCKS,
        MAX_POSITIONS,
        FakeOptions {
            may_end: true,
            step_time: STEP_TIME,
            ..FakeOptions::default()
        },
    ));
    let mut loaded = backend::start(model, files()?, &args.model, args.max_queue, app.observer())?;
    let spec = loaded.engine.spec();
    let options = adapters::Options {
        repository: None,
        ..args
            .adapters
            .options(&args.model.model, &identity, spec, None)
    };
    let packer = Arc::new(FakePacker::default());
    loaded.adapters = Adapters::new(loaded.engine.clone(), packer, options);
    app.set_ready(loaded);
    let listeners = listen(&args).await?;
    tracing::info!(address = %listeners.places()?, "ready");
    let options = ServerOptions {
        drain_timeout: args.drain_timeout,
        drain_delay: args.drain_delay,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    run(listeners, app, options, async move {
        terminate.recv().await;
    })
    .await
    .context("the server failed")
}

/// Tokenizer, template and defaults, read as those of a real model are.
fn files() -> anyhow::Result<ModelFiles> {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, value: serde_json::Value| {
        std::fs::write(dir.path().join(name), value.to_string())
    };
    write("config.json", json!({"eos_token_id": fake::EOS}))?;
    write("tokenizer.json", fake::tokenizer_json())?;
    write(
        "tokenizer_config.json",
        json!({"chat_template": TEMPLATE, "eos_token": "</s>", "bos_token": "<s>"}),
    )?;
    Ok(ModelFiles::load(dir.path())?)
}
