//! The records that a gate looks at, as the trainer reads them.

use std::path::Path;

use hyprstream_contract::training::Gate;
use hyprstream_training::{Loss, Method, PrepareError, Report, Sample, Subset, samples_at};

use super::{Bench, Cancelled, Halt};

/// Samples, and what people should know of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Records {
    /// At least one. Of a pair the preferred answer.
    pub(super) samples: Vec<Sample>,
    /// Such as how many records were left out.
    pub(super) notes: Vec<String>,
}

impl Records {
    /// The samples at the path of `gate` of which `loss` counts, or those that the job holds back.
    pub(super) fn of(
        bench: &Bench<'_>,
        gate: &Gate,
        method: Method,
        loss: Loss,
    ) -> Result<Self, Halt> {
        let most = gate.max_records as usize;
        let Some(path) = &gate.path else {
            let held = bench.prepared.eval.as_ref().ok_or_else(|| {
                let why =
                    "the job holds nothing back: set eval in the job, or give the gate a path";
                Halt::Failed(why.to_owned())
            })?;
            return Ok(Self {
                samples: preferred(held, most)?,
                notes: Vec::new(),
            });
        };
        let read = samples_at(bench.job, Path::new(path), method, loss, bench.control);
        let (subset, report) = read.map_err(|error| match error {
            PrepareError::Ended => Cancelled.into(),
            error => unread(path, &error),
        })?;
        Ok(Self {
            samples: preferred(&subset, most)?,
            notes: notes(&report),
        })
    }
}

/// The first `most` samples, of pairs the preferred answers.
fn preferred(subset: &Subset, most: usize) -> Result<Vec<Sample>, Halt> {
    let unread = |error| Halt::Failed(format!("a sample cannot be read back: {error}"));
    let each = (0..subset.len().min(most) as u32).map(|index| {
        let mut unit = subset.read(index).map_err(unread)?;
        Ok(unit.swap_remove(0))
    });
    each.collect()
}

fn unread(path: &str, error: &PrepareError) -> Halt {
    let why = crate::train::anyhow_chain(error);
    Halt::Failed(format!(
        "{path}: {why}: the gate needs records in one of the forms of the job's data"
    ))
}

fn notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if !report.left_out.is_empty() {
        let files = report.left_out.join(", ");
        notes.push(format!("{files} is left out, which is learnt from"));
    }
    if report.bad > 0 {
        let (bad, all, first) = (report.bad, report.records, report.first_bad());
        notes.push(format!("{bad} of {all} records are bad ({first})"));
    }
    if report.cut_away > 0 {
        let count = report.cut_away;
        notes.push(format!(
            "{count} are left out, since nothing that counts is within data.maxLength"
        ));
    }
    if report.truncated > 0 {
        notes.push(format!("{} are cut at data.maxLength", report.truncated));
    }
    notes
}
