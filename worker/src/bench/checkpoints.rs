//! Measures what checkpoints of a job cost, and how soon a job that was killed goes on: of this very
//! program, as `train` is run by people and pods.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::ValueEnum as _;
use serde::Deserialize;
use serde_json::json;

use super::{
    BenchArgs, median,
    report::{CheckpointReport, Spread},
};

/// More steps than are ever done: the job is killed.
const STEPS: u64 = 1_000_000;
/// Lines that are shown of a program that failed.
const SHOWN: usize = 5;

/// Trains in a new folder below `folder` with a checkpoint after each step, kills the program after
/// `--repeat` of them, starts it again and waits for its first new step. The folder is removed.
pub(super) fn measure(
    folder: &Path,
    tokens: usize,
    vocabulary: u32,
    args: &BenchArgs,
) -> anyhow::Result<CheckpointReport> {
    let place = Place::make(folder)?;
    let job = place.job(tokens, vocabulary, args)?;
    let mut costs: Vec<Said> = Vec::new();
    let mut running = Running::start(&job, args)?;
    while costs.len() < args.repeat {
        let said = running.hear()?;
        if said.message == "a checkpoint is written" {
            costs.push(said);
        }
    }
    running.kill()?;
    let last = costs.last().and_then(|said| said.step).unwrap_or_default();

    let mut again = Running::start(&job, args)?;
    let mut resumed_step = None;
    let first_step = loop {
        let said = again.hear()?;
        match said.message.as_str() {
            "goes on from a checkpoint" => resumed_step = said.step,
            "trained" => break said.step,
            _ => {}
        }
    };
    let resume_seconds = again.began.elapsed().as_secs_f64();
    again.kill()?;
    // It may have done more before the kill came.
    let Some(resumed_step) = resumed_step.filter(|step| *step >= last) else {
        bail!("the program that was killed after step {last} began anew");
    };
    let spread = |of: fn(&Said) -> f64| Spread::of(costs.iter().map(of).collect());
    Ok(CheckpointReport {
        bytes: costs.last().map_or(0, |said| said.bytes),
        count: costs.len(),
        stood_still_ms: spread(|said| said.stood_still_ms),
        waited_ms: spread(|said| said.waited_ms),
        on_disk_ms: spread(|said| said.took_ms),
        resumed_step,
        first_step: first_step.unwrap_or_default(),
        resume_seconds,
    })
}

impl Spread {
    fn of(values: Vec<f64>) -> Self {
        Self {
            max: values.iter().copied().fold(0.0, f64::max),
            median: median(values).unwrap_or_default(),
        }
    }
}

/// A line of the program's log, as far as it is of use here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    message: String,
    step: Option<u64>,
    bytes: u64,
    stood_still_ms: f64,
    waited_ms: f64,
    took_ms: f64,
}

/// A folder that is removed in the end.
struct Place(PathBuf);

impl Place {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.canonicalize();
        let folder = folder.context("--checkpoints must be a folder that is there")?;
        let path = folder.join(format!("hyprstream-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }

    /// Writes a job on random tokens, and returns its file.
    fn job(&self, tokens: usize, vocabulary: u32, args: &BenchArgs) -> anyhow::Result<PathBuf> {
        let rows = *args.batch.first().context("--batch is empty")?;
        let mut random = fastrand::Rng::with_seed(args.seed);
        let mut lines = String::new();
        for _ in 0..4 * rows {
            let ids: Vec<u32> = (0..tokens).map(|_| random.u32(..vocabulary)).collect();
            lines += &json!({"input_ids": ids}).to_string();
            lines.push('\n');
        }
        let data = self.0.join("data.jsonl");
        let model = args.model.model.canonicalize().context("--model")?;
        let job = json!({
            "model": model,
            "data": {"path": data, "maxLength": tokens},
            "output": self.0.join("out"),
            "adapter": {"rank": args.rank, "alpha": 2 * args.rank},
            "training": {"steps": STEPS, "batch": rows},
            "checkpoints": {"every": 1, "keep": 2},
            "seed": args.seed,
        });
        let file = self.0.join("job.json");
        for (path, text) in [(&data, lines), (&file, job.to_string())] {
            let written = fs::write(path, text);
            written.with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

/// The program while it trains; killed when this is dropped.
struct Running {
    began: Instant,
    child: Child,
    lines: std::io::Lines<BufReader<ChildStderr>>,
    last: Vec<String>,
}

impl Running {
    fn start(job: &Path, args: &BenchArgs) -> anyhow::Result<Self> {
        // The very file that runs, though another may have taken its path since.
        let mut command = Command::new("/proc/self/exe");
        command.args([
            "train",
            "--log=hyprstream_worker=debug,info",
            "--log-format=json",
        ]);
        command.arg("--job").arg(job);
        command.args(["--dtype", &args.model.dtype]);
        let kernels = args.model.kernels.to_possible_value();
        let kernels = kernels.context("--kernels has no name")?;
        command.args(["--kernels", kernels.get_name()]);
        if let Some(threads) = args.model.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let began = Instant::now();
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .context("the program cannot be started")?;
        let log = child.stderr.take().context("its log cannot be read")?;
        Ok(Self {
            began,
            child,
            lines: BufReader::new(log).lines(),
            last: Vec::new(),
        })
    }

    /// What it says next.
    ///
    /// # Errors
    /// It ended; with its last lines.
    fn hear(&mut self) -> anyhow::Result<Said> {
        let Some(line) = self.lines.next() else {
            bail!("`train` ended:\n{}", self.last.join("\n"));
        };
        let line = line.context("the log of `train` cannot be read")?;
        // Errors are no JSON.
        let said = serde_json::from_str(&line).unwrap_or_default();
        self.last.push(line);
        if self.last.len() > SHOWN {
            self.last.remove(0);
        }
        Ok(said)
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("`train` cannot be killed")?;
        self.child.wait().context("`train` does not end")?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_says_what_a_checkpoint_cost() {
        let line = r#"{"timestamp":"t","level":"DEBUG","message":"a checkpoint is written","step":3,
            "path":"/o","bytes":7,"stood_still_ms":1.5,"waited_ms":0.5,"took_ms":9.0,"target":"x"}"#;
        let said: Said = serde_json::from_str(line).unwrap();
        assert_eq!((said.step, said.bytes), (Some(3), 7));
        assert!((said.stood_still_ms - 1.5).abs() < 1e-9);
        assert!((said.took_ms - 9.0).abs() < 1e-9);
    }
}
