//! What is told of a measurement, as JSON or as a table.

use serde::Serialize;

use super::load::LoadReport;

/// Any measurement.
pub(super) enum Report {
    Local(LocalReport),
    Prefix(PrefixReport),
    Adapters(AdapterReport),
    Train(TrainReport),
    Load(LoadReport),
}

/// A model in this process.
#[derive(Debug, Serialize)]
pub(super) struct LocalReport {
    pub(super) model: Model,
    pub(super) load_seconds: f64,
    /// The most memory that the process had resident while it measured.
    pub(super) max_rss_bytes: Option<u64>,
    pub(super) machine: Option<Machine>,
    pub(super) results: Vec<Figures>,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) path: String,
    pub(super) architecture: String,
    pub(super) dtype: String,
    pub(super) device: String,
    pub(super) quantization: String,
    pub(super) kernels: String,
    pub(super) weight_bytes: u64,
}

/// Limits of the machine, measured in the same run.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) threads: usize,
    pub(super) read_bandwidth_bytes_per_second: f64,
    pub(super) buffer_bytes: usize,
}

/// One batch size; every figure is the median of the repetitions by itself.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) batch: usize,
    /// Tokens before the first that is generated.
    pub(super) context_tokens: usize,
    pub(super) gen_tokens: usize,
    pub(super) prefill_tokens_per_second: Option<f64>,
    pub(super) decode_tokens_per_second: Option<f64>,
    /// What reading weights, keys and values at the machine's bandwidth allows.
    pub(super) decode_limit_tokens_per_second: Option<f64>,
    pub(super) decode_share_of_limit: Option<f64>,
    pub(super) output_tokens_per_second: Option<f64>,
    pub(super) first_token_seconds_median: Option<f64>,
    pub(super) first_token_seconds_max: Option<f64>,
    pub(super) preemptions: usize,
}

/// Requests with a shared beginning.
#[derive(Debug, Serialize)]
pub(super) struct PrefixReport {
    pub(super) model: String,
    pub(super) shared_tokens: usize,
    pub(super) own_tokens: usize,
    pub(super) results: Vec<PrefixRow>,
}

/// Mean times to the first token at one batch size.
#[derive(Debug, Serialize)]
pub(super) struct PrefixRow {
    pub(super) batch: usize,
    pub(super) without_cache_seconds: f64,
    pub(super) cold_seconds: f64,
    pub(super) warm_seconds: f64,
    pub(super) cold_ratio: f64,
    pub(super) warm_ratio: f64,
}

/// Requests with adapters beside the same without.
#[derive(Debug, Serialize)]
pub(super) struct AdapterReport {
    pub(super) model: String,
    pub(super) adapters: usize,
    pub(super) rank: usize,
    /// Of all of them in memory.
    pub(super) bytes: u64,
    pub(super) prompt_tokens: usize,
    pub(super) gen_tokens: usize,
    pub(super) results: Vec<AdapterRow>,
}

/// One batch size.
#[derive(Debug, Serialize)]
pub(super) struct AdapterRow {
    pub(super) batch: usize,
    pub(super) prefill: Option<Pair>,
    /// `None` where the first answer ended before the last prompt was computed.
    pub(super) decode: Option<Pair>,
}

/// A figure without and with adapters; each is the median of the repetitions by itself.
#[derive(Debug, Serialize)]
pub(super) struct Pair {
    pub(super) without_tokens_per_second: f64,
    pub(super) with_tokens_per_second: f64,
    pub(super) ratio: f64,
}

/// Updates of an adapter.
#[derive(Debug, Serialize)]
pub(super) struct TrainReport {
    pub(super) model: String,
    /// In which the frozen weights are kept.
    pub(super) dtype: String,
    pub(super) kernels: String,
    pub(super) threads: Option<usize>,
    pub(super) rank: usize,
    /// Numbers that are trained.
    pub(super) parameters: usize,
    /// The learner's name.
    pub(super) computed_by: String,
    pub(super) weight_bytes: u64,
    pub(super) results: Vec<TrainRow>,
    /// Of the updates, loading included.
    pub(super) max_rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checkpoints: Option<CheckpointReport>,
}

/// Checkpoints of a job, and a resume after a kill.
#[derive(Debug, Serialize)]
pub(super) struct CheckpointReport {
    /// Size of the files of one.
    pub(super) bytes: u64,
    /// How many were measured.
    pub(super) count: usize,
    /// How long training stood still for one.
    pub(super) stood_still_ms: Spread,
    /// How long of that it waited for the two before to be written.
    pub(super) waited_ms: Spread,
    /// From the same moment until it was on disk.
    pub(super) on_disk_ms: Spread,
    /// The step that the program went on from after it was killed.
    pub(super) resumed_step: u64,
    /// The first that it did then.
    pub(super) first_step: u64,
    /// From its start to the end of that step.
    pub(super) resume_seconds: f64,
}

/// What several measurements gave.
#[derive(Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) max: f64,
}

/// One number of rows.
#[derive(Debug, Serialize)]
pub(super) struct TrainRow {
    pub(super) rows: usize,
    /// Most tokens of a row.
    pub(super) row_tokens: usize,
    /// Of the median update.
    pub(super) tokens_per_second: f64,
    /// Mean over the tokens that count, of each update.
    pub(super) losses: Vec<f64>,
    /// Of the rows of each update, where they differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) lengths: Vec<Vec<usize>>,
}

