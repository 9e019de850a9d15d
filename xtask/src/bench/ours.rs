//! Our worker: built, and measured by its own `bench`.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    models::{Form, Model, Models},
    rows::{Part, RANK, Work},
    table::median,
};
use crate::{proc, ui::Step};

/// Repetitions in one run; their median is the figure of the run.
const REPEAT: &str = "3";
/// How long a server may take to be ready, and to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// The worker's program and how it is run.
pub(super) struct Ours {
    pub(super) program: PathBuf,
    pub(super) threads: usize,
    pub(super) log: PathBuf,
}

/// What one run told.
#[derive(Clone, Debug, Default)]
pub(super) struct Figure {
    pub(super) ours: f64,
    /// What reading memory allows.
    pub(super) limit: Option<f64>,
    /// Our own figure in another way, for work that is compared with that.
    pub(super) other: Option<(&'static str, f64)>,
    /// What the worker told, to keep.
    pub(super) report: Value,
}

impl Ours {
    /// Measures a model.
    pub(super) fn measure(
        &self,
        models: &Models<'_>,
        model: Model,
        form: Form,
        work: Work,
        step: &Step,
    ) -> Result<Figure> {
        let folder = models.folder(model, step)?;
        let model = folder.as_path();
        match work {
            Work::Adapters {
                adapters,
                part,
                batch,
            } => self.adapters(model, form, part, [adapters, batch]),
            Work::AdapterLoad => self.adapter_load(models, step),
            Work::AdapterLoads { streams, tokens } => {
                self.adapter_loads(models, step, [streams, tokens])
            }
            Work::AdapterCrowd {
                adapters,
                resident,
                requests,
                streams,
            } => self.adapter_crowd(models, step, [adapters, resident, requests, streams]),
            Work::Prefill { tokens } => {
                let tokens = tokens.to_string();
                let report = self.bench(
                    model,
                    form,
                    &[
                        "--prompt-tokens",
                        &tokens,
                        "--gen-tokens",
                        "1",
                        "--batch",
                        "1",
                    ],
                )?;
                Ok(Figure {
                    ours: result(&report, "prefill_tokens_per_second")?,
                    report,
                    ..Figure::default()
                })
            }
            Work::Decode {
                context,
                tokens,
                batch,
            } => self.decode(model, form, [context, tokens, batch]),
            Work::Http {
                streams,
                prompt,
                tokens,
            } => self.http(model, form, [streams, prompt, tokens]),
            Work::SharedPrefix { shared, requests } => {
                let (shared, requests) = (shared.to_string(), requests.to_string());
                let report = self.bench(
                    model,
                    form,
                    &["--shared-prefix", &shared, "--batch", &requests],
                )?;
                let without = result(&report, "without_cache_seconds")?;
                Ok(Figure {
                    ours: result(&report, "warm_seconds")?,
                    other: Some(("without cache", without)),
                    report,
                    ..Figure::default()
                })
            }
        }
    }

    fn decode(&self, model: &Path, form: Form, sizes: [usize; 3]) -> Result<Figure> {
        let [context, tokens, batch] = sizes.map(|size| size.to_string());
        let report = self.bench(
            model,
            form,
            &[
                "--context",
                &context,
                "--gen-tokens",
                &tokens,
                "--batch",
                &batch,
            ],
        )?;
        Ok(Figure {
            ours: result(&report, "decode_tokens_per_second")?,
            limit: result(&report, "decode_limit_tokens_per_second").ok(),
            report,
            ..Figure::default()
        })
    }

    /// Streams through a server, and the same requests without one.
    fn http(&self, model: &Path, form: Form, sizes: [usize; 3]) -> Result<Figure> {
        let [streams, prompt, tokens] = sizes;
        let sizes = [prompt, tokens];
        let [streams, tokens] = [streams, tokens].map(|size| size.to_string());
        let server = Server::start(self.worker("serve", model, form), &self.log)?;
        // Every wave has prompts of its own, which no cache has seen.
        let load = |requests: &str, seed: &str| {
            let more = ["--requests", requests, "--concurrency", &streams];
            self.load(&server, &more, sizes, seed)
        };
        // Memory that is touched for the first time is paid for here.
        load("1", "1")?;
        let waves = [
            load(&streams, "2")?,
            load(&streams, "3")?,
            load(&streams, "4")?,
        ];
        server.stop()?;
        let speeds = waves
            .each_ref()
            .map(|wave| wave["output_tokens_per_second"].as_f64());
        // Words are not quite tokens, and a chat has some more: the same number without HTTP.
        let prompt = waves[2]["prompt_tokens_mean"]
            .as_f64()
            .context("the server did not count its prompts")?;
        let prompt = format!("{prompt:.0}");
        let direct = self.bench(
            model,
            form,
            &[
                "--prompt-tokens",
                &prompt,
                "--gen-tokens",
                &tokens,
                "--batch",
                &streams,
            ],
        )?;
        Ok(Figure {
            ours: median(&speeds.into_iter().flatten().collect::<Vec<_>>())
                .context("the server's load told no speed")?,
            other: Some(("without HTTP", result(&direct, "output_tokens_per_second")?)),
            limit: None,
            report: serde_json::json!({"http": waves, "direct": direct}),
        })
    }

