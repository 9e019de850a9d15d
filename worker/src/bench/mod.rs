//! `bench`: how fast a model runs here without HTTP, or how a server does under load.
//!
//! What is counted:
//! - **prefill**: the prompts' tokens over the time from the submission to the end of the step
//!   that gives the last request its first token. With several requests that time holds the
//!   first tokens of answers that began earlier, so the figure of one request is the clean one.
//! - **decode**: tokens between two moments: the end of the step in which the last request got
//!   its first token, and the end of the step in which the first one ended. In between every
//!   step decodes the whole batch and nothing else.
//! - **output**: all generated tokens over the whole time, prompts included; comparable with the
//!   same figure of a server under [load].
//!
//! Steps are timed on the engine's own thread: what a reader does is not in the figures. Of [train]
//! a whole update is timed: loss, gradient, clipping, AdamW; and of [checkpoints] how long a job stands
//! still for one, and how soon it goes on after a kill.

mod adapters;
mod args;
mod bandwidth;
mod checkpoints;
mod clock;
mod load;
mod local;
mod prefix;
mod prompts;
mod report;
mod train;

use std::process::ExitCode;

pub use args::{BenchArgs, LoadArgs};
use report::Report;

/// Measures and prints.
pub fn run(args: &BenchArgs) -> ExitCode {
    match measure(args) {
        Ok(report) => {
            report.print(args.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &BenchArgs) -> anyhow::Result<Report> {
    if let Some(tokens) = args.train {
        return train::measure(tokens as usize, args).map(Report::Train);
    }
    match (&args.load.serve, args.shared_prefix, args.adapters) {
        (Some(url), ..) => load::measure(url, args).map(Report::Load),
        (None, Some(tokens), _) => prefix::measure(tokens, args).map(Report::Prefix),
        (None, None, Some(count)) => adapters::measure(count, args).map(Report::Adapters),
        (None, None, None) => local::measure(args).map(Report::Local),
    }
}

/// The middle of `values`; of two middle ones the greater. `None` without values.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
