//! `train`: an adapter out of a model and data, by a job file; no cluster needed.

mod args;
mod gates;
pub(crate) mod learner;
pub mod pod;
mod teller;

use std::{io::IsTerminal, process::ExitCode, thread};

use anyhow::Context;
use hyprstream_contract::training::Verdict;
use hyprstream_training::{
    Around, Control, Job, Outcome, PrepareError, Prepared, Report, Subset, prepare,
};
use serde_json::json;
use tracing::{debug, info, warn};

use self::{
    gates::Judging,
    learner::{LearnerChoice, LearnerError},
    teller::Teller,
};
use crate::serve::signals;

pub use args::TrainArgs;
pub use pod::PodArgs;

/// How the program ends after SIGTERM or SIGINT, with a checkpoint: sysexits' EX_TEMPFAIL, since
/// the same command goes on from there.
pub const EXIT_SUSPENDED: u8 = 75;
/// How it ends when the job, the model or the data are wrong: the same command fails again.
pub const EXIT_REFUSED: u8 = 2;
/// How it ends when the adapter is written, but does not show what the job's gates ask for, or is not
/// served as it was trained.
pub const EXIT_GATES: u8 = 3;

/// What people should know of a checkpoint that says little.
const TRUSTED: &str = "the checkpoint is of a release that did not write down its model, the adapter \
                       it went on from and its eval data: they are taken for those of before";

/// How a job ended.
enum End {
    /// The adapter is written.
    Complete,
    /// It is, but a gate is not passed.
    Failed,
    /// A signal ended it; the last checkpoint is whole.
    Suspended,
}

