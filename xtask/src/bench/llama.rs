//! llama.cpp: built from the sources in a Python package, and measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    models::{Form, Model, Models},
    rows::{Part, Work},
    venv,
};
use crate::{
    paths::Cache,
    proc,
    ui::Step,
    versions::{LLAMA_CPP, Wheel},
};

/// The only program that measures and takes adapters.
const COMPLETION: &str = "llama-completion";
/// Programs that are built.
const PROGRAMS: [&str; 4] = [
    "llama-bench",
    "llama-batched-bench",
    COMPLETION,
    "llama-quantize",
];
/// What is not built: servers, tests, anything that needs the network.
const OPTIONS: [&str; 8] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_UI=OFF",
];
/// Flags for processors whose AMX it cannot use.
const WITHOUT_AMX: &str = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16";
/// Repetitions in one run of a program; their median is the figure of the run.
const REPEAT: usize = 3;

/// How long one run may take, which is far more than it does. Its threads meet at barriers some
/// hundred times a token, and were seen to stand still there on a machine that others used too:
/// then it is tried once more.
const TIME_LIMIT_SECONDS: &str = "180";

/// A build that works on this machine.
pub(super) struct Llama {
    programs: PathBuf,
    threads: usize,
    /// What is special about it.
    pub(super) note: Option<String>,
}

impl Llama {
    /// Builds it on first use.
    pub(super) fn ensure(
        models: &Models<'_>,
        threads: usize,
        jobs: usize,
        step: &Step,
    ) -> Result<Self> {
        let cache = models.cache;
        let log = cache.join("log/llama.log");
        step.amount("llama.cpp: sources");
        let source = source(cache, &log)?;
        let mut llama = Self {
            programs: build(cache, &source, "", jobs, &log, step)?,
            threads,
            note: None,
        };
        // Its AMX code crashes on some virtual machines that offer AMX.
        if let Err(error) = llama.try_out(models, step) {
            step.note("llama.cpp crashes as it was built for this processor: built without AMX");
            llama.programs = build(cache, &source, WITHOUT_AMX, jobs, &log, step)?;
            llama.note = Some("built without AMX, which crashes here".to_owned());
            llama
                .try_out(models, step)
                .with_context(|| format!("llama.cpp does not run, with AMX: {error:#}"))?;
        }
        Ok(llama)
    }

    fn try_out(&self, models: &Models<'_>, step: &Step) -> Result<()> {
        let work = Work::Prefill { tokens: 64 };
        self.measure(models, Model::SmolLm2, Form::Int8, work, step)
            .map(drop)
    }

    /// Tokens a second.
    pub(super) fn measure(
        &self,
        models: &Models<'_>,
        model: Model,
        form: Form,
        work: Work,
        step: &Step,
    ) -> Result<f64> {
        let file = models.gguf(model, form, &self.programs.join("llama-quantize"), step)?;
        let threads = self.threads.to_string();
        let run = |program: &str, arguments: &[&str]| {
            let once = || {
                // It tells its figures on the standard error.
                let mut command = if program == COMPLETION {
                    let mut shell = super::peer("sh");
                    shell.args(["-c", "exec \"$@\" 2>&1", "sh", "timeout"]);
                    shell
                } else {
                    super::peer("timeout")
                };
                command.args(["--kill-after=5", TIME_LIMIT_SECONDS]);
                command.arg(self.programs.join(program));
                command.arg("-m").arg(&file).args(["-t", &threads]);
                proc::output(command.args(["-ngl", "0", "-fa", "on"]).args(arguments))
            };
            once().or_else(|_| once())
        };
        match work {
            Work::Prefill { tokens } => {
                let (tokens, repeat) = (tokens.to_string(), REPEAT.to_string());
                let arguments = ["-p", &tokens, "-n", "0", "-r", &repeat, "-o", "jsonl"];
                prefill_figure(&run("llama-bench", &arguments)?)
            }
            Work::Decode {
                context,
                tokens,
                batch,
            } => {
                // Room for each sequence in whole units of its cache.
                let room = ((context + tokens).next_multiple_of(256) * batch).to_string();
                let prompts = vec![context.to_string(); REPEAT].join(",");
                let (tokens, batch) = (tokens.to_string(), batch.to_string());
                let text = run(
                    "llama-batched-bench",
                    &[
                        "-c",
                        &room,
                        "-npp",
                        &prompts,
                        "-ntg",
                        &tokens,
                        "-npl",
                        &batch,
                        "--output-format",
                        "jsonl",
                    ],
                )?;
                decode_figure(&text)
            }
            Work::Adapters {
                adapters: 1,
                part: Part::Decode { context, tokens },
                batch: 1,
            } => {
                let adapter = super::adapters::folder(models, step)?.join("00.gguf");
                let adapter = adapter.to_str().context("the cache has an odd name")?;
                // Its other programs for measurements take no adapter. A word is a token here.
                let (prompt, tokens) = (" the".repeat(context), tokens.to_string());
                let arguments = ["--lora", adapter, "-p", &prompt, "-n", &tokens];
                let more = ["--ignore-eos", "-no-cnv", "--temp", "0", "--perf"];
                let samples = (0..REPEAT).map(|_| {
                    let text = run(COMPLETION, &[&arguments[..], &more].concat())?;
                    completion_figure(&text)
                });
                let samples = samples.collect::<Result<Vec<_>>>()?;
                super::table::median(&samples).context("llama-completion told nothing")
            }
            _ => {
                bail!("llama.cpp is not measured on {}", work.describe())
            }
        }
    }
}

