//! Adapters of a server: how soon one is loaded, what that does to streams, and many of which few
//! are resident.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    models::{Form, Model, Models},
    ours::{Figure, Ours, Server},
    rows::RANK,
    table::median,
    venv,
};
use crate::{proc, ui::Step};

/// Most adapters that are written.
const MOST: usize = 100;
/// Adapters that are loaded one after the other beside streams.
const LOADED: usize = 8;
/// What loading one may take.
const LOAD_GOAL: Duration = Duration::from_millis(200);
/// What a request among many adapters may wait for a token.
const WAIT_GOAL: Duration = Duration::from_secs(1);
/// Length of prompts, in tokens.
const PROMPT: usize = 64;

/// The folder of adapters for SmolLM2: `00` to `99`, as PEFT writes them, and `00.gguf`.
pub(super) fn folder(models: &Models<'_>, step: &Step) -> Result<PathBuf> {
    let model = models.folder(Model::SmolLm2, step)?;
    models
        .cache
        .ensure(&format!("peers/adapters-rank-{RANK}"), |dir| {
            step.amount("adapters: writes them");
            let python = venv::ensure(models.cache, "peers/gguf-writer", &models.log, |pip| {
                pip(&["install", "--quiet", "numpy>=1.26,<3", "gguf"])
            })?;
            let script = models.cache.join("peers/adapters.py");
            crate::paths::write_atomically(&script, include_str!("adapters.py"))?;
            let mut command = Command::new(python);
            command.arg(script).arg(&model).arg(dir);
            command.args([MOST.to_string(), RANK.to_string()]);
            proc::logged(&mut command, &models.log).context("cannot write adapters")
        })
}

impl Ours {
    /// The time that a load route takes, median of as many as are loaded, the first left out.
    pub(super) fn adapter_load(&self, models: &Models<'_>, step: &Step) -> Result<Figure> {
        let server = self.with_adapters(models, step, LOADED)?;
        let times = (0..=LOADED).map(|index| time_of_load(&server, index % LOADED));
        let times = times.collect::<Result<Vec<_>>>()?;
        server.stop()?;
        let times: Vec<_> = times.iter().skip(1).map(Duration::as_secs_f64).collect();
        Ok(Figure {
            ours: median(&times).context("nothing was loaded")?,
            other: Some(("goal", LOAD_GOAL.as_secs_f64())),
            report: json!(times),
            ..Figure::default()
        })
    }

    /// The 99th percentile between tokens of streams while adapters are loaded and unloaded all the
    /// time, and without.
    pub(super) fn adapter_loads(
        &self,
        models: &Models<'_>,
        step: &Step,
        [streams, tokens]: [usize; 2],
    ) -> Result<Figure> {
        let server = self.with_adapters(models, step, LOADED)?;
        let wave = |seed: &str| {
            let requests = streams.to_string();
            let more = ["--requests", &requests, "--concurrency", &requests];
            self.load(&server, &more, [PROMPT, tokens], seed)
        };
        // Memory that is touched for the first time is paid for here.
        wave("1")?;
        let without = wave("2")?;
        let is_over = AtomicBool::new(false);
        let (with, loads) = thread::scope(|scope| {
            let loads = scope.spawn(|| {
                let mut times = Vec::new();
                while !is_over.load(Relaxed) {
                    times.push(time_of_load(&server, times.len() % LOADED)?.as_secs_f64());
                }
                Ok::<_, anyhow::Error>(times)
            });
            let with = wave("3");
            is_over.store(true, Relaxed);
            let loads = loads.join().unwrap_or_else(|_| Ok(Vec::new()));
            Ok::<_, anyhow::Error>((with?, loads?))
        })?;
        ensure!(loads.len() > 1, "no adapter was loaded meanwhile");
        server.stop()?;
        let p99 = |report: &Value| {
            let gap = &report["inter_token_seconds"]["p99"];
            gap.as_f64().context("the load told no gap")
        };
        Ok(Figure {
            ours: p99(&with)?,
            other: Some(("without loads", p99(&without)?)),
            report: json!({"without": without, "with": with, "loads": loads}),
            ..Figure::default()
        })
    }

    /// The longest wait for a token of requests that ask for the model and many adapters by lot.
    pub(super) fn adapter_crowd(
        &self,
        models: &Models<'_>,
        step: &Step,
        [adapters, resident, requests, streams]: [usize; 4],
    ) -> Result<Figure> {
        let server = self.with_adapters(models, step, resident)?;
        for index in 0..adapters {
            post(&server, "load", &request(index))?;
        }
        let [requests, streams] = [requests, streams].map(|number| number.to_string());
        let more = [
            "--requests",
            &requests,
            "--concurrency",
            &streams,
            "--every-model",
        ];
        let report = self.load(&server, &more, [PROMPT / 2, 8], "1")?;
        server.stop()?;
        let longest = |name: &str| report[name]["max"].as_f64().unwrap_or(f64::NAN);
        Ok(Figure {
            ours: longest("first_token_seconds").max(longest("inter_token_seconds")),
            other: Some(("goal", WAIT_GOAL.as_secs_f64())),
            report,
            ..Figure::default()
        })
    }

    /// A server of SmolLM2 that loads adapters on request and has so many resident.
    fn with_adapters(&self, models: &Models<'_>, step: &Step, resident: usize) -> Result<Server> {
        let model = models.folder(Model::SmolLm2, step)?;
        let root = folder(models, step)?;
        let mut command = self.worker("serve", &model, Form::Bf16);
        command.arg("--adapter-root").arg(root);
        command.args(["--max-adapters", &resident.to_string()]);
        Server::start(command, &self.log)
    }
}

fn request(index: usize) -> Value {
    json!({"lora_name": format!("a{index:02}"), "lora_path": format!("{index:02}")})
}

/// Loads an adapter, says how long that took, and unloads it.
fn time_of_load(server: &Server, index: usize) -> Result<Duration> {
    let request = request(index);
    let since = Instant::now();
    post(server, "load", &request)?;
    let took = since.elapsed();
    let name = json!({"lora_name": request["lora_name"]});
    post(server, "unload", &name)?;
    Ok(took)
}

fn post(server: &Server, verb: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", server.port))?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    write!(
        stream,
        "POST /v1/{verb}_lora_adapter HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.1 200 "),
        "the server does not {verb} {body}: {answer}"
    );
    Ok(())
}
