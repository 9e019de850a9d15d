//! Measures a model in this process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, executor::block_on, future::join_all};
use hyprstream_engine::{EngineHandle, ModelSpec, Request, TextStream};

use super::{
    BenchArgs, bandwidth,
    clock::{Clock, Timing},
    median,
    prompts::{Prompts, request},
    report::{Figures, LocalReport, Machine, Model, max_rss_bytes},
};
use crate::{ModelArgs, adapters::Packer, backend};

/// A loaded model with the clock that hears it.
pub(super) struct Rig {
    pub(super) engine: EngineHandle,
    pub(super) packer: Arc<dyn Packer>,
    pub(super) load_seconds: f64,
    clock: Arc<Clock>,
}

impl Rig {
    /// Loads a model with room for `batch` requests of `length` tokens each.
    pub(super) fn load(args: &ModelArgs, batch: usize, length: usize) -> anyhow::Result<Self> {
        let mut args = args.clone();
        args.max_batch = args.max_batch.max(batch);
        let clock = Arc::new(Clock::default());
        let started = Instant::now();
        let (loaded, packer) = backend::load(&args, batch, Arc::clone(&clock) as _)?;
        let load_seconds = started.elapsed().as_secs_f64();
        let longest = loaded.engine.max_model_len();
        ensure!(
            length <= longest,
            "{length} tokens are more than the {longest} of the model or its cache"
        );
        Ok(Self {
            engine: loaded.engine,
            packer,
            load_seconds,
            clock,
        })
    }

    /// Runs requests together and tells what they took.
    pub(super) fn round(&self, requests: Vec<Request>) -> anyhow::Result<Timing> {
        self.clock.expect(requests.len());
        let started = Instant::now();
        let streams = requests
            .into_iter()
            .map(|request| self.engine.submit(request))
            .collect::<Result<Vec<_>, _>>()?;
        for ended in block_on(join_all(streams.into_iter().map(drain))) {
            ended?;
        }
        self.clock
            .finish(started)
            .context("the engine did not say that its last step is over")
    }
}

async fn drain(mut stream: TextStream) -> anyhow::Result<()> {
    while let Some(piece) = stream.next().await {
        piece.context("a request failed")?;
    }
    Ok(())
}

/// Loads the model, measures every batch size, then the machine.
pub(super) fn measure(args: &BenchArgs) -> anyhow::Result<LocalReport> {
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    let prompt = args.context.unwrap_or(args.own_tokens());
    let rig = Rig::load(&args.model, largest, prompt + args.gen_tokens)?;
    let spec = rig.engine.spec().clone();
    let mut prompts = Prompts::new(spec.vocab_size, args.seed);
    // The first run pays for memory that is touched for the first time.
    let warm_up = request(prompts.unique(args.own_tokens().min(prompt)), 2);
    rig.round(vec![warm_up])?;
    let mut rows = Vec::new();
    for &batch in &args.batch {
        let timings = rounds(&rig, &mut prompts, batch, args)?;
        rows.push((batch, timings));
    }
    // Before the buffer for the bandwidth is in memory too.
    let max_rss_bytes = max_rss_bytes();
    let machine = machine(&args.model, &spec);
    let results = rows
        .iter()
        .map(|(batch, timings)| figures(*batch, timings, args, &spec, machine.as_ref()))
        .collect();
    Ok(LocalReport {
        model: Model {
            path: args.model.model.display().to_string(),
            architecture: spec.architecture,
            dtype: spec.dtype,
            device: spec.device,
            quantization: args.model.quantization.to_string(),
            kernels: args.model.kernels.to_string(),
            weight_bytes: spec.weight_bytes,
        },
        load_seconds: rig.load_seconds,
        max_rss_bytes,
        machine,
        results,
    })
}

fn rounds(
    rig: &Rig,
    prompts: &mut Prompts,
    batch: usize,
    args: &BenchArgs,
) -> anyhow::Result<Vec<Timing>> {
    // Behind a context only decoding counts: its prompts may come out of the cache.
    let contexts = args.context.map(|tokens| {
        (0..batch)
            .map(|_| prompts.unique(tokens))
            .collect::<Vec<_>>()
    });
    let mut timings = Vec::new();
    for _ in 0..args.repeat {
        let fresh = || {
            (0..batch)
                .map(|_| prompts.unique(args.own_tokens()))
                .collect()
        };
        let requests = contexts
            .clone()
            .unwrap_or_else(fresh)
            .into_iter()
            .map(|prompt| request(prompt, args.gen_tokens))
            .collect();
        let timing = rig.round(requests)?;
        if timing.decode.is_none() && args.gen_tokens > 1 {
            bail!(
                "with {batch} requests the first answer ended before the last prompt was computed: \
                 there is no decoding to measure, use more --gen-tokens"
            );
        }
        timings.push(timing);
    }
    Ok(timings)
}