/// Trains until the job is done, or until SIGTERM or SIGINT.
pub fn run(args: &TrainArgs) -> ExitCode {
    if let Some(file) = &args.pod.pod {
        return pod::run(args, file);
    }
    let control = Control::default();
    if let Err(error) = end_by_signal(control.clone()) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let (choice, job, prepared) = match read(args, &control) {
        Ok(read) => read,
        Err(error) => {
            if let Some(PrepareError::Ended) = error.downcast_ref() {
                warn!("ended before all data were read: the same command begins anew");
                return ExitCode::from(EXIT_SUSPENDED);
            }
            eprintln!("error: {error:#}");
            return ExitCode::from(EXIT_REFUSED);
        }
    };
    match train(args, &choice, &job, &prepared, &control) {
        Ok(End::Complete) => ExitCode::SUCCESS,
        Ok(End::Failed) => ExitCode::from(EXIT_GATES),
        Ok(End::Suspended) => ExitCode::from(EXIT_SUSPENDED),
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref() {
                Some(LearnerError::Job(_)) => ExitCode::from(EXIT_REFUSED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn read(args: &TrainArgs, control: &Control) -> anyhow::Result<(LearnerChoice, Job, Prepared)> {
    let choice = args.learner()?;
    let job = Job::read(&args.job)?;
    let around = Around {
        control: control.clone(),
        ..Around::default()
    };
    let prepared = prepare(&job, &around)?;
    Ok((choice, job, prepared))
}

fn train(
    args: &TrainArgs,
    choice: &LearnerChoice,
    job: &Job,
    prepared: &Prepared,
    control: &Control,
) -> anyhow::Result<End> {
    tell(prepared);
    let loaded = choice.load(&job.model, prepared.parameters.clone())?;
    let mut learner = loaded.learner;
    let computed_by = learner.name();
    info!(computed_by, "computes");
    let mut teller = Teller::new(std::io::stderr().is_terminal());
    let outcome = prepared.train(learner.as_mut(), &mut teller, control);
    teller.finish();
    let finished = match outcome? {
        Outcome::Complete(finished) => finished,
        Outcome::Suspended(state) | Outcome::Cancelled(state) => {
            let step = state.cursor.step;
            warn!(
                step,
                "suspended: the same command goes on from its checkpoint"
            );
            return Ok(End::Suspended);
        }
    };
    let (files, digest) = prepared.publish(&finished)?;
    let path = files.tensors.display().to_string();
    info!(
        path,
        %digest,
        step = finished.step,
        stopped_early = finished.stopped_early,
        skipped = finished.cursor.skipped,
        "the adapter is written"
    );
    let name = job.output.file_name().unwrap_or_default();
    let judged = gates::judge(Judging {
        job,
        prepared,
        gates: &gates::gates_of(job),
        name: &name.to_string_lossy(),
        good: Ok(None),
        learner,
        values: &finished.values,
        adapter: &job.output.join("adapter"),
        args,
        control,
        tell: &|how_far| debug!(how_far, "judges"),
    });
    let Ok(verdicts) = judged else {
        warn!("ended before all was measured: the same command measures it anew");
        return Ok(End::Suspended);
    };
    tell_verdicts(&verdicts);
    if args.json {
        let best = finished
            .cursor
            .best
            .map(|best| json!({"step": best.step, "loss": best.loss}));
        let report = json!({
            "adapter": path,
            "digest": digest.to_string(),
            "step": finished.step,
            "steps": finished.cursor.step,
            "stoppedEarly": finished.stopped_early,
            "skipped": finished.cursor.skipped,
            "tokens": finished.cursor.tokens,
            "computedBy": computed_by,
            "best": best,
            "loss": teller.loss(),
            "data": prepared.report,
            "gates": verdicts,
        });
        println!("{report}");
    } else {
        println!("{path}\n{digest}");
        for verdict in &verdicts {
            println!("{}", verdict.message);
        }
    }
    Ok(if verdicts.iter().all(|verdict| verdict.passed) {
        End::Complete
    } else {
        End::Failed
    })
}

fn tell_verdicts(verdicts: &[Verdict]) {
    for verdict in verdicts {
        let message = verdict.message.as_str();
        if verdict.passed {
            info!(message, "a gate is passed");
        } else {
            warn!(message, "a gate is not passed");
        }
    }
}

/// Says what the run is about, and what of the data it leaves out.
fn tell(prepared: &Prepared) {
    of_data(&prepared.report, "data");
    if let Some(report) = &prepared.eval_report {
        of_data(report, "eval.path");
    }
    for (path, error) in &prepared.passed_over {
        let error = anyhow_chain(error);
        warn!(path = %path.display(), error, "a checkpoint is passed over");
    }
    if prepared.is_taken_on_trust() {
        warn!("{}", TRUSTED);
    }
    if let Some(resumed) = &prepared.resumed {
        info!(step = resumed.step, path = %resumed.path.display(), "goes on from a checkpoint");
    }
    info!(
        parts = prepared.parameters.parts.len(),
        parameters = prepared.parameters.len,
        samples = prepared.train.len(),
        held_back = prepared.eval.as_ref().map_or(0, Subset::len),
        "trains"
    );
}

fn of_data(report: &Report, what: &'static str) {
    info!(
        what,
        records = report.records,
        samples = report.samples,
        tokens = report.tokens,
        targets = report.targets,
        digest = report.digest,
        "read"
    );
    if !report.left_out.is_empty() {
        let files = report.left_out.join(", ");
        info!(
            what,
            files, "files are left out, which the job names for something else"
        );
    }
    if report.is_shared {
        warn!(
            what,
            "the file is learnt from and judged by: a loss of it says little"
        );
    }
    if report.bad > 0 {
        let first = report.first_bad();
        warn!(what, bad = report.bad, first, "records are left out");
    }
    if report.truncated + report.cut_away > 0 {
        let (truncated, left_out) = (report.truncated, report.cut_away);
        warn!(
            what,
            truncated, left_out, "samples are longer than data.maxLength"
        );
    }
    if report.endless > 0 {
        let endless = report.endless;
        warn!(
            what,
            endless, "answers end without a token by which serving would stop"
        );
    }
    if let Some(advice) = report.joined_advice() {
        warn!(what, joined = report.joined, "{advice}");
    }
    if !report.ignored.is_empty() {
        let columns = report
            .ignored
            .iter()
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        info!(what, columns, "columns say nothing here");
    }
}

fn anyhow_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Lets SIGTERM and SIGINT end the run after its step, with a checkpoint.
fn end_by_signal(control: Control) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("signals cannot be waited for")?;
    let entered = runtime.enter();
    let signals = signals()?;
    drop(entered);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(signals);
            info!("ends as soon as it can, with a checkpoint");
            control.suspend();
        })
        .map(drop)
        .context("signals cannot be waited for")
}
