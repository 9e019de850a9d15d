//! What the HTTP side costs for each streamed token.
//!
//! ```text
//! cargo run --release -p hyprstream-worker --example stream_cost -- 32 500
//! ```
//!
//! A model that computes nothing answers so many streams of so many tokens over loopback. The
//! processor time of the whole process is told for each token: engine, server and the client,
//! which only reads. An engine without HTTP is measured beside it, so that the difference is what
//! the server and the client take.

use std::{error::Error, sync::Arc, time::Duration};

use futures::{StreamExt, future::try_join_all};
use hyprstream_engine::{
    Backend, BackendError, Engine, EngineConfig, GenerationDefaults, ModelFiles, ModelSpec,
    NoObserver, Request, StepBatch, StepLogits, StopRules,
    fake::{self, FakeBackend, FakeOptions, VOCAB_SIZE},
};
use hyprstream_worker::{
    adapters::Adapters,
    backend::Loaded,
    server::{ApiOptions, App, Identity, ServerOptions, run},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Always the letter `A`, at the cost of a row of logits.
struct Flat {
    spec: ModelSpec,
    logits: Vec<f32>,
}

impl Flat {
    fn new() -> Self {
        let spec = FakeBackend::new(65_536, 12_000, FakeOptions::default())
            .spec()
            .clone();
        let logits = Vec::new();
        Self { spec, logits }
    }
}

impl Backend for Flat {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError> {
        // As many steps a second as a small model makes.
        std::thread::sleep(Duration::from_millis(5));
        self.logits.clear();
        self.logits.resize(batch.num_rows() * VOCAB_SIZE, 0.0);
        for row in self.logits.chunks_exact_mut(VOCAB_SIZE) {
            row[68] = 50.0;
        }
        StepLogits::new(&mut self.logits, VOCAB_SIZE)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let streams = args.next().transpose()?.unwrap_or(32);
    let tokens = args.next().transpose()?.unwrap_or(500);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let alone = engine_alone(streams, tokens).await?;
        let served = through_http(streams, tokens).await?;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / (streams * tokens) as f64;
        println!(
            "{streams} streams of {tokens} tokens, processor time for each token: engine {:.1} us, \
             with server and client {:.1} us, difference {:.1} us",
            each(alone),
            each(served),
            each(served) - each(alone)
        );
        Ok(())
    })
}

async fn engine_alone(streams: usize, tokens: usize) -> Result<Duration, Box<dyn Error>> {
    let config = EngineConfig {
        eos: vec![fake::EOS],
        ..EngineConfig::default()
    };
    let tokenizer = Arc::new(fake::tokenizer());
    let engine = Engine::start(
        Box::new(Flat::new()),
        tokenizer,
        config,
        Arc::new(NoObserver),
    )?;
    let before = processor_time()?;
    let answers = (0..streams).map(|_| {
        let stop = StopRules {
            max_tokens: Some(tokens),
            ..StopRules::default()
        };
        let prompt = vec![70; 8];
        engine.submit(Request {
            prompt,
            stop,
            ..Request::default()
        })
    });
    let answers = answers.collect::<Result<Vec<_>, _>>()?;
    let drained = answers
        .into_iter()
        .map(|mut answer| async move { while answer.next().await.is_some() {} });
    futures::future::join_all(drained).await;
    Ok(processor_time()?.saturating_sub(before))
}

async fn through_http(streams: usize, tokens: usize) -> Result<Duration, Box<dyn Error>> {
    let identity = Identity {
        name: "fake".to_owned(),
        namespace: None,
        provenance: None,
    };
    let app = Arc::new(App::new(identity, ApiOptions::default())?);
    let tokenizer = Arc::new(fake::tokenizer());
    let config = EngineConfig {
        eos: vec![fake::EOS],
        ..EngineConfig::default()
    };
    let engine = Engine::start(
        Box::new(Flat::new()),
        Arc::clone(&tokenizer),
        config,
        app.observer(),
    )?;
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let files = ModelFiles {
        tokenizer: fake::tokenizer(),
        template: Some(hyprstream_engine::ChatTemplate::new(template, vec![])?),
        defaults: GenerationDefaults::default(),
    };
    app.set_ready(Loaded {
        engine,
        tokenizer,
        template: files.template,
        defaults: files.defaults,
        adapters: Adapters::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let options = ServerOptions {
        drain_timeout: Duration::from_secs(1),
        drain_delay: Duration::ZERO,
    };
    tokio::spawn(run(listener, app, options, std::future::pending()));
    let body = format!(
        r#"{{"model":"fake","messages":[{{"role":"user","content":"hello"}}],"stream":true,"max_tokens":{tokens}}}"#
    );
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
        content-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let before = processor_time()?;
    let clients = (0..streams).map(|_| async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await?;
        let whole = read.windows(6).any(|window| window == b"[DONE]");
        whole
            .then_some(())
            .ok_or_else(|| std::io::Error::other("an answer is not whole"))
    });
    try_join_all(clients).await?;
    Ok(processor_time()?.saturating_sub(before))
}

/// Processor time of this process.
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    // https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: fields 14 and 15, in ticks of
    // which there are 100 a second on Linux.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("no stat")?.1;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}