/// The limits of the machine; those of a GPU's memory are not measured.
fn machine(args: &ModelArgs, spec: &ModelSpec) -> Option<Machine> {
    let threads = args
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1);
    (spec.device == "cpu")
        .then(|| bandwidth::measure(threads))
        .flatten()
        .map(|measured| Machine {
            threads,
            read_bandwidth_bytes_per_second: measured.bytes_per_second,
            buffer_bytes: measured.buffer_bytes,
        })
}

fn figures(
    batch: usize,
    timings: &[Timing],
    args: &BenchArgs,
    spec: &ModelSpec,
    machine: Option<&Machine>,
) -> Figures {
    let context = args.context.unwrap_or(args.own_tokens());
    let of = |figure: &dyn Fn(&Timing) -> Option<f64>| {
        median(timings.iter().filter_map(figure).collect())
    };
    let decode = of(&|t| {
        t.decode
            .map(|(tokens, time)| tokens as f64 / time.as_secs_f64())
    });
    let limit = machine.map(|machine| {
        let bytes = bytes_per_step(spec, batch, context as f64 + args.gen_tokens as f64 / 2.0);
        batch as f64 * machine.read_bandwidth_bytes_per_second / bytes
    });
    let whole = args.context.is_none();
    let first = |pick: fn(&[Duration]) -> Option<f64>| {
        of(&|t| whole.then(|| pick(&t.first_tokens)).flatten())
    };
    Figures {
        batch,
        context_tokens: context,
        gen_tokens: args.gen_tokens,
        prefill_tokens_per_second: of(&|t| {
            whole.then(|| (batch * context) as f64 / t.prefill.as_secs_f64())
        }),
        decode_tokens_per_second: decode,
        decode_limit_tokens_per_second: limit,
        decode_share_of_limit: decode.zip(limit).map(|(decode, limit)| decode / limit),
        output_tokens_per_second: of(&|t| {
            whole.then(|| (batch * args.gen_tokens) as f64 / t.whole.as_secs_f64())
        }),
        first_token_seconds_median: first(|all| {
            median(all.iter().map(Duration::as_secs_f64).collect())
        }),
        first_token_seconds_max: first(|all| {
            all.iter().map(Duration::as_secs_f64).max_by(f64::total_cmp)
        }),
        preemptions: timings.iter().map(|t| t.preempted).sum(),
    }
}

/// Bytes that a step must read: all weights once, and the keys and values of every sequence.
///
/// An upper bound for models of which a step reads less: input embeddings that are not the
/// output's too, and windows shorter than the context.
fn bytes_per_step(spec: &ModelSpec, batch: usize, context: f64) -> f64 {
    let slots = (spec.num_blocks * spec.block_size).max(1) as f64;
    let of_a_position = spec.kv_cache_bytes as f64 / slots;
    spec.weight_bytes as f64 + batch as f64 * context * of_a_position
}

#[cfg(test)]
mod tests {
    use hyprstream_engine::{
        Engine, EngineConfig,
        fake::{self, FakeBackend, FakeOptions},
    };

    use super::*;
    use crate::adapters::fake::FakePacker;

    fn rig() -> Rig {
        let clock = Arc::new(Clock::default());
        let options = FakeOptions {
            step_time: Duration::from_millis(1),
            ..FakeOptions::default()
        };
        let config = EngineConfig {
            max_step_tokens: 64,
            ..EngineConfig::default()
        };
        let engine = Engine::start(
            Box::new(FakeBackend::new(256, 512, options)),
            Arc::new(fake::tokenizer()),
            config,
            Arc::clone(&clock) as _,
        )
        .unwrap();
        Rig {
            engine,
            packer: Arc::new(FakePacker::default()),
            load_seconds: 0.0,
            clock,
        }
    }

    #[test]
    fn a_round_counts_what_the_whole_batch_decodes() {
        let rig = rig();
        let mut prompts = Prompts::new(fake::VOCAB_SIZE, 1);
        for batch in [1, 4] {
            // The prompts need several steps, in which the first answers begin already.
            let requests = (0..batch)
                .map(|_| request(prompts.unique(60), 20))
                .collect();
            let timing = rig.round(requests).unwrap();
            assert_eq!(timing.first_tokens.len(), batch);
            let (tokens, time) = timing.decode.unwrap();
            assert_eq!(tokens % batch, 0, "whole steps of {batch}");
            assert!(tokens <= batch * 19 && tokens >= batch * 10, "{tokens}");
            assert!(time < timing.whole && timing.prefill < timing.whole);
        }
    }

    #[test]
    fn a_step_reads_all_weights_and_every_context() {
        let spec = ModelSpec {
            weight_bytes: 1000,
            kv_cache_bytes: 3200,
            ..rig().engine.spec().clone()
        };
        let of_a_position = 3200.0 / (256.0 * 16.0);
        let expected = 1000.0 + 2.0 * 100.0 * of_a_position;
        assert!((bytes_per_step(&spec, 2, 100.0) - expected).abs() < 1e-9);
    }
}
