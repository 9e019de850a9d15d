//! Measures the worker beside its peers: the table of the engine's bars, in one go.
//!
//! Machines differ from day to day and quiet repeats by a tenth, so that only ratios of figures
//! of one run count. Every row is measured in rounds, ours and each peer's in turn; medians are
//! compared. Where decoding meets the limit of the memory, measured in the same run too, 90 % of
//! it is enough.

mod adapters;
mod llama;
mod models;
mod ours;
mod record;
mod rows;
mod table;
mod venv;
mod vllm;

use std::{ffi::OsStr, path::PathBuf, process::Command, thread::available_parallelism};

use anyhow::{Context, Result, ensure};

use self::{
    llama::Llama,
    models::{Model, Models},
    ours::Ours,
    record::Record,
    rows::{Peer, Row},
    table::{Samples, Verdict, judge, render},
    vllm::Vllm,
};
use crate::{
    paths::{Cache, Checkout},
    programs,
    ui::{Step, say},
};

/// A peer's program, in the environment that its users have. `cargo xtask` runs with libgomp's
/// threads asleep while they wait (.cargo/config.toml), with which llama.cpp decodes at a third of
/// its speed.
fn peer(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("OMP_WAIT_POLICY");
    command
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Measures the peers too; without it only our own figures are told.
    #[arg(long)]
    peers: bool,
    /// Only these peers. Without it: llama.cpp, and vLLM where it is installed or has room.
    #[arg(long, value_enum, value_delimiter = ',', requires = "peers")]
    only: Vec<Peer>,
    /// Little of everything, to see that it works; the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Measures clones, checkouts and worktrees beside git and git-lfs instead of the worker.
    #[arg(long, conflicts_with_all = ["peers", "only", "rows", "worker", "rounds", "threads", "jobs"])]
    storage: bool,
    /// Rounds; medians of their figures are compared.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u16).range(1..=100), conflicts_with = "quick")]
    rounds: u16,
    /// Only rows whose name holds one of these.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Threads of everything that is measured. The bars are for 2.
    #[arg(long, default_value = "2", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Measures this worker instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    worker: Option<PathBuf>,
    /// Processes that compile llama.cpp at once; by default one a processor.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
}

/// Everything that is measured, ready to run.
struct Field<'a> {
    models: Models<'a>,
    ours: Ours,
    llama: Option<Llama>,
    vllm: Option<Vllm>,
}

/// Builds and runs what measures git2db, which prints a table.
fn storage(checkout: &Checkout, quick: bool) -> Result<()> {
    let mut cargo = programs::compile(checkout);
    cargo.args(["--quiet", "--bin", programs::REGISTRY[0]]);
    cargo.args(["--example", "storage"]);
    let status = cargo.status().context("cargo could not be started")?;
    ensure!(status.success(), "the measurement could not be built");
    let folder = programs::target(checkout).join("release");
    let registry = folder.join(programs::REGISTRY[0]);
    let mut measure = Command::new(folder.join("examples/storage"));
    measure.arg(format!("--registry={}", registry.display()));
    if quick {
        measure.arg("--quick");
    }
    let status = measure
        .status()
        .context("the measurement could not be started")?;
    ensure!(status.success(), "the measurement ended with {status}");
    Ok(())
}

/// Builds what is missing, measures, prints the table and keeps it below `.local/bench`.
pub(crate) fn run(checkout: &Checkout, cache: &Cache, args: &BenchArgs) -> Result<()> {
    if args.storage {
        return storage(checkout, args.quick);
    }
    let mut rows = rows::all(args.quick);
    if !args.rows.is_empty() {
        rows.retain(|row| {
            args.rows
                .iter()
                .any(|part| row.name.contains(part.as_str()))
        });
    }
    ensure!(!rows.is_empty(), "no row has such a name");
    let step = Step::new("what is measured".to_owned());
    let mut field = prepare(checkout, cache, args, &rows, &step)?;
    step.done("");
    let mut record = Record::begin(args.threads.into(), args.quick);
    if let Some(note) = field.llama.as_ref().and_then(|llama| llama.note.as_deref()) {
        record.note(format!("llama.cpp was {note}"));
    }
    let rounds = if args.quick { 1 } else { args.rounds };
    let step = Step::new(format!("{} rows, {rounds} rounds", rows.len()));
    let mut samples = vec![Samples::default(); rows.len()];
    for round in 1..=rounds {
        for (row, samples) in rows.iter().zip(&mut samples) {
            step.amount(&format!("round {round}, {}", row.name));
            field.measure(row, samples, &mut record, &step);
        }
    }
    step.done("");
    let verdicts: Vec<Verdict> = rows
        .iter()
        .zip(samples)
        .map(|(row, samples)| judge(row, samples))
        .collect();
    let path = record.finish(checkout, &verdicts)?;
    say(render(&verdicts));
    record.notes().iter().for_each(say);
    say(format_args!("All figures: {}", path.display()));
    if args.peers && verdicts.iter().any(|verdict| verdict.met.is_none()) {
        anyhow::bail!("not all rows could be measured");
    }
    Ok(())
}