impl Report {
    /// Prints to the standard output.
    pub(super) fn print(&self, json: bool) {
        match self {
            Self::Local(report) if json => println!("{}", serde_json::json!(report)),
            Self::Prefix(report) if json => println!("{}", serde_json::json!(report)),
            Self::Adapters(report) if json => println!("{}", serde_json::json!(report)),
            Self::Train(report) if json => println!("{}", serde_json::json!(report)),
            Self::Load(report) if json => println!("{}", serde_json::json!(report)),
            Self::Local(report) => print_local(report),
            Self::Prefix(report) => print_prefix(report),
            Self::Adapters(report) => print_adapters(report),
            Self::Train(report) => print_train(report),
            Self::Load(report) => report.print(),
        }
    }
}

fn print_local(report: &LocalReport) {
    let model = &report.model;
    println!(
        "{} ({}, {} on {}, quantization {}, kernels {})",
        model.path,
        model.architecture,
        model.dtype,
        model.device,
        model.quantization,
        model.kernels
    );
    let rss = report.max_rss_bytes.map_or("unknown".to_owned(), megabytes);
    println!(
        "loaded in {:.2} s, weights {}, most resident memory {rss}",
        report.load_seconds,
        megabytes(model.weight_bytes)
    );
    if let Some(machine) = &report.machine {
        println!(
            "memory: {:.1} GB/s read by {} threads",
            machine.read_bandwidth_bytes_per_second / 1e9,
            machine.threads
        );
    }
    println!(
        "batch  context  gen  prefill tok/s  decode tok/s  limit tok/s  share  output tok/s  first token s (median, max)"
    );
    for row in &report.results {
        println!(
            "{:5}  {:7}  {:3}  {:>13}  {:>12}  {:>11}  {:>5}  {:>12}  {:>6} {:>6}",
            row.batch,
            row.context_tokens,
            row.gen_tokens,
            number(row.prefill_tokens_per_second, 1),
            number(row.decode_tokens_per_second, 1),
            number(row.decode_limit_tokens_per_second, 1),
            number(row.decode_share_of_limit, 2),
            number(row.output_tokens_per_second, 1),
            number(row.first_token_seconds_median, 3),
            number(row.first_token_seconds_max, 3),
        );
        if row.preemptions > 0 {
            println!(
                "       {} requests lost their cache blocks: the cache is too small for this row",
                row.preemptions
            );
        }
    }
}

fn print_prefix(report: &PrefixReport) {
    println!(
        "{}: {} shared tokens, {} of their own; mean seconds to the first token",
        report.model, report.shared_tokens, report.own_tokens
    );
    println!("batch  without cache  first wave (ratio)  later waves (ratio)");
    for row in &report.results {
        println!(
            "{:5}  {:13.3}  {:10.3} ({:.3})  {:11.3} ({:.3})",
            row.batch,
            row.without_cache_seconds,
            row.cold_seconds,
            row.cold_ratio,
            row.warm_seconds,
            row.warm_ratio
        );
    }
}

fn print_adapters(report: &AdapterReport) {
    println!(
        "{}: {} adapters of rank {} on all linear layers ({}), {} tokens of prompt, {} of answer; \
         tokens a second without, with, and the ratio",
        report.model,
        report.adapters,
        report.rank,
        megabytes(report.bytes),
        report.prompt_tokens,
        report.gen_tokens
    );
    println!("batch  prefill                     decode");
    let text = |pair: &Option<Pair>| {
        pair.as_ref().map_or("-".to_owned(), |pair| {
            format!(
                "{:8.1}  {:8.1}  {:.3}",
                pair.without_tokens_per_second, pair.with_tokens_per_second, pair.ratio
            )
        })
    };
    for row in &report.results {
        let (prefill, decode) = (text(&row.prefill), text(&row.decode));
        println!("{:5}  {prefill:26}  {decode}", row.batch);
    }
}

fn print_train(report: &TrainReport) {
    let rss = report.max_rss_bytes.map_or("unknown".to_owned(), megabytes);
    println!(
        "{} ({}, kernels {}): {} numbers of rank {} on all linear layers; weights {}, most resident \
         memory {rss}",
        report.model,
        report.computed_by,
        report.kernels,
        report.parameters,
        report.rank,
        megabytes(report.weight_bytes)
    );
    println!("rows  tokens of each  tok/s");
    for row in &report.results {
        let up_to = if row.lengths.is_empty() { "" } else { "up to " };
        let tokens = format!("{up_to}{}", row.row_tokens);
        println!("{:4}  {tokens:>14}  {:.1}", row.rows, row.tokens_per_second);
    }
    let Some(checkpoints) = &report.checkpoints else {
        return;
    };
    println!(
        "{} checkpoints of {}: ms that training stood still {:.1} (at most {:.1}), of which it waited \
         for those before {:.1} ({:.1}); ms until on disk {:.1} ({:.1})",
        checkpoints.count,
        megabytes(checkpoints.bytes),
        checkpoints.stood_still_ms.median,
        checkpoints.stood_still_ms.max,
        checkpoints.waited_ms.median,
        checkpoints.waited_ms.max,
        checkpoints.on_disk_ms.median,
        checkpoints.on_disk_ms.max
    );
    println!(
        "killed and started again from step {}: step {} was done {:.2} s after the start",
        checkpoints.resumed_step, checkpoints.first_step, checkpoints.resume_seconds
    );
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// The most memory that this process ever had resident.
pub(super) fn max_rss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}
