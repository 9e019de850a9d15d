//! From files to samples.

mod files;
mod lines;
#[cfg(feature = "parquet")]
mod parquet;
mod record;
mod report;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use files::is_pattern;
pub use report::{BadRecord, Report};

use crate::{
    job::Method,
    render::{Renderer, Unrendered},
    samples::{Samples, SamplesWriter, Unit},
    trainer::Control,
};
use record::{Shape, UNDERSTOOD};

/// A data set that cannot be learnt from.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder of it.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is of no form that is read here.
    #[error("{} cannot be read as data: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What it is, and what to do.
        why: String,
    },
    /// Records are of no form that is understood.
    #[error(
        "{}, record {number}: the columns {} are not understood: one of {UNDERSTOOD} is needed",
        path.display(), found.join(", ")
    )]
    Columns {
        /// Where it was seen.
        path: PathBuf,
        /// The first such record, from 1.
        number: u64,
        /// What it has.
        found: Vec<String>,
    },
    /// Records are of a form that is known, but not for this.
    #[error("{}, record {number}: {why}", path.display())]
    Form {
        /// Where it was seen.
        path: PathBuf,
        /// The first such record, from 1.
        number: u64,
        /// What form, and what to do.
        why: String,
    },
    /// More records are bad than may be.
    #[error("{} of {} records are bad, more than data.maxBad allows: {}", report.bad, report.records, report.first_bad())]
    TooManyBad {
        /// What was seen.
        report: Box<Report>,
    },
    /// More samples have nothing to learn within the maximal length than may be.
    #[error("of {} of {} samples nothing that counts is within data.maxLength, more than data.maxBad allows: raise data.maxLength, or data.maxBad to go on without them", report.cut_away, report.samples + report.cut_away)]
    TooManyCut {
        /// What was seen.
        report: Box<Report>,
    },
    /// Nothing is left to learn from.
    #[error("no sample is left of {} records, of which {} are bad and {} have their answer beyond data.maxLength: {}", report.records, report.bad, report.cut_away, report.first_bad())]
    Empty {
        /// What was seen.
        report: Box<Report>,
    },
    /// Somebody wished an end before all was read.
    #[error("ended before all data were read")]
    Ended,
    /// The samples cannot be kept.
    #[error("samples cannot be written into {}", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is read, and where it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// A file, a folder of files, or a pattern of their names ([`is_pattern`]).
    pub path: &'a Path,
    /// What is for something else: files that these paths name are left out of a folder or pattern.
    pub apart: &'a [PathBuf],
    /// What it is for: pairs or not.
    pub method: Method,
    /// Part of its records that may be bad, and of its samples that may have nothing that counts
    /// within the maximal length.
    pub max_bad: f64,
    /// A folder with room for four bytes for each token.
    pub scratch: &'a Path,
    /// Ends it from another thread.
    pub control: &'a Control,
}

/// The samples of a data set. Records are read one after another, and tokens go to disk: memory
/// holds 20 bytes for each sample.
///
/// # Errors
/// [`DataError`].
pub fn read(source: Source<'_>, renderer: &Renderer<'_>) -> Result<(Samples, Report), DataError> {
    let unit = match source.method {
        Method::Sft => Unit::One,
        Method::Dpo => Unit::Pair,
    };
    let scratch = |error| DataError::Scratch {
        path: source.scratch.to_owned(),
        source: error,
    };
    let chosen = files::chosen(source.path, source.apart)?;
    let mut reading = Reading {
        renderer,
        method: source.method,
        shape: None,
        writer: SamplesWriter::create(source.scratch, unit).map_err(scratch)?,
        scratch: source.scratch,
        report: Report::default(),
    };
    let digest = lines::read(&chosen, |at, line| {
        if source.control.is_ended() {
            return Err(DataError::Ended);
        }
        reading.take(at, line)
    })?;
    let mut report = reading.report;
    report.digest = digest;
    report.left_out = chosen.left_out;
    report.is_shared = chosen.is_shared;
    let samples = reading.writer.finish().map_err(scratch)?;
    report.samples = samples.len() as u64;
    report.tokens = samples.tokens();
    report.targets = samples.targets();
    if report.bad as f64 > source.max_bad * report.records as f64 {
        return Err(DataError::TooManyBad {
            report: Box::new(report),
        });
    }
    if samples.is_empty() {
        return Err(DataError::Empty {
            report: Box::new(report),
        });
    }
    let all = report.samples + report.cut_away;
    if report.cut_away as f64 > source.max_bad * all as f64 {
        return Err(DataError::TooManyCut {
            report: Box::new(report),
        });
    }
    Ok((samples, report))
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    pub(crate) path: &'a Path,
    /// Line or row, from 1.
    pub(crate) number: u64,
}

/// A record as a file has it, or why it is none.
pub(crate) type Line = Result<serde_json::Map<String, serde_json::Value>, String>;

struct Reading<'a> {
    renderer: &'a Renderer<'a>,
    method: Method,
    /// That of the first record, and so of all.
    shape: Option<Shape>,
    writer: SamplesWriter,
    scratch: &'a Path,
    report: Report,
}

impl Reading<'_> {
    fn take(&mut self, at: At<'_>, line: Line) -> Result<(), DataError> {
        let number = self.report.records as u32;
        self.report.records += 1;
        let fields = match line {
            Ok(fields) => fields,
            Err(why) => {
                self.report.bad(at, why);
                return Ok(());
            }
        };
        let shape = match self.shape {
            Some(shape) => shape,
            None => self.first(at, &fields)?,
        };
        self.report.note_ignored(shape.ignored(&fields));
        let units = shape
            .record(fields)
            .map_err(Unrendered::Bad)
            .and_then(|record| self.renderer.units(record));
        match units {
            Ok(rendered) => {
                self.report.truncated += rendered.truncated;
                self.report.cut_away += rendered.cut_away;
                self.report.endless += rendered.endless;
                self.report.joined += u64::from(rendered.is_joined);
                for unit in rendered.units {
                    let written = self.writer.push(number, &unit);
                    written.map_err(|source| DataError::Scratch {
                        path: self.scratch.to_owned(),
                        source,
                    })?;
                }
            }
            Err(Unrendered::Bad(why)) => self.report.bad(at, why),
            Err(Unrendered::Never(why)) => {
                return Err(DataError::Form {
                    path: at.path.to_owned(),
                    number: at.number,
                    why,
                });
            }
        }
        Ok(())
    }

    /// Finds the form of all records in the first.
    fn first(
        &mut self,
        at: At<'_>,
        fields: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Shape, DataError> {
        let form = |why: &str| DataError::Form {
            path: at.path.to_owned(),
            number: at.number,
            why: why.to_owned(),
        };
        let shape = Shape::of(fields).ok_or_else(|| DataError::Columns {
            path: at.path.to_owned(),
            number: at.number,
            found: fields.keys().cloned().collect(),
        })?;
        match (shape, self.method) {
            (Shape::Kto, _) => Err(form(
                "prompt, completion and label are data for KTO, which is not offered: leave label \
                 out to learn the completions, or make pairs of chosen and rejected for method dpo",
            )),
            (Shape::Preference | Shape::OpenAiPreference, Method::Sft) => {
                Err(form("these are pairs of answers: set method to dpo"))
            }
            (Shape::Preference | Shape::OpenAiPreference, Method::Dpo) | (_, Method::Sft) => {
                self.shape = Some(shape);
                Ok(shape)
            }
            (_, Method::Dpo) => Err(form(
                "method dpo needs pairs of answers (prompt, chosen, rejected): set method to sft",
            )),
        }
    }
}
