//! `bench`: how fast a model runs here, without HTTP.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::{StreamExt, executor::block_on, future::join_all};
use hyprstream_engine::{
    EngineHandle, NoObserver, Request, SamplingParams, Stats, StopRules, TextStream,
};
use serde::Serialize;

use crate::{BenchArgs, backend};

/// What was measured at one batch size; the median of the repetitions.
#[derive(Debug, Serialize)]
struct Figures {
    batch: usize,
    prompt_tokens: usize,
    gen_tokens: usize,
    /// Prompt tokens of all requests by the time until the last one has its first token.
    prefill_tokens_per_second: f64,
    /// Generated tokens after the first of all requests by the time that they took.
    decode_tokens_per_second: f64,
    time_to_first_token_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    architecture: String,
    dtype: String,
    device: String,
    load_seconds: f64,
    weight_bytes: u64,
    results: Vec<Figures>,
}

/// Loads the model, measures every batch size, and prints.
pub fn run(args: &BenchArgs) -> ExitCode {
    match measure(args) {
        Ok(report) => {
            print(&report, args.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &BenchArgs) -> anyhow::Result<Report> {
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    let mut model = args.model.clone();
    model.max_batch = model.max_batch.max(largest);
    let started = Instant::now();
    let loaded = backend::load(&model, largest, Arc::new(NoObserver))?;
    let load_seconds = started.elapsed().as_secs_f64();
    let spec = loaded.engine.spec().clone();
    let length = args.prompt_tokens + args.gen_tokens;
    if length > loaded.engine.max_model_len() {
        bail!(
            "{length} tokens are more than the model's {}",
            loaded.engine.max_model_len()
        );
    }
    let mut unique = 0;
    // The first run pays for memory that is touched for the first time.
    once(&loaded.engine, 1, args, &mut unique)?;
    let mut results = Vec::new();
    for &batch in &args.batch {
        let mut runs = (0..args.repeat)
            .map(|_| once(&loaded.engine, batch, args, &mut unique))
            .collect::<anyhow::Result<Vec<_>>>()?;
        results.push(median(&mut runs, batch, args));
    }
    Ok(Report {
        model: args.model.model.display().to_string(),
        architecture: spec.architecture,
        dtype: spec.dtype,
        device: spec.device,
        load_seconds,
        weight_bytes: spec.weight_bytes,
        results,
    })
}

/// Rates of one run: prefill, decode, seconds to the first token.
type Rates = [f64; 3];

fn once(
    engine: &EngineHandle,
    batch: usize,
    args: &BenchArgs,
    unique: &mut u32,
) -> anyhow::Result<Rates> {
    let started = Instant::now();
    let streams = (0..batch)
        .map(|_| {
            *unique += 1;
            engine.submit(request(engine.spec().vocab_size, args, *unique))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let answers = block_on(join_all(streams.into_iter().map(drain)));
    let whole = started.elapsed();
    let stats = answers
        .into_iter()
        .collect::<anyhow::Result<Vec<Stats>>>()?;
    let first = stats
        .iter()
        .map(Stats::time_to_first_token)
        .max()
        .unwrap_or(Duration::ZERO);
    let decode = whole.saturating_sub(first).as_secs_f64();
    let decoded = batch * (args.gen_tokens - 1);
    Ok([
        (batch * args.prompt_tokens) as f64 / first.as_secs_f64(),
        if decoded == 0 {
            0.0
        } else {
            decoded as f64 / decode
        },
        first.as_secs_f64(),
    ])
}

async fn drain(mut stream: TextStream) -> anyhow::Result<Stats> {
    while let Some(piece) = stream.next().await {
        piece.context("a request failed")?;
    }
    Ok(*stream.stats())
}

/// A prompt that shares no beginning with any other, so that no cache can serve it.
fn request(vocab_size: usize, args: &BenchArgs, unique: u32) -> Request {
    let prompt = (0..args.prompt_tokens as u32)
        .map(|at| {
            let mixed = (u64::from(unique) << 32 | u64::from(at))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                .wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 33) as u32 % vocab_size as u32
        })
        .collect();
    Request {
        prompt,
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        stop: StopRules {
            max_tokens: Some(args.gen_tokens),
            ignore_eos: true,
            ..StopRules::default()
        },
        ..Request::default()
    }
}

fn median(runs: &mut [Rates], batch: usize, args: &BenchArgs) -> Figures {
    let mut at = |column: usize| {
        runs.sort_by(|a, b| a[column].total_cmp(&b[column]));
        runs[runs.len() / 2][column]
    };
    Figures {
        batch,
        prompt_tokens: args.prompt_tokens,
        gen_tokens: args.gen_tokens,
        prefill_tokens_per_second: at(0),
        decode_tokens_per_second: at(1),
        time_to_first_token_seconds: at(2),
    }
}

fn print(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::json!(report));
        return;
    }
    println!(
        "{} ({}, {} on {}), loaded in {:.2} s",
        report.model, report.architecture, report.dtype, report.device, report.load_seconds
    );
    println!("batch  prompt  gen  prefill tok/s  decode tok/s  first token s");
    for row in &report.results {
        println!(
            "{:5}  {:6}  {:3}  {:13.1}  {:12.1}  {:13.3}",
            row.batch,
            row.prompt_tokens,
            row.gen_tokens,
            row.prefill_tokens_per_second,
            row.decode_tokens_per_second,
            row.time_to_first_token_seconds
        );
    }
}
