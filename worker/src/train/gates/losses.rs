//! How likely the model finds what others wrote.

use std::{fs, path::Path};

use hyprstream_contract::training::{Gate, Metric};
use hyprstream_training::{Loss as Counts, Method, Sample, is_pattern};

use super::{
    Bench, Halt,
    records::Records,
    served::{Loss, With, how_far},
    verdict::Figure,
};

/// What names of files of records end with; others are a text.
const RECORDS: [&str; 4] = [".jsonl", ".jsonl.gz", ".ndjson", ".parquet"];

/// The mean loss, or e to it, of what `gate` looks at.
pub(super) fn figure(
    bench: &Bench<'_>,
    gate: &Gate,
    with: &With,
    whose: &str,
) -> Result<Figure, Halt> {
    let records = if gate.metric == Metric::Perplexity {
        all_tokens(bench, gate)?
    } else {
        Records::of(bench, gate, bench.job.method, bench.job.data.loss)?
    };
    let Records { samples, mut notes } = records;
    let before = samples.len();
    let served = bench.served;
    let samples: Vec<Sample> = samples
        .into_iter()
        .filter(|sample| sample.tokens.len() <= served.max_len() && sample.targets() > 0)
        .collect();
    if samples.is_empty() {
        return Err(Halt::Failed(format!(
            "none of {before} records can be used: the gate needs texts of two tokens or more, and \
             of at most {} tokens: lower data.maxLength",
            served.max_len()
        )));
    }
    if samples.len() < before {
        let count = before - samples.len();
        let most = served.max_len();
        notes.push(format!(
            "{count} are left out, which are longer than {most} tokens or empty"
        ));
    }
    let progress = how_far(bench.tell, gate.metric, whose, samples.len());
    let mean = Loss::mean(served.losses(&samples, with, progress)?);
    let value = match gate.metric {
        Metric::Perplexity => mean.exp(),
        _ => mean,
    };
    Ok(Figure { value, notes })
}

/// All tokens of records, or of a text in windows of the job's length.
fn all_tokens(bench: &Bench<'_>, gate: &Gate) -> Result<Records, Halt> {
    let text = gate.path.as_deref().map(Path::new).filter(|path| {
        let name = path.to_string_lossy();
        let is_one = path.is_file() || !path.is_dir() && !is_pattern(path);
        is_one && !RECORDS.iter().any(|ending| name.ends_with(ending))
    });
    if let Some(path) = text {
        return windows(bench, gate, path);
    }
    // Texts are no pairs, whatever the job learns from.
    let method = match gate.path {
        Some(_) => Method::Sft,
        None => bench.job.method,
    };
    let mut records = Records::of(bench, gate, method, Counts::All)?;
    for sample in &mut records.samples {
        sample.trained.fill(true);
        if let Some(first) = sample.trained.first_mut() {
            *first = false;
        }
    }
    Ok(records)
}

fn windows(bench: &Bench<'_>, gate: &Gate, path: &Path) -> Result<Records, Halt> {
    let failed = |why: &dyn std::fmt::Display| Halt::Failed(format!("{}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
    if text.starts_with("version https://git-lfs") {
        let why = "it is a git-lfs pointer: the file itself was not fetched";
        return Err(failed(&why));
    }
    let tokens = bench.served.tokenizer().encode(&text, true);
    let tokens = tokens.map_err(|error| failed(&error))?;
    let samples = tokens
        .chunks(bench.job.data.max_length)
        .take(gate.max_records as usize)
        // Of one token nothing is predicted.
        .filter(|window| window.len() > 1)
        .map(|window| Sample {
            tokens: window.to_vec(),
            trained: (0..window.len()).map(|index| index > 0).collect(),
        });
    Ok(Records {
        samples: samples.collect(),
        notes: Vec::new(),
    })
}