    /// Loads a server with prompts and answers of so many tokens. No request may fail.
    pub(super) fn load(
        &self,
        server: &Server,
        more: &[&str],
        [prompt, tokens]: [usize; 2],
        seed: &str,
    ) -> Result<Value> {
        let [prompt, tokens] = [prompt, tokens].map(|size| size.to_string());
        let mut command = Command::new(&self.program);
        command.args(["bench", "--json", "--log", "error", "--serve", &server.url]);
        command.args(["--prompt-tokens", &prompt, "--gen-tokens", &tokens]);
        command.args(["--seed", seed]).args(more);
        let report = json(&proc::output(&mut command)?)?;
        ensure!(
            report["failed"] == 0,
            "requests failed: {}",
            report["errors"]
        );
        Ok(report)
    }

    fn adapters(
        &self,
        model: &Path,
        form: Form,
        part: Part,
        [adapters, batch]: [usize; 2],
    ) -> Result<Figure> {
        let (name, prompt, tokens) = match part {
            Part::Prefill { tokens } => ("prefill", tokens, 1),
            Part::Decode { context, tokens } => ("decode", context, tokens),
        };
        let sizes = [adapters, RANK, batch, prompt, tokens].map(|size| size.to_string());
        let flags = [
            "--adapters",
            "--rank",
            "--batch",
            "--prompt-tokens",
            "--gen-tokens",
        ];
        let more = flags.iter().copied().zip(sizes.iter().map(String::as_str));
        let more: Vec<_> = more.flat_map(|(flag, size)| [flag, size]).collect();
        let report = self.bench(model, form, &more)?;
        let figure = |what: &str| {
            let figure = &report["results"][0][name][what];
            figure
                .as_f64()
                .with_context(|| format!("the worker told no {what} of {name}"))
        };
        let ours = figure("with_tokens_per_second")?;
        // The ratio is that of what ran side by side.
        let without = ours / figure("ratio")?;
        Ok(Figure {
            ours,
            other: Some(("without adapters", without)),
            report,
            ..Figure::default()
        })
    }

    fn bench(&self, model: &Path, form: Form, more: &[&str]) -> Result<Value> {
        let mut command = self.worker("bench", model, form);
        json(&proc::output(
            command.args(["--json", "--repeat", REPEAT]).args(more),
        )?)
    }

    pub(super) fn worker(&self, verb: &str, model: &Path, form: Form) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([verb, "--log", "error", "--device", "cpu"])
            .args(["--quantization", form.ours()])
            .args(["--threads", &self.threads.to_string(), "--model"])
            .arg(model);
        command
    }
}

/// A worker that serves on a port of this machine.
pub(super) struct Server {
    process: Child,
    pub(super) port: u16,
    url: String,
}

impl Server {
    /// Starts it and waits until it is ready.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        // The port is free now, and nobody else is given it soon.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let process = command
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .arg("--termination-log")
            .arg(log.with_extension("last-words"))
            .stdin(Stdio::null())
            .stdout(proc::open_log(log)?)
            .stderr(proc::open_log(log)?)
            .spawn()
            .context("the worker cannot be started")?;
        let mut server = Self {
            process,
            port,
            url: format!("http://127.0.0.1:{port}"),
        };
        let since = Instant::now();
        while !is_ready(port) {
            if let Some(status) = server.process.try_wait()? {
                bail!("the worker ended with {status}\n{}", proc::tail_of(log));
            }
            ensure!(
                since.elapsed() < PATIENCE,
                "the worker is not ready in a minute"
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    pub(super) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        let since = Instant::now();
        while self.process.try_wait()?.is_none() {
            ensure!(since.elapsed() < PATIENCE, "the worker does not end");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Whether `/ready` answers 200.
fn is_ready(port: u16) -> bool {
    use std::io::{Read as _, Write as _};

    let ask = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(&head == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

fn json(text: &str) -> Result<Value> {
    let line = text.lines().rfind(|line| line.starts_with('{'));
    let line = line.context("the worker told nothing")?;
    serde_json::from_str(line).context("the worker's report is no JSON")
}

/// A figure of the first and only result.
fn result(report: &Value, name: &str) -> Result<f64> {
    report["results"][0][name]
        .as_f64()
        .with_context(|| format!("the worker told no {name}"))
}