/// The sources, out of the package that carries them.
fn source(cache: &Cache, log: &Path) -> Result<PathBuf> {
    let Wheel { package, version } = LLAMA_CPP;
    let name = format!("peers/{package}-{version}");
    let dir = cache.ensure(&name, |dir| {
        proc::logged(
            Command::new("python3")
                .args(["-m", "pip", "download", "--no-deps", "--no-binary", package])
                .arg("--dest")
                .arg(dir)
                .arg(format!("{package}=={version}")),
            log,
        )
        .with_context(|| format!("cannot download {package} {version}"))?;
        let archive = fs::read_dir(dir)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "gz"))
            .context("pip left no archive")?;
        proc::logged(
            Command::new("tar")
                .args(["--extract", "--gzip", "--strip-components=1", "--file"])
                .arg(&archive)
                .arg("--directory")
                .arg(dir),
            log,
        )?;
        Ok(fs::remove_file(archive)?)
    })?;
    Ok(dir.join("vendor/llama.cpp"))
}

/// Builds the programs for this machine's processor and returns their folder. What was built is
/// kept, so that an interrupted build goes on.
fn build(
    cache: &Cache,
    source: &Path,
    flags: &str,
    jobs: usize,
    log: &Path,
    step: &Step,
) -> Result<PathBuf> {
    let name = format!("peers/llama-build-{}", machine(flags)?);
    let folder = cache.join(&name);
    let programs = folder.join("bin");
    let _lock = cache.lock(&name)?;
    if folder.join("complete").is_file() {
        return Ok(programs);
    }
    let tools = tools(cache, log)?;
    let cmake = || {
        let mut command = Command::new(tools.join("cmake"));
        // cmake looks for ninja on the PATH.
        if let Some(path) = std::env::var_os("PATH") {
            let dirs = std::iter::once(tools.clone()).chain(std::env::split_paths(&path));
            if let Ok(path) = std::env::join_paths(dirs) {
                command.env("PATH", path);
            }
        }
        command
    };
    step.amount("llama.cpp: configures");
    proc::logged(
        cmake()
            .args(["-G", "Ninja", "-S"])
            .arg(source)
            .arg("-B")
            .arg(&folder)
            .args(OPTIONS)
            .args([
                format!("-DCMAKE_C_FLAGS={flags}"),
                format!("-DCMAKE_CXX_FLAGS={flags}"),
            ]),
        log,
    )?;
    step.amount("llama.cpp: compiles, some minutes");
    proc::logged(
        cmake()
            .arg("--build")
            .arg(&folder)
            .args(["--parallel", &jobs.to_string(), "--target"])
            .args(PROGRAMS),
        log,
    )?;
    fs::write(folder.join("complete"), "")?;
    Ok(programs)
}

/// The folder with cmake and ninja.
fn tools(cache: &Cache, log: &Path) -> Result<PathBuf> {
    let python = venv::ensure(cache, "peers/cmake", log, |pip| {
        pip(&["install", "--quiet", "cmake>=3.28,<5", "ninja"])
    })?;
    Ok(python.parent().context("Python lies nowhere")?.to_owned())
}

/// Names a processor and compiler flags: what is built for one may not run on another.
fn machine(flags: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let mut digest = Sha256::new();
    for wanted in ["model name", "flags"] {
        let line = text.lines().find(|line| line.starts_with(wanted));
        digest.update(line.unwrap_or_default());
    }
    digest.update(flags);
    digest.update(LLAMA_CPP.version);
    Ok(hex::encode(&digest.finalize()[..6]))
}

fn prefill_figure(text: &str) -> Result<f64> {
    let run = json_lines(text).find(|run| run["n_gen"] == 0);
    let run = run.with_context(|| format!("llama-bench wrote no figure: {text}"))?;
    let samples: Vec<f64> = run["samples_ts"]
        .as_array()
        .map(|samples| samples.iter().filter_map(Value::as_f64).collect())
        .unwrap_or_default();
    super::table::median(&samples)
        .or(run["avg_ts"].as_f64())
        .context("llama-bench told no speed")
}

fn decode_figure(text: &str) -> Result<f64> {
    let samples: Vec<f64> = json_lines(text)
        .filter_map(|run| run["speed_tg"].as_f64())
        .collect();
    super::table::median(&samples)
        .with_context(|| format!("llama-batched-bench wrote no figure: {text}"))
}

/// The speed of the line `eval time = ... ( ... ms per token, 99.99 tokens per second)`.
fn completion_figure(text: &str) -> Result<f64> {
    let line = text
        .lines()
        .find(|line| line.contains(" eval time =") && !line.contains("prompt"));
    line.and_then(|line| line.rsplit(", ").next())
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("llama-completion told no speed: {text}"))
}

fn json_lines(text: &str) -> impl Iterator<Item = Value> + '_ {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_other_lines() {
        let text = "warn\n{\"n_gen\": 0, \"avg_ts\": 9.0, \"samples_ts\": [ 1.0, 5.0, 2.0 ]}\n";
        assert!((prefill_figure(text).unwrap() - 2.0).abs() < 1e-9);
        let text = "x\n{\"pp\": 8, \"speed_tg\": 3.5}\n{\"pp\": 8, \"speed_tg\": 4.5}\n";
        assert!((decode_figure(text).unwrap() - 4.0).abs() < 1e-9);
        assert!(decode_figure("").is_err());
        let text = "prompt eval time =  50.69 ms /   128 tokens (  0.40 ms per token,  2525.25 tokens per second)\n\
                    llama_perf_context_print:        eval time =    812.50 ms /    63 runs   (   12.90 ms per token,    77.54 tokens per second)\n";
        assert!((completion_figure(text).unwrap() - 77.54).abs() < 1e-9);
        assert!(completion_figure("prompt eval time").is_err());
    }
}