fn prepare<'a>(
    checkout: &Checkout,
    cache: &'a Cache,
    args: &BenchArgs,
    rows: &[Row],
    step: &Step,
) -> Result<Field<'a>> {
    let threads = usize::from(args.threads);
    let log = cache.join("log/bench.log");
    let models = Models {
        cache,
        log: log.clone(),
    };
    let program = match &args.worker {
        Some(program) => program
            .canonicalize()
            .with_context(|| format!("there is no {}", program.display()))?,
        None => programs::worker(checkout, &log, step)?,
    };
    let ours = Ours {
        program,
        threads,
        log: cache.join("log/bench-worker.log"),
    };
    let wants = |peer: Peer| {
        args.peers
            && rows.iter().any(|row| row.peers.contains(&peer))
            && (args.only.is_empty() || args.only.contains(&peer))
    };
    let jobs = args
        .jobs
        .map(usize::from)
        .or_else(|| available_parallelism().ok().map(Into::into))
        .unwrap_or(1);
    let llama = wants(Peer::Llama)
        .then(|| Llama::ensure(&models, threads, jobs, step))
        .transpose()?;
    let free = free_bytes(cache)?;
    let has_room = vllm::is_installed(cache) || free > vllm::DISK_BYTES;
    let vllm = if !wants(Peer::Vllm) {
        None
    } else if has_room || args.only.contains(&Peer::Vllm) {
        let model = models.folder(Model::SmolLm2, step)?;
        Some(Vllm::start(cache, &model, threads, step)?)
    } else {
        step.note("vLLM is left out: the disk has less than 15 GB free (--only vllm forces it)");
        None
    };
    Ok(Field {
        models,
        ours,
        llama,
        vllm,
    })
}

impl Field<'_> {
    /// One round of one row. What fails once is not tried again.
    fn measure(&mut self, row: &Row, samples: &mut Samples, record: &mut Record, step: &Step) {
        let has_failed =
            |samples: &Samples, who: &str| samples.failures.iter().any(|f| f.starts_with(who));
        if !has_failed(samples, "ours") {
            let figure = self
                .ours
                .measure(&self.models, row.model, row.form, row.work, step);
            match figure {
                Ok(figure) => {
                    samples.ours.push(figure.ours);
                    samples.limits.extend(figure.limit);
                    // Beside a peer it is the peer that counts.
                    if let Some((name, other)) = figure.other.filter(|_| row.peers.is_empty()) {
                        samples.push_other(name, other);
                    }
                    record.report(row.name, &figure.report);
                }
                Err(error) => samples.failures.push(format!("ours: {error:#}")),
            }
        }
        for peer in row.peers {
            let name = peer.name();
            if has_failed(samples, name) {
                continue;
            }
            let figure = match (peer, &self.llama, &mut self.vllm) {
                (Peer::Llama, Some(llama), _) => {
                    llama.measure(&self.models, row.model, row.form, row.work, step)
                }
                (Peer::Vllm, _, Some(vllm)) => vllm.measure(row.work),
                _ => continue,
            };
            match figure {
                Ok(figure) => samples.push_other(name, figure),
                Err(error) => samples.failures.push(format!("{name}: {error:#}")),
            }
        }
    }
}

/// Room on the disk of the cache.
fn free_bytes(cache: &Cache) -> Result<u64> {
    let disk = rustix::fs::statvfs(cache.root()).context("cannot ask the disk for its room")?;
    Ok(disk.f_bavail * disk.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_do_not_inherit_how_xtask_has_threads_wait() {
        let peer = peer("true");
        let removed =
            |(name, value): (&OsStr, Option<&OsStr>)| name == "OMP_WAIT_POLICY" && value.is_none();
        assert!(peer.get_envs().any(removed));
    }
}
